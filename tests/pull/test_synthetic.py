import json
import math

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from tests.conftest import TINY
from triplet.pull.synthetic import CLASSES, SIDE, draw_dataset, draw_image


def test_the_data_set_is_cocos_layout(drawn):
    for split, count in (("train2017", TINY.train), ("val2017", TINY.val)):
        coco = COCO(drawn / "annotations" / f"instances_{split}.json")
        assert len(coco.imgs) == count
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        for image in coco.imgs.values():
            with Image.open(drawn / split / image["file_name"]) as file:
                assert file.size == (image["width"], image["height"]) == (SIDE, SIDE)
        for annotation in coco.anns.values():
            mask = coco.annToMask(annotation)
            x, y, w, h = annotation["bbox"]
            assert 0 <= x < x + w <= SIDE
            assert 0 <= y < y + h <= SIDE
            assert mask.sum() == pytest.approx(annotation["area"], rel=0.15)
            rows, columns = np.nonzero(mask)
            assert columns.min() == pytest.approx(x, abs=1.5)
            assert rows.max() + 1 == pytest.approx(y + h, abs=1.5)
    assert len(list((drawn / "unlabelled").iterdir())) == TINY.unlabelled


def test_the_seed_decides_everything(tmp_path):
    config = TINY.model_copy(update={"unlabelled": 2, "train": 2, "val": 1})
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw_dataset(tmp_path / name, config.model_copy(update={"seed": seed}))

    def content(name):
        return [p.read_bytes() for p in sorted((tmp_path / name).rglob("*")) if p.is_file()]

    assert content("a") == content("b") != content("c")


def test_objects_do_not_touch_and_every_class_comes_up():
    seen = set()
    for i in range(60):
        _, shapes = draw_image(np.random.default_rng(i), 4, (13, 26))
        seen |= {s.category for s in shapes}
        for a in range(len(shapes)):
            for b in range(a):
                distance = math.dist(shapes[a].centre, shapes[b].centre)
                assert distance > shapes[a].radius + shapes[b].radius
    assert seen == set(range(len(CLASSES)))


def test_colour_does_not_tell_the_class():
    """The mean colour of an object says nothing: classes differ by less than chance would allow."""
    colours = {c: [] for c in range(len(CLASSES))}
    for i in range(300):
        for shape in draw_image(np.random.default_rng((9, i)), 3, (13, 26))[1]:
            colours[shape.category].append(shape.colours.mean(0))
    means = np.array([np.mean(values, 0) for values in colours.values()])
    spread = np.std(np.concatenate(list(colours.values())), 0)
    error = spread / math.sqrt(min(len(values) for values in colours.values()))
    assert (np.abs(means - means.mean(0)) < 4 * error).all()


def test_annotations_are_plain_json(drawn):
    truth = json.loads((drawn / "annotations" / "instances_val2017.json").read_text())
    assert {"images", "annotations", "categories", "info", "licenses"} == truth.keys()
