"""Each tool's export is recognised and becomes the same normal form; what is in no layout is named."""

import json
import os
import shutil

import pytest
import yaml

from tests.support.own_data import EXPORTS, parts_of
from triplet.datasets.source import DESCRIPTION, DataSource, read, written
from triplet.errors import KitError


def shapes(part):
    """What is annotated, by file and class: polygons to a thousandth of a pixel."""
    names = {each["id"]: each["name"] for each in part["categories"]}
    files = {each["id"]: each["file_name"].rpartition("/")[2] for each in part["images"]}
    return sorted(
        (
            files[each["image_id"]],
            names[each["category_id"]],
            [round(v, 3) for v in each["segmentation"][0]],
        )
        for each in part["annotations"]
    )


@pytest.mark.parametrize("place", ["/data/{}", "../train2017/{}"])
def test_cocos_own_layout_is_read_as_finetuning_reads_it(drawn, tmp_path, place):
    """So `data check` accepts no name that `finetune` refuses."""
    shutil.copytree(drawn, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = place.format(content["images"][0]["file_name"])
    path.write_text(json.dumps(content))
    with pytest.raises(KitError, match="not a plain file name or path inside the folder"):
        read(DataSource(tmp_path / "coco"))


@pytest.mark.parametrize("name", EXPORTS)
def test_each_layout_says_the_same_as_coco(exported, drawn, name):
    data = read(DataSource(exported[name]))
    assert data.layout == name
    assert list(data.classes.values()) == [
        "striped disc",
        "striped square",
        "striped star",
        "dotted disc",
        "dotted square",
        "dotted star",
    ]
    for part, annotated in data.parts.items():
        assert shapes(annotated.content) == shapes(parts_of(drawn)[part][1])
        for image in annotated.content["images"]:
            assert (annotated.images / image["file_name"]).is_file()
            assert (image["width"], image["height"]) == (128, 128)
    assert len(data.parts) == (1 if name == "Label Studio COCO" else 2)


def test_jsons_are_named_by_themselves(exported):
    train, val = (exported["Roboflow COCO"] / part for part in ("train", "valid"))
    data = read(DataSource(train=train / "_annotations.coco.json", val=val / "_annotations.coco.json"))
    assert data.line() == "COCO JSON: 12 train, 6 val images, 6 classes"
    moved = read(DataSource(train=train / "_annotations.coco.json", train_images=val.parent))
    assert moved.line() == "COCO JSON: 12 train images, 6 classes"
    assert moved.parts["train"].images == val.parent


def test_val_has_the_classes_of_train_by_their_names(exported, tmp_path):
    folder = shutil.copytree(exported["Roboflow COCO"], tmp_path / "mine")
    path = folder / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    before = shapes(content)
    for table, key in (("categories", "id"), ("annotations", "category_id")):
        for each in content[table]:
            each[key] = 50 - each[key]
    path.write_text(json.dumps(content))
    data = read(DataSource(folder))
    assert shapes(data.parts["val"].content) == before
    assert data.parts["val"].content["categories"] == data.parts["train"].content["categories"]
    content["categories"][1]["name"] = "zebra"
    path.write_text(json.dumps(content))
    with pytest.raises(
        KitError, match=r"valid/_annotations.coco.json has the class 'zebra', which is none of"
    ):
        read(DataSource(folder))


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ({"path": "/of/another/machine"}, None),
        ({"path": None, "train": "../images/train", "val": ["images/val"]}, None),
        ({"names": ["a", "b", "c", "d", "e", "f"]}, None),
        ({}, "train.txt"),
    ],
)
def test_what_people_write_into_data_yaml(exported, tmp_path, changes, entry):
    folder = shutil.copytree(exported["YOLO segmentation"], tmp_path / "mine")
    values = yaml.safe_load((folder / "data.yaml").read_text()) | changes
    if entry:
        names = sorted(os.listdir(folder / "images" / "train"))
        (folder / entry).write_text("".join(f"./images/train/{name}\n" for name in names))
        values["train"] = entry
    (folder / "data.yaml").write_text(yaml.safe_dump({k: v for k, v in values.items() if v}))
    data = read(DataSource(folder / "data.yaml" if entry else folder))
    assert len(data.parts["train"].content["images"]) == 12
    assert len(data.parts["train"].content["annotations"]) == len(
        read(DataSource(exported["YOLO segmentation"])).parts["train"].content["annotations"]
    )


