"""The page of ``triplet data check`` from objects at every bound, on images that are no squares."""

from pathlib import Path

import pytest

from triplet.datasets import check
from triplet.datasets.check import LookedAt, facts
from triplet.datasets.parts import AnnotatedPart
from triplet.datasets.source import OwnData


def page(parts, classes=("cat", "dog")):
    """The lines by their words, of (size, boxes with a class) by part."""
    images, made = [], {}
    for part, listed in parts.items():
        objects = [[{"bbox": box, "category_id": id} for *box, id in boxes] for _, boxes in listed]
        images += [
            LookedAt(part, Path(f"{part}{i}"), f"{part}{i}", size, objects[i], size)
            for i, (size, _) in enumerate(listed)
        ]
        content = {
            "images": [None] * len(listed),
            "annotations": [each for some in objects for each in some],
            "categories": [{"id": 3 + i, "name": name} for i, name in enumerate(classes)],
        }
        made[part] = AnnotatedPart(content, Path(), Path())
    found: dict[str, list[str]] = {}
    for word, text in facts(OwnData("COCO", made, {}), images):
        found.setdefault(word, []).append(text)
    return found


def test_sizes_and_boxes_are_those_of_areas():
    """32 x 32 is medium and 96 x 96 is large, as in COCO's evaluation."""
    found = page(
        {
            "train": [
                ((100, 50), [(60, 1, 31, 33, 3), (7, 0, 32, 32, 3), (2, 2, 30, 34, 3)]),
                ((90, 180), [(0, 0, 96, 96, 3), (1, 1, 85, 106, 3)]),
                ((30, 400), [(0, 0, 97, 96, 4)]),
            ]
        }
    )
    assert found["sizes"] == ["from 100 x 50 to 90 x 180, median of the shorter side 50"]
    assert found["objects"] == ["6, 2.0 an image; no masks, boxes alone"]
    assert found["boxes"] == ["2 small (below 32 x 32), 2 medium, 2 large (96 x 96 on)"]


def test_what_is_odd_begins_just_past_its_bound():
    wide, high = (100, 50), (50, 100)
    edges = [(-1, -1, 102, 52, 3), (-1, 0, 4, 30, 3), (0, 0, 30, 4, 3), (97, 20, 4, 31, 3)]
    assert page({"train": [(wide, edges + [(i, 0, 9, 9, 3) for i in range(6)])]}, ["cat"])["odd"] == [
        "nothing"
    ]
    for box, said in (
        ((0, 0, 3.9, 30, 3), "objects with a side below 4 px: 1 (train0)"),
        ((0, 0, 30, 3.9, 3), "objects with a side below 4 px: 1 (train0)"),
        ((-1.5, 0, 30, 30, 3), "boxes that reach out of their image: 1 (train0)"),
        ((0, -1.5, 30, 30, 3), "boxes that reach out of their image: 1 (train0)"),
        ((0, 0, 30, 101.5, 3), "boxes that reach out of their image: 1 (train0)"),
        ((0, 0, 51.5, 30, 3), "boxes that reach out of their image: 1 (train0)"),
    ):
        boxes = [box, *((i, 0, 9, 9, 3) for i in range(9))]
        assert page({"train": [(high, boxes)]}, ["cat"])["odd"] == [said]
    thrice = [(1, 2, 9, 9, 3)] * 3 + [(i, 0, 9, 9, 3) for i in range(7)] + [(1, 2, 9, 9, 4)]
    found = page(
        {"train": [(wide, thrice), (wide, [(1, 2, 9, 9, 4), *((i, 0, 9, 9, 4) for i in range(8))])]}
    )
    assert found["odd"] == ["objects that are annotated twice: 2 (train0, ...)"]


@pytest.mark.parametrize(("most", "said"), [(200, "the most frequent class has 20 times"), (199, None)])
def test_classes_are_counted_in_each_part(most, said):
    train = [(i % 80, i // 80, 9, 9, 4) for i in range(most - 2)] + [(i, 0, 9, 9, 3) for i in range(10)]
    found = page({"train": [((100, 50), train)], "val": [((100, 50), [(0, 0, 9, 9, 4), (1, 0, 9, 9, 4)])]})
    assert found["classes"] == [f"dog {most - 2} + 2, cat 10 + 0 (train + val)"]
    odd = ["classes without an object in val: 1 (cat)"]
    assert found["odd"] == odd + ([f"{said} the objects of the rarest"] if said else [])
    few = page({"train": [((100, 50), train[:-1])]})["odd"]
    assert "classes with fewer than 10 objects: 1 (cat)" in few


def test_pictures_are_spread_over_the_readable_annotated_images():
    images = [
        LookedAt("train", Path(), f"{i:02}", (9, 9), [{}] * (i != 3), (9, 9) if i % 2 else None)
        for i in range(61)
    ]
    shown = [int(each.name) for each in check._chosen(images)]
    assert shown == [1, 7, 11, 17, 21, 27, 31, 35, 41, 45, 51, 55]
