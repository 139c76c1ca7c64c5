"""``triplet data check``: the page says what is in a data set and what is odd, and draws it."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from benchmarks.detection.visualize import draw_sheet
from tests.support import photographs
from triplet import cli
from triplet.annotations.image_files import upright_size
from triplet.datasets import check
from triplet.errors import KitError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """The photographs; not to be changed."""
    folder = tmp_path_factory.mktemp("photos") / "mine"
    photographs.write(folder)
    return folder


def page(capsys, *arguments):
    assert cli.main(["data", "check", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    facts = {}
    for line in lines[1:]:
        word, text = (line[2:12].strip(), line[12:]) if line.startswith("  ") else ("", line)
        facts.setdefault(word, []).append(text)
    return lines[0], facts


def test_photographs_as_cameras_leave_them(photos, places, capsys):
    named = photographs.named(photos)
    first, facts = page(capsys, *named)
    assert first == "data: COCO JSON: 12 train, 3 val images, 4 classes"
    assert facts[""] == ["data: looking at images: 15/15, 0 s left"]
    assert facts["sizes"] == ["from 211 x 141 to 256 x 300, median of the shorter side 189"]
    assert facts["objects"] == ["25, 1.7 an image; each has a mask"]
    assert facts["classes"] == ["flower 8 + 2, building 4 + 1, person 4 + 1, tree 4 + 1 (train + val)"]
    assert facts["odd"] == [
        "images that EXIF turns: 3 (china_turned.jpg, ...)",
        "greyscale images: 3 (china_grey.jpg, ...)",
        "CMYK images, read as RGB: 3 (china_cmyk.jpg, ...)",
        "classes with fewer than 10 objects: 3 (building, ...)",
    ]
    assert facts["picture"] == ["reports/data/train.png, 12 of the images with their annotations"]
    with Image.open(places / "reports" / "data" / "train.png") as picture:
        assert picture.width == 4 * (318 + 4)
        assert len(picture.convert("L").resize((64, 64)).getcolors(5000)) > 50


def test_every_odd_thing_is_named_once(photos, places, capsys):
    folder = places / "mine"
    shutil.copytree(photos / "train", folder / "train")
    shutil.copytree(photos / "val", folder / "valid")
    content = json.loads((photos / "train.json").read_text())
    shutil.copy(folder / "train" / "china_plain.jpg", folder / "train" / "copy.jpg")
    shutil.copy(folder / "valid" / "flower_small.jpg", folder / "train" / "leak.jpg")
    (folder / "train" / "flower_plain.jpg").unlink()
    (folder / "train" / "flower_cmyk.jpg").write_bytes(b"no image")
    size = {"width": 320, "height": 214}
    for number, name in ((100, "copy.jpg"), (101, "leak.jpg")):
        content["images"].append({"id": number, "file_name": name, **size})
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 200},
        {**first, "id": 201, "bbox": [5, 5, 3, 40]},
        {**first, "id": 202, "bbox": [250, 5, 100, 40]},
        *({**first, "id": 300 + i, "bbox": [i, 5, 40, 40], "category_id": 2} for i in range(80)),
    ]
    content["categories"].append({"id": 9, "name": "cow"})
    (folder / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    shutil.copy(photos / "val.json", folder / "valid" / "_annotations.coco.json")
    first, facts = page(capsys, folder, "--picture", places / "p.png")
    assert first == "data: Roboflow COCO: 14 train, 3 val images, 5 classes"
    odd = facts["odd"]
    for line in (
        "images that are missing: 1 (flower_plain.jpg)",
        "images that cannot be read: 1 (flower_cmyk.jpg (UnidentifiedImageError))",
        "images of another size than annotated: 1 (leak.jpg has 211 x 141, annotated as 320 x 214)",
        "images that a part has twice: 1 (copy.jpg)",
        "images of val that are in train, too: 1 (flower_small.jpg)",
        "images without an object: 2 (copy.jpg, ...)",
        "objects with a side below 4 px: 1 (china_plain.jpg)",
        "boxes that reach out of their image: 1 (china_plain.jpg)",
        "objects that are annotated twice: 1 (china_plain.jpg)",
        "classes without an object in train: 1 (cow)",
        "classes without an object in val: 1 (cow)",
    ):
        assert odd.count(line) == 1, (line, odd)
    assert (places / "p.png").is_file()


@pytest.fixture
def plain(photos, places):
    """The photographs in Roboflow's layout, all of which can be read."""
    folder = places / "plain"
    for part, inner in (("train", "train"), ("val", "valid")):
        shutil.copytree(photos / part, folder / inner)
        shutil.copy(photos / f"{part}.json", folder / inner / "_annotations.coco.json")
    return folder


