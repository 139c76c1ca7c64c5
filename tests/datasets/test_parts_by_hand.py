"""Which files are which part, and what becomes of ids, classes and images: counted by hand."""

import json

import pytest

from triplet.datasets import layouts, source
from triplet.datasets.parts import name_below
from triplet.datasets.source import DataSource, read, write, written
from triplet.errors import KitError

BOX = {"bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0}


def coco(file, names=("a.jpg",), classes=((3, "cat"), (1, "dog")), **more):
    """Write a JSON with one box in each image, of the first class, and the images' files beside it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for name in names:
        (file.parent / name.rpartition("\\")[2]).touch()
    images = [{"id": 70 + i, "file_name": n, "width": 9, "height": 8} for i, n in enumerate(names)]
    boxes = [
        {**BOX, "id": 5 + i, "image_id": 70 + i, "category_id": classes[0][0]} for i in range(len(names))
    ]
    named = [{"id": id, "name": name, **more} for id, name in classes]
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": named}))
    return file


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        (("train", "valid", "test"), {"train": "train", "val": "valid"}),
        (("Training", "VAL2017", "Test2017"), {"train": "Training", "val": "VAL2017"}),
        (("train2014", "val2014", "test2015"), {"train": "train2014", "val": "val2014"}),
        (("train", "validation", "test-dev", "unlabeled", "unlabelled2017"), None),
        (("train", "test"), {"all": "train"}),
        (("export",), {"all": "export"}),
        (("test",), {"all": "test"}),
        (("train", "extra"), "extra, train"),
        (("val", "test"), "test, val"),
        (("a", "b"), "a, b"),
        (("train", "val", "valid"), "train, val, valid"),
    ],
)
def test_a_tools_names_are_those_of_the_two_parts(tmp_path, names, parts):
    for name in names:
        coco(tmp_path / name / layouts.ROBOFLOW)
    if isinstance(parts, str):
        with pytest.raises(KitError, match=f"has the parts {parts}, expected train and val"):
            layouts.find(tmp_path)
        return
    layout, found = layouts.find(tmp_path)
    assert layout.name == "Roboflow COCO"
    expected = parts or {"train": "train", "val": "validation"}
    assert {part: each.images.name for part, each in found.items()} == expected


def test_files_of_one_folder_are_a_part_where_no_folder_is_one(tmp_path):
    coco(tmp_path / layouts.ROBOFLOW)
    assert layouts.find(tmp_path)[1]["all"].images == tmp_path
    coco(tmp_path / "train" / layouts.ROBOFLOW)
    assert layouts.find(tmp_path)[1]["all"].images == tmp_path / "train"


def test_a_file_is_found_by_the_end_of_its_name(tmp_path):
    """Tools write folders of their own machines; nothing outside the folder is taken."""
    for name in ("b.jpg", "in/b.jpg"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    (tmp_path / "out.jpg").touch()
    for said, meant in (
        ("C:\\work\\in\\b.jpg", "in/b.jpg"),
        ("/x/b.jpg", "b.jpg"),
        ("./in/b.jpg", "in/b.jpg"),
        ("x/lost.jpg", ""),
        ("../out.jpg", ""),
        ("x/../out.jpg", ""),
    ):
        assert name_below(tmp_path / "set", said) == meant


def test_the_standard_layouts_are_read_where_they_are(tmp_path):
    assert layouts.is_standard(tmp_path / "nowhere")
    assert not layouts.is_standard(tmp_path)
    coco(tmp_path / "cvat" / "annotations" / "instances_default.json")
    assert not layouts.is_standard(tmp_path / "cvat")
    known = ("train2017", "val2017", "VOCdevkit", "annotations/captions_val2017.json")
    for number, name in enumerate(known):
        (tmp_path / str(number) / name).mkdir(parents=True)
        assert layouts.is_standard(tmp_path / str(number))
    folder = tmp_path / "coco"
    coco(folder / "annotations" / "instances_train2017.json")
    with pytest.raises(KitError, match="in no layout"):
        layouts.find(tmp_path / "0")
    coco(folder / "annotations" / "instances_val2017.json")
    assert layouts.is_standard(folder)  # its images are missing
    assert layouts.find(folder)[1]["val"].images == folder / "val2017"


@pytest.mark.parametrize("year", ["2017", "2014"])
@pytest.mark.parametrize("place", ["images/", ""])
def test_cocos_files_may_have_their_images_elsewhere(tmp_path, year, place):
    """In images/, as Ultralytics and CVAT have them; and of another year."""
    for part in ("train", "val"):
        coco(tmp_path / "annotations" / f"instances_{part}{year}.json")
        (tmp_path / f"{place}{part}{year}").mkdir(parents=True)
        (tmp_path / "annotations" / "a.jpg").rename(tmp_path / f"{place}{part}{year}" / "a.jpg")
    layout, found = layouts.find(tmp_path)
    own = (place, year) == ("", "2017")
    assert (layout.name, layouts.is_standard(tmp_path)) == ("COCO 2017" if own else "CVAT COCO", own)
    assert {part: each.images for part, each in found.items()} == {
        part: tmp_path / f"{place}{part}{year}" for part in ("train", "val")
    }


def test_a_folder_of_no_layout_is_listed_up_to_six_names(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(KitError, match=r"it holds 0.txt, 1.txt, .*, 5.txt and 2 more; known"):
        layouts.find(tmp_path)


def test_classes_are_those_of_train_in_the_order_of_their_ids(tmp_path):
    train = coco(tmp_path / "train.json")
    val = coco(tmp_path / "val.json", classes=((8, "dog"), (2, "cat"), (4, "cow")))
    data = read(DataSource(train=train, val=val))
    assert list(data.classes.items()) == [(1, "dog"), (3, "cat")]
    (box,) = data.parts["val"].content["annotations"]
    assert box["category_id"] == 1
    assert data.parts["val"].content["categories"] == data.parts["train"].content["categories"]


@pytest.mark.parametrize(("above", "classes"), [("pets", ["dog", "cat"]), ("dog", ["pets", "dog", "cat"])])
def test_a_class_above_all_others_is_none_unless_it_is_annotated(tmp_path, above, classes):
    """Roboflow's class 0 has the name that the others have as their supercategory."""
    file = coco(tmp_path / "train" / layouts.ROBOFLOW, supercategory=above)
    content = json.loads(file.read_text())
    content["categories"].append({"id": 0, "name": "pets", "supercategory": "none"})
    file.write_text(json.dumps(content))
    val = tmp_path / "valid" / layouts.ROBOFLOW
    coco(val).write_text(file.read_text())
    assert list(read(DataSource(tmp_path)).classes.values()) == classes
    content["annotations"][0]["category_id"] = 0
    for each in (file, val):
        each.write_text(json.dumps(content))
    assert list(read(DataSource(tmp_path)).classes.values()) == ["pets", "dog", "cat"]


def test_a_share_is_held_out_with_its_annotations(tmp_path):
    names = [f"{n}.jpg" for n in range(7)]
    file = coco(tmp_path / "all.json", names)

    def held_out(seed, share=0.4):
        parts = read(DataSource(train=file, val_share=share, split_seed=seed)).parts
        for part in parts.values():
            images = sorted(each["id"] for each in part.content["images"])
            assert sorted(each["image_id"] for each in part.content["annotations"]) == images
        return {each["file_name"] for each in parts["val"].content["images"]}

    assert len(held_out(2)) == 3  # 2.8 of 7
    assert {frozenset(held_out(seed)) for seed in range(5)} != {frozenset(held_out(0))}
    before = held_out(2)
    content = json.loads(file.read_text())
    for table, key in (("images", "id"), ("annotations", "image_id")):
        for each in content[table]:
            each[key] = 200 - each[key]
    file.write_text(json.dumps(content))
    assert held_out(2) == before
    for share, count in ((0.05, 0), (0.96, 7)):
        with pytest.raises(KitError, match=f"of its 7 images are {count}, expected some"):
            held_out(2, share)


def test_a_part_alone_is_what_the_stage_says(tmp_path):
    file = coco(tmp_path / "mine.json")
    assert list(read(DataSource(train=file), "val").parts) == ["val"]
    assert list(read(DataSource(train=file)).parts) == ["train"]
    assert list(read(DataSource(val=file)).parts) == ["val"]


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"folder": "x", "val": "x"},
        {"train": "x", "val_images": "x"},
        {"val": "x", "train_images": "x"},
    ],
)
def test_a_folder_or_files_are_named_and_not_both(named):
    with pytest.raises(KitError, match=r"named by a folder|--train-images goes with"):
        DataSource(**named)


