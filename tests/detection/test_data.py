"""Which data sets a config means, and what is said when they are not there."""

import json
import shutil

import pytest

from benchmarks.detection import data, model
from tests.detection.conftest import DEMO
from triplet.errors import KitError

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts


def config(*overrides):
    return model.load_config(DEMO, overrides)


def test_it_finds_layout_and_missing_images(drawn, tmp_path):
    name, categories = data.testing(config(), drawn)
    assert len(categories) == 6
    assert len(DatasetCatalog.get(name)) == 6
    with pytest.raises(KitError, match=r"annotations/instances_train2017\.json is missing"):
        data.training(config(), tmp_path)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").mkdir()
    copy = tmp_path / "annotations" / "instances_val2017.json"
    copy.write_text("[]")
    with pytest.raises(KitError, match="not in COCO's annotation format"):
        data.testing(config(), tmp_path)
    copy.write_text((drawn / "annotations" / "instances_val2017.json").read_text())
    with pytest.raises(KitError, match="6 of 6 annotated images are missing"):
        data.testing(config(), tmp_path)


@pytest.mark.parametrize("write", [r"a\{}", "val2017/a/{}"])
def test_other_forms_of_paths_are_told_from_missing_files(drawn, tmp_path, write):
    shutil.copytree(drawn / "val2017", tmp_path / "val2017" / "a")
    content = json.loads((drawn / "annotations" / "instances_val2017.json").read_text())
    for image in content["images"]:
        image["file_name"] = write.format(image["file_name"])
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    with pytest.raises(KitError, match="first; file names are paths below val2017, with slashes: mend"):
        data.testing(config(), tmp_path)


def test_a_config_that_names_nothing_means_cocos_instances(drawn):
    names, categories = data.training(config(), drawn)
    assert len(DatasetCatalog.get(names[0])) == 12
    assert data.testing(config(), drawn) == (f"{drawn.absolute()}/coco_2017_val", categories)
    assert len(categories) == 6
    assert data.inputs(config(), drawn, train=False) == {
        "annotations": drawn / "annotations" / "instances_val2017.json",
        "images": drawn / "val2017",
    }


VOC = (
    "DATASETS.TRAIN=('voc_2007_trainval', 'voc_2012_trainval')",
    "DATASETS.TEST=('voc_2007_test',)",
    "MODEL.ROI_HEADS.NUM_CLASSES=20",
)


def test_voc(voc, truth):
    cfg = config(*VOC)
    names, categories = data.training(cfg, voc)
    assert [name.rpartition("/")[2] for name in names] == ["voc_2007_trainval", "voc_2012_trainval"]
    assert (len(categories), categories[0]) == (20, "aeroplane")
    images = get_detection_dataset_dicts(names)
    assert len(images) == 12
    first = [a for a in truth["annotations"] if a["image_id"] == 1]
    assert [a["category_id"] for a in images[0]["annotations"]] == [a["category_id"] - 1 for a in first]
    x, y, w, h = first[0]["bbox"]
    assert images[0]["annotations"][0]["bbox"] == pytest.approx([x, y, x + w, y + h], abs=1)
    assert sorted(data.inputs(cfg, voc, train=True)) == [
        f"voc_{year}_trainval {what}" for year in (2007, 2012) for what in ("annotations", "images", "list")
    ]
    name, _ = data.testing(cfg, voc)
    # A resolved config names what it was trained on with its folder.
    assert data.parts(config(f"DATASETS.TEST=('{name}',)"), voc, train=False)[0].declared == "voc_2007_test"


def test_keypoints(keypoints):
    cfg = config(
        "DATASETS.TRAIN=('keypoints_coco_2017_train',)",
        "MODEL.KEYPOINT_ON=True",
        "MODEL.ROI_HEADS.NUM_CLASSES=1",
        "DATASETS.TEST=('keypoints_coco_2017_val',)",
    )
    names, categories = data.training(cfg, keypoints)
    assert categories == ["person"]
    images = get_detection_dataset_dicts(names, min_keypoints=1)
    assert len(images[0]["annotations"][0]["keypoints"]) == 51
    from detectron2.data.detection_utils import create_keypoint_hflip_indices

    assert len(create_keypoint_hflip_indices(list(names))) == 17


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        (
            "JPEGImages/000002.jpg",
            None,
            "JPEGImages: 1 of 6 annotated images are missing, 000002.jpg first",
        ),
        ("Annotations/000001.xml", None, "Annotations: 1 of 6 annotations of listed images are missing"),
        ("Annotations/000001.xml", "<annotation>", "an annotation is damaged or not VOC's"),
        ("Annotations/000001.xml", "<annotation/>", "an annotation is damaged or not VOC's"),
        (
            "ImageSets/Main/test.txt",
            None,
            r"Main/test\.txt is missing; run: triplet pull voc",
        ),
    ],
)
def test_what_is_missing_of_voc_is_named(voc, tmp_path, path, content, message):
    copy = shutil.copytree(voc, tmp_path / "copy") / "VOCdevkit" / "VOC2007" / path
    if content is None:
        copy.unlink()
    else:
        copy.write_text(content)
    with pytest.raises(KitError, match=message):
        data.testing(config(*VOC), tmp_path / "copy")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["DATASETS.TEST=('lvis_v1_val',)"], "DATASETS names 'lvis_v1_val'; the kit has coco_2017"),
        (["DATASETS.TEST=('coco_2017_val', 'coco_2017_train')"], "names 2 data sets, expected one"),
        (["DATASETS.TEST=('keypoints_coco_2017_val',)"], r"person_keypoints_val2017\.json is missing"),
        (["MODEL.ROI_HEADS.NUM_CLASSES=80"], "has 6 categories, .* add MODEL.ROI_HEADS.NUM_CLASSES=6"),
        (["MODEL.META_ARCHITECTURE=RetinaNet"], "the config expects 80; add MODEL.RETINANET.NUM_CLASSES=6"),
    ],
)
def test_what_does_not_fit_is_named(drawn, overrides, message):
    with pytest.raises(KitError, match=message):
        data.testing(config(*overrides), drawn)


def test_classes_are_in_the_order_of_the_models_indices(drawn, tmp_path):
    """Detectron2 counts classes in the order of their ids, wherever they stand in the file."""
    shutil.copytree(drawn / "annotations", tmp_path / "annotations")
    (tmp_path / "val2017").symlink_to(drawn / "val2017")
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    names = [category["name"] for category in content["categories"]]
    content["categories"].reverse()
    path.write_text(json.dumps(content))
    name, classes = data.testing(config(), tmp_path)
    DatasetCatalog.get(name)
    assert classes == names == MetadataCatalog.get(name).thing_classes
    assert data.category_ids(name) == [1, 2, 3, 4, 5, 6]


def test_several_sets_must_have_the_same_categories(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "copy")
    path = tmp_path / "copy" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    first, second, *_ = content["categories"]
    first["name"], second["name"] = second["name"], first["name"]
    path.write_text(json.dumps(content))
    with pytest.raises(KitError, match=r"coco_2017_val has other categories than .*coco_2017_train"):
        data.training(config("DATASETS.TRAIN=('coco_2017_train', 'coco_2017_val')"), tmp_path / "copy")
