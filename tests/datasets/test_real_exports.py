"""What tools really write into their exports: paths of other machines, painted masks, odd classes."""

import json
import shutil
import zipfile
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml
from pycocotools import mask as masks

from triplet import cli
from triplet.datasets.source import DataSource, read
from triplet.errors import KitError
from triplet.images import open_images


def copied(exported, name, tmp_path):
    return shutil.copytree(exported[name], tmp_path / "mine")


def changed(path, change):
    """Change a JSON in place; returns the path."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def files(data):
    """The files of all images, each of which must be there."""
    found = [
        part.images / each["file_name"] for part in data.parts.values() for each in part.content["images"]
    ]
    assert all(path.is_file() for path in found)
    return found


@pytest.mark.parametrize(
    ("written", "on_disk"),
    [
        ("../../label-studio/data/upload/1/{}", "{}"),
        ("/label-studio/data/upload/1/{}", "{}"),
        ("/data/local-files/?d=photos/{}", "{}"),
        ("http://localhost:8080/data/upload/1/{}", "{}"),
        ("https://bucket.example/photos%2F{}?token=a/b&expires=1", "{}"),
        ("images\\{}", "{}"),
        (f"images/{quote('grün und blau ')}{{}}", "grün und blau {}"),
        ("images/gr\u00fcn{}", "gru\u0308n{}"),
    ],
)
def test_a_tools_file_name_leads_to_its_image(exported, tmp_path, written, on_disk):
    mine = copied(exported, "Label Studio COCO", tmp_path)

    def change(content):
        for each in content["images"]:
            name = each["file_name"].rpartition("\\")[2]
            (mine / "images" / name).rename(mine / "images" / on_disk.format(name))
            each["file_name"] = written.format(name)

    changed(mine / "result.json", change)
    assert len(set(files(read(DataSource(mine))))) == 12


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ("../outside.png", "outside.png"),
        ("/etc/passwd", "passwd"),
        ("../../label-studio/data/upload/1/a.jpg", "a.jpg"),
        ("/data/local-files/?d=photos/a.jpg", "a.jpg"),
        ("/data/upload/1/a.jpg?token=b/c", "a.jpg"),
    ],
)
def test_a_file_name_does_not_lead_out_of_the_folder(exported, tmp_path, written, named):
    """The image is missing, whatever lies at a path of another machine."""
    mine = copied(exported, "Label Studio COCO", tmp_path)
    shutil.copy(next((mine / "images").iterdir()), tmp_path / "outside.png")
    changed(mine / "result.json", lambda content: content["images"][0].update(file_name=written))
    part = read(DataSource(mine)).parts["train"]
    names = [each["file_name"] for each in part.content["images"]]
    assert [name for name in names if not (part.images / name).is_file()] == [named]
    changed(mine / "result.json", lambda content: content["images"][0].update(file_name="/.."))
    with pytest.raises(KitError, match="is not a plain file name or path inside the folder"):
        read(DataSource(mine))


def test_roboflows_single_class_has_the_name_of_the_one_above(exported, tmp_path):
    mine = copied(exported, "Roboflow COCO", tmp_path)

    def change(content):
        content["categories"] = [
            {"id": 0, "name": "disc", "supercategory": "none"},
            {"id": 1, "name": "disc", "supercategory": "disc"},
        ]
        for each in content["annotations"]:
            each["category_id"] = 1

    for part in ("train", "valid"):
        changed(mine / part / "_annotations.coco.json", change)
    data = read(DataSource(mine))
    assert data.classes == {1: "disc"}
    assert data.line().endswith(", 1 class")


def painted(content):
    """Masks as CVAT exports what was painted: run lengths as a list, and crowds."""
    for each in content["annotations"]:
        packed = masks.merge(masks.frPyObjects(each["segmentation"], 128, 128))
        flat = masks.decode(packed).flatten(order="F").tolist()
        runs, last = [0], 0
        for value in flat:
            runs += [0] * (value != last)
            runs[-1] += 1
            last = value
        each["segmentation"] = {"size": [128, 128], "counts": runs}
        each["iscrowd"] = 1


def test_a_mask_that_was_painted_in_cvat_is_an_object(exported, tmp_path, places, capsys):
    mine = copied(exported, "CVAT COCO", tmp_path)
    for path in (mine / "annotations").iterdir():
        changed(path, painted)
    # Of COCO itself, and of whatever does not say that it is of CVAT, a crowd stays one.
    assert all(each["iscrowd"] for each in read(DataSource(mine)).parts["train"].content["annotations"])
    assert cli.main(["data", "check", str(mine)]) == 0
    assert "crowds (iscrowd 1), which are not trained on: " in capsys.readouterr().out
    for path in (mine / "annotations").iterdir():
        changed(path, lambda c: [each.update(attributes={"occluded": False}) for each in c["annotations"]])
    data = read(DataSource(mine))
    assert not any(each["iscrowd"] for each in data.parts["train"].content["annotations"])
    assert data.parts["train"].content["annotations"][0]["segmentation"]["size"] == [128, 128]


@pytest.mark.parametrize("place", ["images", ".", "{}"])
def test_cvats_images_lie_where_people_put_them(exported, tmp_path, place):
    mine = copied(exported, "CVAT COCO", tmp_path)
    for part in ("Train", "Validation"):
        for path in list((mine / "images" / part).iterdir()):
            target = mine / place.format(part) / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        (mine / "images" / part).rmdir()
    if place != "images":
        (mine / "images").rmdir()
    assert len(files(read(DataSource(mine)))) == 18


@pytest.mark.parametrize("place", ["annotations", "."])
def test_the_annotations_of_a_part_may_have_its_name_alone(exported, tmp_path, place):
    """As many scripts write them; what else lies there is not of objects."""
    mine = copied(exported, "CVAT COCO", tmp_path)
    for name, short in (("Train", "train"), ("Validation", "val")):
        (mine / "annotations" / f"instances_{name}.json").rename(mine / place / f"{short}.json")
        (mine / "images" / name).rename(mine / "images" / short)
        (mine / place / f"captions_{short}.json").write_text("{}")
    data = read(DataSource(mine))
    assert data.line() == "CVAT COCO: 12 train, 6 val images, 6 classes"
    assert len(files(data)) == 18


def test_where_images_are_looked_for_is_said(exported, tmp_path, places, capsys):
    mine = copied(exported, "CVAT COCO", tmp_path)
    shutil.rmtree(mine / "images")
    assert cli.main(["data", "check", str(mine)]) == 2
    assert (
        f"none of its 18 annotated images can be read in {mine}; put them there, or into images/"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("renamed", "changes"),
    [
        ("data.yml", {}),
        ("dataset.yaml", {}),
        ("data.yaml", {"valid": "images/val", "val": None}),
        ("data.yaml", {"validation": "images/val", "val": None}),
        ("data.yaml", {"names": {str(number): name for number, name in enumerate("abcdef")}}),
        ("data.yaml", {"train": "train.txt"}),
        ("data.yaml", {"names": None, "nc": 6}),
        ("mine.yaml", {}),
    ],
)
def test_what_tools_write_into_data_yaml(exported, tmp_path, renamed, changes):
    mine = copied(exported, "YOLO segmentation", tmp_path)
    # As Colab leaves it, and CVAT.
    names = sorted(path.name for path in (mine / "images" / "train").iterdir())
    (mine / "train.txt").write_text("".join(f"/content/data/images/train/{name}\n" for name in names))
    (mine / "images" / "train" / f"._{names[0]}").write_bytes(b"\0\5\x16\7")  # as macOS packs it
    values = yaml.safe_load((mine / "data.yaml").read_text()) | changes
    (mine / "data.yaml").unlink()
    (mine / renamed).write_text(yaml.safe_dump({k: v for k, v in values.items() if v}))
    data = read(DataSource(mine))
    assert {part: len(each.content["images"]) for part, each in data.parts.items()} == {
        "train": 12,
        "val": 6,
    }
    assert len(files(data)) == 18
    assert len(data.classes) == 6


@pytest.mark.parametrize(
    "entry",
    [
        "My-Project-1/{}/images",
        "/content/My-Project-1/{}/images",
        "..\\{}\\images",
        "C:\\Users\\me\\My-Project-1\\{}\\images",
        "../My-Project-1/{}/images",
        "./{}/images",
    ],
)
def test_roboflows_package_writes_where_it_was_called(exported, tmp_path, entry):
    source = copied(exported, "YOLO segmentation", tmp_path)
    mine = tmp_path / "My-Project-1"
    for kind in ("images", "labels"):
        for part, name in (("train", "train"), ("val", "valid")):
            shutil.copytree(source / kind / part, mine / name / kind)
    values = yaml.safe_load((source / "data.yaml").read_text())
    values = {"names": values["names"], "train": entry.format("train"), "val": entry.format("valid")}
    (mine / "data.yaml").write_text(yaml.safe_dump(values))
    data = read(DataSource(mine))
    assert data.line() == "YOLO segmentation: 12 train, 6 val images, 6 classes"
    assert len(set(files(data))) == 18
    for lost in ("/elsewhere/images", "/etc/passwd"):  # one part alone is no end to go by
        (mine / "images").mkdir(exist_ok=True)
        (mine / "passwd").touch()
        (mine / "data.yaml").write_text(yaml.safe_dump({**values, "val": lost}))
        with pytest.raises(KitError, match=r"there is nothing at|neither a folder of images nor"):
            read(DataSource(mine))


def test_a_yaml_of_any_name_lies_beside_roboflows_folders(exported, tmp_path):
    source = copied(exported, "YOLO segmentation", tmp_path)
    mine = tmp_path / "roboflow"
    for kind in ("images", "labels"):
        for part, name in (("train", "train"), ("val", "valid")):
            shutil.copytree(source / kind / part, mine / name / kind)
    (mine / "discs.yaml").write_text("train: ../train/images\nval: ../valid/images\nnc: 6\n")
    data = read(DataSource(mine))
    assert data.line() == "YOLO segmentation: 12 train, 6 val images, 6 classes"
    assert list(data.classes.values()) == [f"class_{number}" for number in range(6)]  # as Ultralytics
    (mine / "other.yaml").write_text("")
    with pytest.raises(
        KitError, match=r"if discs.yaml describes a YOLO data set, name .*discs.yaml itself"
    ):
        read(DataSource(mine))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("annotations.xml", "is of CVAT's own format; export the task again, as COCO 1.0"),
        ("obj.data", "is of CVAT's YOLO 1.1; export the task again, as COCO 1.0"),
        ("labels", "without a data.yaml or a classes.txt, which names the classes"),
    ],
)
def test_what_is_not_enough_is_named(tmp_path, name, said):
    (tmp_path / "images").mkdir()
    (tmp_path / name).mkdir()
    with pytest.raises(KitError, match=said):
        read(DataSource(tmp_path))


def test_label_studios_yolo_has_its_classes_in_a_text_file(exported, tmp_path):
    source = copied(exported, "YOLO segmentation", tmp_path)
    mine = tmp_path / "export"
    for kind in ("images", "labels"):
        shutil.copytree(source / kind / "train", mine / kind)
    (mine / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    data = read(DataSource(mine))
    assert list(data.classes.values()) == list("abcdef")
    assert len(files(data)) == 12
    assert data.parts["train"].content["annotations"]


def test_a_size_that_an_export_lacks_is_that_of_the_file(exported, tmp_path, capsys):
    """Label Studio without images writes null for tasks that nobody has annotated."""
    mine = copied(exported, "Label Studio COCO", tmp_path)
    unsized = {"width": None, "height": None}

    def change(content):
        content["images"][0].update(unsized)
        first = content["images"][1]["id"]
        content["annotations"] = [each for each in content["annotations"] if each["image_id"] != first]
        content["images"][1].update(unsized)
        content["images"].append({"id": 900, "file_name": "/data/upload/1/lost.jpg", **unsized})

    changed(mine / "result.json", change)
    data = read(DataSource(mine))
    assert {(i["width"], i["height"]) for i in data.parts["train"].content["images"]} == {(128, 128)}
    assert len(files(data)) == 12
    said = "data: result.json: 1 of 13 images have no size, file or annotation and are left out"
    assert capsys.readouterr().out == f"{said}\n"
    changed(mine / "result.json", lambda content: content["annotations"][0].update(image_id=900))
    with pytest.raises(KitError, match="image 900 has the width None, expected pixels"):
        read(DataSource(mine))


def test_brush_labels_to_coco_have_a_file_of_another_name(exported, tmp_path):
    """Label Studio's second export in COCO's format: plain names, and the tool's own path beside each."""
    mine = copied(exported, "Label Studio COCO", tmp_path)
    path = (mine / "result.json").rename(mine / "result_coco.json")

    def change(content):
        for each in content["images"]:
            name = each["file_name"].rpartition("\\")[2]
            each.update(file_name=name, path=f"/data/upload/1/{name}")
        for each in content["categories"]:
            each.update(supercategory="", color="#a1b2c3", metadata={})

    changed(path, change)
    data = read(DataSource(mine))
    assert data.line() == "Label Studio COCO: 12 train images, 6 classes"
    assert len(set(files(data))) == 12


