"""Two sets with the same classes, their pixels, and who sees what."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from benchmarks.linear.config import ImageSettings, Training
from benchmarks.linear.data import CenterCrops, Crops, EpochOrder, open_sets, share
from tests.conftest import KIT
from tests.linear.conftest import NAMES, draw
from triplet.errors import KitError


def test_folders_lists_and_a_subset_give_the_same_classes(imagenet, tmp_path):
    ours, theirs = open_sets(imagenet / "train", imagenet / "val")
    assert (len(ours), len(theirs), ours.classes) == (45, 15, list(NAMES))
    assert ours.labels.tolist() == [0] * 15 + [1] * 15 + [2] * 15

    lines = [f"{imagenet}/train/{ours.images.name(i)} {ours.labels[i]}\n" for i in reversed(range(45))]
    (tmp_path / "train.txt").write_text("".join(lines))
    (tmp_path / "val.txt").write_text(
        f"{imagenet}/val/{NAMES[2]}/{NAMES[2]}_0.png 2\n" + "".join(lines[-20:])
    )
    listed, _ = open_sets(tmp_path / "train.txt", tmp_path / "val.txt")
    assert listed.classes == ["0", "1", "2"]
    assert listed.labels.tolist() == ours.labels.tolist()[::-1]

    (tmp_path / "two.txt").write_text(f"{NAMES[2]} drum\n{NAMES[0]}\n")
    ours, theirs = open_sets(imagenet / "train", imagenet / "val", tmp_path / "two.txt")
    assert ours.classes == theirs.classes == [NAMES[0], NAMES[2]]
    assert ours.indices.tolist() == [*range(15), *range(30, 45)]
    assert theirs.labels.tolist() == [0] * 5 + [1] * 5


def test_the_hundred_classes_are_a_hundred_of_imagenets():
    names = (KIT / "configs" / "linear" / "imagenet100.txt").read_text().split()
    assert len(names) == len(set(names)) == 100
    assert all(len(name) == 9 and name[0] == "n" and name[1:].isdigit() for name in names)


def test_a_flat_folder_and_other_classes_are_refused(imagenet, tmp_path):
    for i in range(3):
        (tmp_path / f"ILSVRC2012_val_0000000{i}.JPEG").write_bytes(b"")
    with pytest.raises(KitError, match=r"images of no class.*triplet pull imagenet --from"):
        open_sets(imagenet / "train", tmp_path)
    draw(tmp_path / "val", 1, 0)
    (tmp_path / "val" / NAMES[1]).rename(tmp_path / "val" / "n99")
    with pytest.raises(KitError, match=rf"3 classes and .* has 3, .*'{NAMES[1]}' is in .*train and not in"):
        open_sets(imagenet / "train", tmp_path / "val")
    (tmp_path / "list").write_text("n00000001\nn00000002\n")
    with pytest.raises(KitError, match=r"no class 'n00000001', which .*list names \(2 of 2 are missing\)"):
        open_sets(imagenet / "train", imagenet / "val", tmp_path / "list")
    (tmp_path / "list").write_text(f"{NAMES[0]}\n{NAMES[0]}\n")
    with pytest.raises(KitError, match="lists 2 classes, 1 different"):
        open_sets(imagenet / "train", imagenet / "val", tmp_path / "list")


def test_an_unreadable_image_is_named(imagenet, tmp_path):
    draw(tmp_path, 1, 0)
    (tmp_path / NAMES[0] / f"{NAMES[0]}_0.png").write_bytes(b"broken")
    ours, _ = open_sets(tmp_path, tmp_path)
    with pytest.raises(KitError, match=rf"{NAMES[0]}/{NAMES[0]}_0.png cannot be read"):
        Crops(ours, ImageSettings(size=32, shorter=32), 0)[(0, 0)]


@pytest.mark.parametrize("size", [(500, 375), (60, 91)])
def test_the_centre_is_torchvisions(size, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "image.png")
    data = CenterCrops(open_sets(tmp_path, tmp_path)[0], ImageSettings(size=32, shorter=36))
    expected = transforms.Compose([transforms.Resize(36), transforms.CenterCrop(32)])(image)
    assert np.array_equal(data[1][0], np.asarray(expected))
    assert data[1][1] == 1


def test_crops_equal_torchvisions_and_depend_on_seed_epoch_image(imagenet):
    ours, _ = open_sets(imagenet / "train", imagenet / "val")
    data = Crops(ours, ImageSettings(size=32, shorter=36), 5)
    pixels, place = data[(3, 20)]
    assert place == 20
    assert np.array_equal(pixels, data[(3, 20)][0])
    others = [data[(4, 20)], data[(3, 21)], Crops(ours, ImageSettings(size=32, shorter=36), 6)[(3, 20)]]
    assert not any(np.array_equal(pixels, other) for other, _ in others)
    part = Crops(ours.only([20, 3]), ImageSettings(size=32, shorter=36), 5)
    assert np.array_equal(part[(3, 0)][0], pixels), "a part of the images sees the same crops"
    # A whole image at its own ratio: what is left is torchvision's bilinear resizing and the mirror.
    whole = Crops(ours, ImageSettings(size=32, shorter=32, scale=(1, 1)), 0)
    image = Image.open(imagenet / "train" / ours.images.name(0))
    plain = np.asarray(transforms.Resize((32, 32))(image))
    for epoch in range(30):
        found = whole[(epoch, 0)][0]
        if np.array_equal(found, plain):
            break
    else:
        raise AssertionError("no epoch shows the whole image unmirrored")


@given(
    images=st.integers(3, 60),
    parts=st.sampled_from([1, 2, 4]),
    times=st.integers(1, 5),
    processes=st.sampled_from([1, 2, 4]),
    start=st.integers(0, 20),
)
def test_each_epoch_shows_every_image_whatever_the_processes(images, parts, times, processes, start):
    if parts % processes:
        return
    training = Training(batch=parts * times, num_replicas=parts, learning_rate=1, epochs=3)
    order = EpochOrder(images, training, 0)
    shares = [list(order.batches(start, rank, processes)) for rank in range(processes)]
    assert all(len(s) == max(0, order.steps - start) for s in shares)
    steps = [sorted(item for s in shares for item in s[n]) for n in range(len(shares[0]))]
    assert all(len({len(s[n]) for s in shares}) == 1 for n in range(len(steps))), "equal shares"
    whole = list(order.batches(0, 0, 1))
    assert steps == [sorted(batch) for batch in whole[start:]]
    for epoch in range(3):
        seen = [place for batch in whole for e, place in batch if e == epoch]
        assert set(seen) == set(range(images))
        assert len(seen) == -(-images // parts) * parts


def test_each_epoch_has_an_order_of_its_own():
    order = EpochOrder(60, Training(batch=60, num_replicas=1, learning_rate=1, epochs=2), 0)
    first, second = ([place for _, place in batch] for batch in order.batches(0, 0, 1))
    assert first != second


@given(images=st.integers(1, 50), processes=st.integers(1, 4), batch=st.integers(1, 9))
def test_a_pass_has_every_image_once(images, processes, batch):
    found = [p for rank in range(processes) for b in share(images, rank, processes, batch) for p in b]
    assert sorted(found) == list(range(images))


def test_16_bits_are_said_and_scaled_and_floats_refused(tmp_path, capsys):
    draw(tmp_path, 2, 0)
    path = tmp_path / NAMES[0] / f"{NAMES[0]}_0.png"
    gray = np.asarray(Image.open(path).convert("L"))
    views = []
    for pixels in (gray, gray.astype(np.uint16) * 257):
        Image.fromarray(pixels).save(path)
        ours, _ = open_sets(tmp_path, tmp_path)
        views.append(CenterCrops(ours, ImageSettings(size=32, shorter=32))[0][0])
    assert np.array_equal(*views)
    assert f"1 of 6 images looked at have pixels of 16 bits, which are scaled to 8: {NAMES[0]}" in (
        capsys.readouterr().out
    )
    Image.fromarray(gray.astype(np.float32)).save(path, "TIFF")
    with pytest.raises(KitError, match=r"_0\.png has pixels of mode F \(32 bits\)"):
        CenterCrops(ours, ImageSettings(size=32, shorter=32))[0]
    with pytest.raises(KitError, match=r"_0\.png has pixels of mode F \(32 bits\)"):
        open_sets(tmp_path, tmp_path)
