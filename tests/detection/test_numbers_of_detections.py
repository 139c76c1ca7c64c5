"""From detections to numbers: the file's own ids of categories, and none for no number."""

import json
import math
from types import SimpleNamespace

import pytest

from benchmarks.detection import evaluate
from triplet.records import Job

from detectron2.data import MetadataCatalog

IDS = {17: 0, 3: 1, 90: 2}
"""The file's id -> the model's number; neither in the order of the other."""


@pytest.fixture
def truth(tmp_path):
    """Two images with objects of two categories; the third category is annotated nowhere."""
    boxes = [(1, 17, [10, 10, 40, 30]), (1, 3, [60, 20, 30, 50]), (2, 17, [5, 5, 80, 70])]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
        for n, (i, c, b) in enumerate(boxes, 1)
    ]
    categories = [{"id": 3, "name": "three"}, {"id": 17, "name": "seventeen"}, {"id": 90, "name": "ninety"}]
    images = [{"id": i, "width": 100, "height": 100} for i in (1, 2)]
    path = tmp_path / "truth.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    name = f"numbers {tmp_path}"
    MetadataCatalog.get(name).set(thing_dataset_id_to_contiguous_id=IDS, json_file=str(path))
    yield name, boxes
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("images", "categories"),
    [({}, {}), ({1: "one", 2: "two"}, {}), ({}, {17: 2, 3: 1}), ({1: 17, 2: 3}, {17: 2, 3: 1})],
)
def test_coco_is_told_the_ids_of_its_own_file(truth, tmp_path, images, categories):
    """All of the first category is found, of the second nothing: its box lies elsewhere. The predictions
    have the ids that the user's file had before they were changed for Detectron2."""
    name, boxes = truth
    MetadataCatalog.get(name).set(image_ids=images, category_ids=categories)
    given = [
        {"image_id": i, "category_id": IDS[c], "bbox": b if c == 17 else [0, 90, 5, 5], "score": 0.9}
        for i, c, b in boxes
    ]
    before = json.dumps(given)
    job = Job(tmp_path)
    cfg = SimpleNamespace(MODEL=SimpleNamespace(MASK_ON=False, KEYPOINT_ON=False))
    found = evaluate._coco(cfg, name, given, "ultrafast", job)
    assert list(found) == ["bbox", "categories"]
    assert found["categories"] == {"bbox": {"three": 0.0, "seventeen": pytest.approx(100), "ninety": None}}
    assert found["bbox"]["AP"] == found["bbox"]["AP50"] == pytest.approx(50)
    assert found["bbox"]["APs"] is None, "no object is small"
    predictions = json.loads(job.outputs["predictions"].read_text())
    assert [(each["image_id"], each["category_id"]) for each in predictions] == [
        (images.get(i, i), categories.get(c, c)) for i, c, _ in boxes
    ]
    analysed = json.loads(job.outputs["analysis"].read_text())["bbox"]
    assert analysed["categories"] == ["three", "seventeen", "ninety"]
    assert analysed["by_size"]["all"] == [0.0, pytest.approx(100), None]
    assert json.dumps(given) == before


def test_a_number_of_voc_that_is_none_is_none():
    summary = {"bbox": {"AP": 41.25, "AP50": 70.5, "AP75": math.nan}}
    assert evaluate._voc(summary) == {"bbox": {"AP": 41.25, "AP50": 70.5, "AP75": None}}
