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


ROUGH = (130, 110)
"""Width and height of an image of the rough world."""


def rough_world(seed, crowds, detections):
    """The same of masks of any kind: none, all, noise, bars, and squares at the borders of COCO's sizes.

    What is detected is annotated, a little more or less than that, or anything.
    """
    rng = np.random.default_rng(seed)
    width, height = ROUGH
    images = [{"id": n, "width": width, "height": height, "file_name": f"{n}.jpg"} for n in (9, 3, 5)]
    annotations, found = [], []

    def draw():
        one = np.zeros((height, width), np.uint8, order="F")
        kind, side = rng.integers(6), int(rng.choice([1, 31, 32, 33, 95, 96, 97]))
        x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        if kind == 0:
            one[:] = rng.random(one.shape) < rng.random()
        elif kind == 1:
            one[:, x:] = 1
        elif kind > 2 or rng.random() < 0.5:
            one[y : y + side, x : x + side] = 1
        return one

    def fields(mask):
        one = masks.encode(mask)
        box = [float(v) for v in masks.toBbox(one)]
        return {"bbox": box, "segmentation": {"size": one["size"], "counts": one["counts"].decode()}}

    for image in images:
        for _ in range(int(rng.integers(1, 5))):
            mask, category = draw(), int(rng.choice([2, 7]))
            mask[0, 0] = 1  # an object has a pixel
            one = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category}
            one |= {"iscrowd": int(rng.random() < crowds), "ignore": int(rng.random() < 0.2)}
            area = rng.choice([int(mask.sum()), 32**2, 96**2, 32**2 - 0.5])
            annotations.append({**one, **fields(mask), "area": float(area)})
            for _ in range(int(rng.integers(0, 4))):
                near = np.roll(mask, rng.integers(-2, 3, 2), (0, 1))
                one = {"image_id": image["id"], "category_id": category}
                found.append({**one, **fields(near), "score": float(rng.choice([0.3, 0.5, 0.9]))})
        for _ in range(detections):
            one = {"image_id": image["id"], "category_id": int(rng.choice([2, 2, 7, 8]))}
            found.append({**one, **fields(draw()), "score": float(rng.integers(11)) / 10})
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"name {i}"} for i in (2, 7, 8)],
    }, found