def test_what_is_packed_or_one_folder_deeper_is_said(exported, tmp_path):
    mine = tmp_path / "My project"
    shutil.copytree(exported["Roboflow COCO"], mine / "export 1")
    with pytest.raises(
        KitError, match=f"holds export 1/: name {mine}/export 1, which is in one; known are"
    ):
        read(DataSource(mine))
    packed = tmp_path / "downloads" / "export.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w"):
        pass
    for folder, said in (
        (packed, "it is an archive: unpack it"),
        (packed.parent, "unpack export.zip first"),
    ):
        with pytest.raises(KitError, match=said):
            read(DataSource(folder))


def test_an_evaluation_has_the_models_classes(exported):
    """Their order and number are those of the model, by their names, whatever the export's are."""
    source = DataSource(exported["Label Studio COCO"])
    own = read(source)
    names = [*reversed(own.classes.values()), "zebra"]
    data = read(source, "val", names)
    assert list(data.classes.values()) == names
    annotations = own.parts["train"].content["annotations"]
    as_the_model = data.parts["val"].content["annotations"]
    for one, other in zip(annotations, as_the_model, strict=True):
        assert own.classes[one["category_id"]] == data.classes[other["category_id"]]
    with pytest.raises(KitError, match=r"has the class '[a-z ]+', which is none of the model's"):
        read(source, "val", names[1:])


def test_scanned_images_can_be_pretrained_on(exported, tmp_path):
    for name in ("a.tif", "b.TIFF"):
        shutil.copy(next(Path(exported["YOLO segmentation"], "images", "train").iterdir()), tmp_path / name)
    assert len(open_images(tmp_path)) == 2