def test_what_is_written_is_read_again_with_the_users_places(tmp_path):
    train = coco(tmp_path / "a" / "train.json", ["a.jpg", "b.jpg"])
    val = coco(tmp_path / "b" / "val.json")
    data = read(DataSource(train=train, val=val))
    write(data, tmp_path / "out")
    found = written(tmp_path / "out")
    assert found.parts["val"].annotations == tmp_path / "out" / "instances_val.json"
    assert {name: each.images for name, each in found.parts.items()} == {
        "train": tmp_path / "a",
        "val": tmp_path / "b",
    }
    assert found.sources == {"train": train, "val": val}
    assert not found.masks
    assert written(tmp_path) is None
    hashes = source.identity(data)["sha256"]
    content = json.loads(train.read_text())
    content["annotations"][0]["segmentation"] = [[1, 2, 3, 2, 3, 6]]
    train.write_text(json.dumps(content))
    data = read(DataSource(train=train, val=val))
    assert {name for name, each in source.identity(data)["sha256"].items() if each != hashes[name]} == {
        "instances_train.json"
    }
    write(data, tmp_path / "masks")
    assert written(tmp_path / "masks").masks  # of some objects
    split = read(DataSource(train=train, val_share=0.5, split_seed=4))
    assert source.identity(split)["split_seed"] == 4
    assert split.line().endswith("1 train, 1 val images, split by seed 4, 2 classes")
