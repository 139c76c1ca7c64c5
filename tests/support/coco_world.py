"""Annotation files and detections drawn from a seed."""

import numpy as np
from pycocotools import mask as masks

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
