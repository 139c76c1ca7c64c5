"""Detections of others: none reaches an engine in a form that it would misread or not survive."""

import contextlib
import copy
import json
import random
import re

import numpy as np
import pytest
from pycocotools import mask as masks

from tests.annotations.mutations import mutate_json
from triplet import scores
from triplet.annotations.detections import AT_ONCE, check, count_pixels
from triplet.annotations.shapes import decode_counts
from triplet.errors import KitError

SIZES = {3: (40, 30), 8: (25, 50)}
PEOPLE = [1.5, 2.0, 2] * 17


def mask(size, seed=0):
    """A mask of an image of this width and height, as pycocotools compresses it."""
    pixels = np.random.default_rng(seed).random(size[::-1]) < 0.3
    made = masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": [*map(int, made["size"])], "counts": made["counts"].decode()}


@pytest.fixture
def detections():
    return [
        {
            "image_id": image,
            "category_id": 1 + place % 2,
            "score": 0.9 - 0.1 * place,
            "bbox": [1.5, 2.0, 10 + place, 8.5],
            "segmentation": mask(SIZES[image], place),
            "keypoints": PEOPLE,
        }
        for place, image in enumerate((3, 8, 8, 3))
    ]


TASKS = ("bbox", "segm", "keypoints")


@pytest.mark.parametrize("task", TASKS)
def test_what_a_model_finds_is_right(detections, task):
    before = copy.deepcopy(detections)
    check(detections, SIZES, {1, 2}, task)
    assert detections == before
    if task != "segm":  # a box may be flat, and begin outside of its image
        detections[1]["bbox"] = [-3, -2.5, 0, 0.0]
        check(detections, SIZES, {1, 2}, task)


def test_the_last_mask_beyond_a_full_batch_is_checked(detections):
    detections[1]["segmentation"]["counts"] = compressed(1250)
    many = [detections[1]] * AT_ONCE + [detections[2]]
    check(many, SIZES, {1, 2}, "segm")
    many[-1]["segmentation"]["counts"] = compressed(1, 2)
    with pytest.raises(KitError, match=rf"detections\[{AT_ONCE}\] has a mask of 3 pixels, expected 1250"):
        check(many, SIZES, {1, 2}, "segm")


def compressed(*values):
    """Runs as COCO's rleToString writes them, five bits a character, whatever they are."""
    said = ""
    for value in values:
        more = True
        while more:
            low, value = value & 31, value >> 5
            more = value != (-1 if low & 16 else 0)
            said += chr(48 + low + 32 * more)
    return said


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("bbox", "image_id", 4, "detections[2] has the image_id 4, not annotated"),
        ("segm", "image_id", True, "detections[2] has the image_id True, not annotated"),
        ("bbox", "image_id", [3], "detections[2] has the image_id [3], not annotated"),
        ("keypoints", "category_id", 9, "detections[2] has the category_id 9, not annotated"),
        ("bbox", "category_id", True, "detections[2] has the category_id True, not annotated"),
        ("bbox", "category_id", None, "detections[2] has the category_id None, not annotated"),
        ("segm", "score", float("nan"), "detections[2] has the score nan, expected a number"),
        ("bbox", "score", "0.5", "detections[2] has the score '0.5', expected a number"),
        ("bbox", "score", None, "detections[2] has the score None, expected a number"),
        (
            "bbox",
            "bbox",
            [1, 2, 3],
            "detections[2] has the bbox [1, 2, 3], expected x, y, width and height",
        ),
        ("bbox", "bbox", None, "detections[2] has the bbox None, expected x, y, width and height"),
        ("bbox", "bbox", [1, 2, float("inf"), 4], "detections[2] has the bbox [1, 2, inf, 4], expected x"),
        ("bbox", "bbox", [1, 2, 3, -4], "detections[2] has the bbox [1, 2, 3, -4], expected a width and"),
        ("segm", "segmentation", None, "detections[2] has the segmentation None, expected compressed"),
        (
            "segm",
            "segmentation",
            [[1, 2, 3, 4, 5, 6]],
            "detections[2] has the segmentation [[1, 2, 3, 4, ...",
        ),
        ("segm", "segmentation", {"size": [50, 25], "counts": [1250]}, "expected compressed run lengths"),
        (
            "segm",
            "segmentation",
            {"size": [25, 50], "counts": compressed(1250)},
            "detections[2] has a mask of the size [25, 50], expected [50, 25] (height, width)",
        ),
        (
            "segm",
            "segmentation",
            {"size": [50, 25.0], "counts": compressed(1250)},
            "of the size [50, 25.0]",
        ),
        (
            "segm",
            "segmentation",
            {"size": [50, 25], "counts": compressed(1249)},
            "detections[2] has a mask of 1249 pixels, expected 1250",
        ),
        ("segm", "segmentation", {"size": [50, 25], "counts": ""}, "not compressed run lengths: ''"),
        (
            "segm",
            "segmentation",
            {"size": [50, 25], "counts": "o" * 40},
            "not compressed run lengths: 'oooo",
        ),
        ("segm", "segmentation", {"size": [50, 25], "counts": "caf\xe9"}, "not compressed run lengths"),
        # A negative run between others that add up: an engine would write in front of its memory.
        (
            "segm",
            "segmentation",
            {"size": [50, 25], "counts": compressed(1300, -50)},
            "detections[2] has counts that are not compressed run lengths",
        ),
        ("keypoints", "bbox", None, "detections[2] has the bbox None, expected x, y, width and"),
        ("keypoints", "bbox", [1, 2, 3], "detections[2] has the bbox [1, 2, 3], expected x, y, width and"),
        ("keypoints", "keypoints", PEOPLE[:-3], "has the keypoints [1.5, 2.0, 2, 1.5, ...], expected 51"),
        ("keypoints", "keypoints", [*PEOPLE[:-1], "2"], "expected 51 numbers, x, y and visibility of 17"),
    ],
)
def test_what_is_wrong_is_named(detections, task, key, value, message):
    detections[2][key] = value
    with pytest.raises(KitError, match=re.escape(message)):
        check(detections, SIZES, {1, 2}, task)
    detections[3][key] = value
    with pytest.raises(KitError, match=r"\(and 1 more\)"):
        check(detections, SIZES, {1, 2}, task)


