"""The development kit and the class folders, with a meta.mat that scipy writes in MATLAB's own format."""

import pytest
import scipy.io

from tests.support.imagenet_kit import SORTED, WNIDS, devkit
from triplet.errors import KitError
from triplet.pull.imagenet import GROUND_TRUTH, sort_validation, validation_classes


def images(folder, count=3):
    folder.mkdir()
    for number in range(1, count + 1):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_text(str(number))
    return folder


def sorted_into(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.JPEG")}


def test_classes_come_from_the_leaves(tmp_path):
    assert validation_classes(devkit(tmp_path)) == [WNIDS[1], WNIDS[0], WNIDS[1]]


def test_validation_images_go_to_their_classes_again_and_again(tmp_path):
    kit, val = devkit(tmp_path / "kit"), images(tmp_path / "val")
    (val / WNIDS[1]).mkdir()  # a kill left it half sorted
    first = val / "ILSVRC2012_val_00000001.JPEG"
    first.rename(val / WNIDS[1] / first.name)
    for _ in range(2):
        sort_validation(val, kit)
        assert sorted_into(val) == SORTED


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(KitError, match=r"ILSVRC2012_val_00000003\.JPEG is missing"):
        sort_validation(images(tmp_path / "val", 2), devkit(tmp_path / "kit"))


@pytest.mark.parametrize("damage", ["no file", "no mat", "inner class", "other mat"])
def test_another_devkit_is_one_line(tmp_path, damage):
    kit = devkit(tmp_path, truth=(1001,) if damage == "inner class" else (1,))
    if damage == "no file":
        (kit / "data" / GROUND_TRUTH).unlink()
    elif damage == "no mat":
        (kit / "data" / "meta.mat").write_bytes(b"not MATLAB's" * 50)
    elif damage == "other mat":
        scipy.io.savemat(kit / "data" / "meta.mat", {"x": 1})
    with pytest.raises(KitError, match="is not a development kit") as caught:
        validation_classes(kit)
    assert "\n" not in str(caught.value)
