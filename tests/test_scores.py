"""The fast engine against COCO's own, and both against what Detectron2 does with the latter."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks

from benchmarks.detection import compat  # noqa: F401
from triplet import scores

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator

SIDE = 200


def diamond(box):
    """Corners of the diamond in a box."""
    x, y, w, h = box
    return [[x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]]


def runs(box):
    """Its run-length encoding, not compressed, as COCO has crowds."""
    flat = masks.decode(masks.frPyObjects(diamond(box), SIDE, SIDE)[0]).flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": [SIDE, SIDE], "counts": [0, *counts] if flat[0] else counts}


def encoded(box):
    one = masks.frPyObjects(diamond(box), SIDE, SIDE)[0]
    return {"size": one["size"], "counts": one["counts"].decode()}


def world(seed, images, crowds, detections, people):
    """An annotation file's content and detections near and far from what it annotates.

    Scores have one digit, so many are equal; the last category has no annotation, some images neither.
    """
    rng = np.random.default_rng(seed)
    ids = [1] if people else sorted(int(i) for i in rng.choice(90, 4, replace=False) + 1)
    numbers = [int(i) for i in rng.choice(999, images, replace=False)]
    annotations, found = [], []

    def box():
        w, h = rng.uniform(1, rng.choice([20, 60, 150]), 2)
        return [float(v) for v in (rng.uniform(0, SIDE - w), rng.uniform(0, SIDE - h), w, h)]

    def points(box, certain):
        x, y, w, h = box
        seen = np.ones(17) if certain else rng.integers(0, 3, 17)
        at = np.stack([x + w * rng.random(17), y + h * rng.random(17)], 1) * (seen > 0)[:, None]
        return np.concatenate([at, seen[:, None]], 1).flatten().tolist()

    def detect(number, category, box, like=None):
        each = {"image_id": number, "category_id": category, "bbox": box, "segmentation": encoded(box)}
        each["score"] = round(float(rng.random()), 1)
        if people:
            moved = np.array(like or points(box, True)) + rng.normal(0, 3, 51) * np.tile([1, 1, 0], 17)
            each["keypoints"] = moved.tolist()
        found.append(each)

    for number in numbers:
        for _ in range(int(rng.integers(0, 8))):
            crowd = int(rng.random() < crowds)
            one = {"id": len(annotations) + 1, "image_id": number, "iscrowd": crowd, "bbox": box()}
            one["category_id"] = ids[int(rng.integers(max(1, len(ids) - 1)))]
            one["area"] = one["bbox"][2] * one["bbox"][3] * float(rng.uniform(0.3, 1))
            one["segmentation"] = (runs if crowd else diamond)(one["bbox"])
            if people:
                one["keypoints"] = points(one["bbox"], False)
                one["num_keypoints"] = sum(v > 0 for v in one["keypoints"][2::3])
            annotations.append(one)
            for _ in range(int(rng.integers(0, 3))):
                moved = np.array(one["bbox"]) + rng.normal(0, rng.choice([0, 2, 8]), 4)
                detect(number, one["category_id"], np.maximum(moved, 0.5).tolist(), one.get("keypoints"))
        for _ in range(int(rng.integers(0, detections + 1))):
            detect(number, ids[int(rng.integers(len(ids)))] if rng.random() < 0.4 else ids[0], box())
    more = {"keypoints": [str(i) for i in range(17)], "skeleton": []} if people else {}
    return {
        "images": [{"id": n, "width": SIDE, "height": SIDE, "file_name": f"{n}.jpg"} for n in numbers],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"name {i}", **more} for i in ids],
    }, found


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("truth") / "truth.json"


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 5),
    crowds=st.sampled_from([0, 0.3, 1]),
    detections=st.sampled_from([0, 5, 160]),
    people=st.booleans(),
)
def test_both_engines_find_the_same_numbers(file, seed, images, crowds, detections, people):
    content, found = world(seed, images, crowds, detections, people)
    file.write_text(json.dumps(content))
    if not found or not content["annotations"]:
        return
    before = json.dumps(found)
    truths = {engine: scores.CocoGroundTruth(file, engine) for engine in scores.ENGINES}
    for task in ("bbox", "keypoints") if people else ("bbox", "segm"):
        one, other = (asdict(truth.score(found, task)) for truth in truths.values())
        assert len(one["numbers"]) == (10 if task == "keypoints" else 12)
        assert one == other
    assert json.dumps(found) == before


@pytest.mark.parametrize("people", [False, True])
def test_they_are_detectron2s(file, people):
    content, found = world(3, 6, 0.2, 300, people)
    assert max(sum(d["image_id"] == i["id"] for d in found) for i in content["images"]) > 100
    file.write_text(json.dumps(content))
    register_coco_instances(f"scores {people}", {}, str(file), "")
    tasks = ("bbox", "keypoints") if people else ("bbox", "segm")
    evaluator = COCOEvaluator(f"scores {people}", tasks, False, use_fast_impl=False)
    ids = [each["id"] for each in content["categories"]]
    MetadataCatalog.get(f"scores {people}").set(
        thing_dataset_id_to_contiguous_id={theirs: ours for ours, theirs in enumerate(ids)},
        thing_classes=[each["name"] for each in content["categories"]],
    )
    evaluator.reset()
    instances = [{**each, "category_id": ids.index(each["category_id"])} for each in found]
    evaluator._predictions = [{"image_id": 0, "instances": instances}]
    expected = evaluator.evaluate()
    for task in tasks:
        ours = scores.CocoGroundTruth(file).score(found, task)
        assert 0 < ours.numbers["AP"] < 100
        theirs = {k: None if np.isnan(v) else v for k, v in expected[task].items()}
        by_category = {f"AP-{name}": value for name, value in ours.categories.items()}
        mine = ours.numbers | (by_category if len(ids) > 1 else {})
        assert {key: mine[key] for key in theirs} == theirs