@pytest.mark.parametrize("value", [None, {}, [], [1], [[]], "x", 0])
def test_what_is_no_list_of_detections_is_refused(value):
    with pytest.raises(KitError, match="expected a list of objects, at least one"):
        check(value, SIZES, {1, 2}, "bbox")


def test_pixels_are_counted_as_run_lengths_are_decoded():
    """All masks at once as each alone, honest ones and changed ones."""
    chance = random.Random(3)
    texts = [mask((chance.randint(1, 30), chance.randint(1, 30)), seed)["counts"] for seed in range(20)]
    for text in chance.choices(texts, k=300):
        changed = [*text]
        place = chance.randrange(len(changed) + 1)
        some = [chr(chance.randrange(40, 120)) for _ in range(chance.randrange(1, 9))]
        changed[place : place + chance.randrange(3)] = chance.choice([some, ["\ud800"], ["\0"], []])
        texts.append("".join(changed))
    for text, found in zip(texts, count_pixels(texts).tolist(), strict=True):
        runs = decode_counts(text)
        assert found == (-1 if runs is None or (runs < 0).any() else runs.sum()), text
    assert count_pixels(texts).max() > 0 > count_pixels(texts).min()
    longest = 2**34 - 1  # of seven characters
    assert count_pixels([compressed(longest), compressed(5), compressed(longest + 1)]).tolist() == [
        longest,
        5,
        -1,
    ]


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """An annotation file of two images, a crowd among its annotations."""
    annotations = [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [1, 2, 10, 8], "area": 80, "iscrowd": 0},
        {"id": 2, "image_id": 8, "category_id": 2, "bbox": [0, 0, 5, 50], "area": 250, "iscrowd": 1},
        {"id": 3, "image_id": 8, "category_id": 2, "bbox": [2, 2, 6, 9], "area": 54, "iscrowd": 0},
    ]
    for each in annotations:
        x, y, w, h = each["bbox"]
        each["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        each |= {"keypoints": PEOPLE, "num_keypoints": 17}
    annotations[1]["segmentation"] = mask(SIZES[8])
    images = [{"id": id, "width": w, "height": h, "file_name": f"{id}"} for id, (w, h) in SIZES.items()]
    path = tmp_path_factory.mktemp("truth") / "truth.json"
    categories = [{"id": id, "name": f"name {id}"} for id in (1, 2)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize("engine", scores.ENGINES)
def test_an_engine_takes_what_the_check_takes(truth, detections, engine, capfd):
    """Whatever is changed: a result, or one line."""
    judge, chance, taken = scores.CocoGroundTruth(truth, engine), random.Random(7), 0
    for task in TASKS:
        judge.score(detections, task)
    for number in range(150):
        changed = mutate_json(detections, chance)
        with contextlib.suppress(KitError):
            judge.score(changed, TASKS[number % 3])
            taken += 1
    assert 10 < taken < 140


def test_truth_that_an_engine_would_misread_is_refused(truth, tmp_path):
    content = json.loads(truth.read_text())
    content["annotations"][1]["segmentation"]["counts"] = compressed(1300, -50)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    with pytest.raises(KitError, match="annotation 2 has a run-length mask"):
        scores.CocoGroundTruth(path)


@pytest.mark.parametrize("engine", scores.ENGINES)
def test_half_a_character_that_nobody_reads_is_no_matter(truth, detections, tmp_path, engine):
    content = json.loads(truth.read_text())
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({**content, "info": {"description": "half \ud800"}}))
    for task in TASKS:
        expected = scores.CocoGroundTruth(truth, engine).score(detections, task)
        assert scores.CocoGroundTruth(path, engine).score(detections, task) == expected