@pytest.mark.parametrize("total", [0, 1000], ids=["headers alone", "decoded"])
@pytest.mark.parametrize("kind", ["cut", "floats", "16 bits"])
def test_images_that_no_training_reads_are_named(plain, capsys, monkeypatch, kind, total):
    """Also where the header of the file is right, and nothing of it is drawn."""
    monkeypatch.setattr(check, "THOROUGH", total)
    path = plain / "train" / "china_plain.jpg"
    with Image.open(path) as image:
        gray = np.asarray(image.convert("L"))
    wide = {"cut": np.uint8, "floats": np.float32, "16 bits": np.uint16}[kind]
    Image.fromarray(gray.astype(wide)).save(path, "PNG" if kind == "cut" else "TIFF")
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-400])
    _, facts = page(capsys, plain)
    line = {
        "cut": "images that cannot be read: 1 (china_plain.jpg (OSError))",
        "floats": "images that cannot be read: 1 (china_plain.jpg (has pixels of mode F (32 bits), "
        "expected 8 or 16 bits; convert it))",
        "16 bits": "images with pixels of 16 bits, scaled to 8: 1 (china_plain.jpg)",
    }[kind]
    assert line in facts["odd"]


def test_an_image_that_fails_only_while_it_is_drawn_is_left_out(plain, capsys, monkeypatch):
    """Among so many that their headers and last bytes alone were looked at."""
    monkeypatch.setattr(check, "THOROUGH", 0)
    monkeypatch.setattr(check, "SHOWN", 15)
    path = plain / "train" / "china_plain.jpg"
    Image.open(path).save(path, "PNG")
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes(1000) + content[2000:])
    _, facts = page(capsys, plain)
    assert facts["picture"] == ["reports/data/plain.png, 14 of the images with their annotations"]


def test_bad_data_is_one_line(places, capsys):
    (places / "empty").mkdir()
    for arguments, message in (
        (
            ["data", "check", str(places / "empty")],
            "empty is in no layout that is known: it holds nothing;",
        ),
        (["data", "check", "a", "b"], "found check a b, expected one folder: triplet data PATH"),
        (["data", "--train", "/nonexistent.json"], "nothing at /nonexistent.json"),
        (["data", "--data", "x", "--train", "y"], "data is named by a folder (--data), or by its files"),
    ):
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_a_picture_of_odd_images_takes_little(tmp_path):
    """A strip of a few pixels is no picture of a gigabyte, and not each of a thousand objects is drawn."""
    for name, size in (("wide", (9000, 1)), ("high", (2, 9000))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    high = tmp_path / "high.png"
    short = {"bbox": [0, 0, 1, 9], "category_id": 0, "segmentation": [[], [0, 0]]}
    each = {"bbox": [0, 0, 1, 9], "category_id": 0, "segmentation": [[0, 0, 1, 0, 1, 9, 0, 9]]}
    draw_sheet([(high, [short, *[each] * 20_000]), (tmp_path / "wide.png", [])], ["a"], tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (4 * 322, 4 * 318 + 4)


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(KitError, match=r"pipe.jpg cannot be read \(OSError: it is not a file\)"):
        upright_size(tmp_path / "pipe.jpg")
