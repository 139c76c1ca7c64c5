"""What a row of a YOLO label file becomes, on an image that is no square: counted by hand."""

import pytest
import yaml
from PIL import Image

from triplet.datasets import yolo
from triplet.errors import KitError


def dataset(folder, labels, **changes):
    """Images of 200 x 100 pixels with these label files, and their YAML; the parts that are found."""
    for name, text in labels.items():
        for kind in ("images", "labels"):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 100)).save(folder / "images" / f"{name}.png")
        if text is not None:
            (folder / "labels" / f"{name}.txt").write_text(text)
    values = {"train": "images", "names": {7: "dog", 4: 12}, **changes}
    (folder / "data.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return yolo.find(folder)


def test_rows_are_shares_of_the_images_sides(tmp_path):
    rows = (
        "4 0.1 0.2 0.5 0.2 0.5 0.7\n\n7 0.5 0.7 0.5 0.2 0.1 0.2\n"
        "7 0.5 0.25 0.2 0.1\n4 -0.005 0 1.005 0 1 1\n"
    )
    parts = dataset(tmp_path, {"b": rows, "a": "7 0.5 0.5 1 1\n", "c": None})
    content = yolo.read(parts["all"]).content
    assert content["categories"] == [{"id": 4, "name": "12"}, {"id": 7, "name": "dog"}]
    named = [(each["id"], each["file_name"]) for each in content["images"]]
    assert named == [(1, "a.png"), (2, "b.png"), (3, "c.png")]
    assert {(each["width"], each["height"]) for each in content["images"]} == {(200, 100)}
    found = [
        (each["image_id"], each["category_id"], [round(v, 6) for v in each["bbox"]], round(each["area"], 6))
        for each in content["annotations"]
    ]
    assert found == [
        (1, 7, [0, 0, 200, 100], 20_000),
        (2, 4, [20, 20, 80, 50], 2000),
        (2, 7, [20, 20, 80, 50], 2000),
        (2, 7, [80, 20, 40, 10], 400),
        (2, 4, [-1, 0, 202, 100], 10_100),
    ]
    assert content["annotations"][1]["segmentation"] == [pytest.approx([20, 20, 100, 20, 100, 70])]
    assert [each["id"] for each in content["annotations"]] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("4 0.1 0.1 0.2 0.1 0.2 0.2 0.3", "line 2: 8 columns"),
        ("4 0.1 0.1 0.2 0.1 0.2", "line 2: 6 columns"),
        ("4 0.1 0.1 0.2 0.1 -0.011 0.2", "line 2: coordinates that are not normalised"),
        ("4 0.1 0.1 0.2 0.1 1.011 0.2", "line 2: coordinates that are not normalised"),
        ("5 0.1 0.1 0.2 0.1", "line 2: class 5 is none of the 2 names"),
        ("1 0.1 0.1 0.2 0.1", "line 2: class 1 is none of the 2 names"),
    ],
)
def test_a_row_that_is_none_is_refused(tmp_path, row, message):
    with pytest.raises(KitError, match=f"a.txt, {message}"):
        yolo.read(dataset(tmp_path, {"a": f"4 0.5 0.5 0.1 0.1\n{row}"})["all"])


def test_the_last_folder_of_images_has_the_labels_beside_it(tmp_path):
    """And a list names files beside itself; the path of the YAML goes before its own folder."""
    folder = tmp_path / "images" / "mine"
    parts = dataset(folder, {"images/x": "4 0.5 0.5 0.1 0.1", "y": "4 0.5 0.5 0.2 0.2"}, names=[*"abcde"])
    (folder / "labels" / "images").rename(folder / "images" / "labels")
    (part,) = parts.values()
    areas = [each["area"] for each in yolo.read(part).content["annotations"]]
    assert areas == pytest.approx([200, 800])
    (folder / "lists").mkdir()
    (folder / "lists" / "some.txt").write_text("../images/y.png\n\n../images/images/x.png\n")
    (folder / "some.txt").write_text("images/y.png\n")
    listed = {"path": "lists", "train": "some.txt", "val": ["some.txt"]}
    for name in ("data.yaml", "mine.yml"):
        (folder / name).write_text(yaml.safe_dump({**listed, "names": {4: "a"}}))
        found = yolo.find(folder if name == "data.yaml" else folder / name)
        assert [each["area"] for each in yolo.read(found["val"]).content["annotations"]] == areas
    assert yolo.find(folder / "some.txt") == {}