def test_boxes_of_yolo_stay_boxes(exported, tmp_path):
    folder = shutil.copytree(exported["YOLO segmentation"], tmp_path / "mine")
    for path in (folder / "labels").rglob("*.txt"):
        path.write_text("2 0.5 0.25 0.5 0.125\n")
    part = read(DataSource(folder)).parts["val"].content
    assert {(*each["bbox"], each["category_id"], each["area"]) for each in part["annotations"]} == {
        (32.0, 24.0, 64.0, 16.0, 2, 1024.0)
    }
    assert not any("segmentation" in each for each in part["annotations"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9 0.1 0.1 0.2 0.1 0.2 0.2", r"\d.txt, line 2: class 9 is none of the 6 names \(and 11 more\)$"),
        ("0 0.1 0.1 0.2 0.1 0.2", "line 2: 6 columns, expected a class and a polygon of 3 points or more"),
        ("0 10 10 20 10 20 20", "line 2: coordinates that are not normalised"),
        ("0 nan 0.1 0.2 0.1 0.2 0.2", "line 2: coordinates that are not normalised"),
        ("disc 0.1 0.1 0.2 0.2", "line 2: words that are not numbers: 'disc 0.1 0.1 0.2 0.2'"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(exported, tmp_path, row, message):
    folder = shutil.copytree(exported["YOLO segmentation"], tmp_path / "mine")
    for image in (folder / "images" / "train").iterdir():
        (folder / "labels" / "train" / f"{image.stem}.txt").write_text(f"0 0.5 0.5 0.5 0.5\n{row}\n")
    with pytest.raises(KitError, match=message):
        read(DataSource(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: 7\ntrain: images/train", "names is 7, expected a list of names"),
        ("train: images/train", "describes no YOLO data set: it has no 'names' of classes"),
        ("names: [a]\nval: images/val", "names no images to train on"),
        ("names: [a]\ntrain: nowhere", "names 'nowhere' below the path '.': there is nothing at"),
        ("names: [a]\ntrain: {a: b}", "train is {'a': 'b'}, expected a folder, a text file"),
        ("names: [a]\ntrain: images/train\nkpt_shape: [17, 3]", r"is of poses \(kpt_shape\)"),
        ("names: *a", "is not YAML"),
        ("names: &a [*a]", r"is not YAML \(the alias \*a stands inside of what it names"),
        ("names: [a]\ntrain: /etc/passwd", "/etc/passwd is neither a folder of images nor a text file"),
        ("names: [a]\ntrain: /dev/zero", "/dev/zero is neither a folder of images nor a text file"),
    ],
)
def test_a_wrong_data_yaml_is_named(exported, tmp_path, text, message):
    folder = shutil.copytree(exported["YOLO segmentation"], tmp_path / "mine")
    (folder / "data.yaml").write_text(text)
    with pytest.raises(KitError, match=message):
        read(DataSource(folder))


def test_another_layout_is_refused_with_what_was_found(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.csv").write_text("a,b")
    with pytest.raises(
        KitError, match=r"known: it holds labels.csv, photos/; known are COCO 2017 \("
    ) as said:
        read(DataSource(tmp_path))
    assert "YOLO segmentation (data.yaml or classes.txt, images/, labels/)" in str(said.value)
    with pytest.raises(KitError, match="nothing at /nonexistent"):
        read(DataSource(tmp_path / "/nonexistent"))


def test_parts_of_other_names_are_to_be_named(exported, tmp_path):
    folder = shutil.copytree(exported["CVAT COCO"], tmp_path / "mine")
    for name in ("Train", "Validation"):
        path = folder / "annotations" / f"instances_{name}.json"
        path.rename(path.with_name(f"instances_{name.upper()}_2.json"))
    with pytest.raises(KitError, match="has the parts TRAIN_2, VALIDATION_2, expected train and val"):
        read(DataSource(folder))


def test_a_part_alone_is_split_by_seed_and_image(exported, tmp_path):
    source = exported["Label Studio COCO"]

    def held_out(folder, seed, share=0.25):
        data = read(DataSource(folder, val_share=share, split_seed=seed))
        assert data.split == {"val_share": share, "split_seed": seed}
        names = {
            part: {i["file_name"] for i in each.content["images"]} for part, each in data.parts.items()
        }
        assert not names["train"] & names["val"]
        assert len(names["train"] | names["val"]) == 12
        for each in data.parts.values():
            ids = {image["id"] for image in each.content["images"]}
            assert {a["image_id"] for a in each.content["annotations"]} <= ids
        return names["val"]

    assert len(held_out(source, 0)) == 3
    assert held_out(source, 0) != held_out(source, 1)
    assert held_out(source, 0) < held_out(source, 0, 0.5)
    # The same images, whatever their order in the file.
    folder = shutil.copytree(source, tmp_path / "mine")
    content = json.loads((folder / "result.json").read_text())
    content["images"].reverse()
    (folder / "result.json").write_text(json.dumps(content))
    assert held_out(folder, 0) == held_out(source, 0)
    assert list(read(DataSource(source)).parts) == ["train"]
    with pytest.raises(KitError, match=r"0.01 of its 12 images are 0, expected some for training"):
        held_out(source, 0, 0.01)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"masks": 3}', '{"masks": true, "parts": {"val": {"images": 1}}}', "\udcff"]
)
def test_a_damaged_description_of_the_normal_form_is_one_line(tmp_path, content):
    (tmp_path / DESCRIPTION).write_text(content, errors="surrogateescape")
    with pytest.raises(KitError, match=r"own_data\.json is damaged; remove it, and name the data"):
        written(tmp_path)


@pytest.mark.parametrize("images", [2, "x", {"a": 1}, None, [3]])
def test_images_of_another_form_are_one_line(exported, tmp_path, images):
    folder = shutil.copytree(exported["Label Studio COCO"], tmp_path / "mine")
    content = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(content | {"images": images}))
    with pytest.raises(KitError, match="is not in COCO's annotation format"):
        read(DataSource(folder))


@pytest.mark.parametrize("above", [["a"], {"a": []}, 3, None])
def test_what_stands_above_a_class_may_be_anything(exported, tmp_path, above):
    """COCO's readers do not ask for it."""
    folder = shutil.copytree(exported["Label Studio COCO"], tmp_path / "mine")
    content = json.loads((folder / "result.json").read_text())
    for each in content["categories"]:
        each["supercategory"] = above
    (folder / "result.json").write_text(json.dumps(content))
    assert len(read(DataSource(folder)).classes) == len(content["categories"])


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["a/" * 200_000 + "b.jpg", "\\" * 100_000, "x" * 100_000])
def test_a_path_of_any_length_is_refused_at_once(exported, tmp_path, name):
    folder = shutil.copytree(exported["Label Studio COCO"], tmp_path / "mine")
    content = json.loads((folder / "result.json").read_text())
    content["images"][0]["file_name"] = name
    (folder / "result.json").write_text(json.dumps(content))
    read(DataSource(folder))  # it names a file that is missing, which is said where images are looked at
