"""Files for other tools from two images that are no squares: every number counted by hand."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from pycocotools import mask as masks

from benchmarks.detection import predictions
from benchmarks.detection.predict import PredictOptions, _Task

IMAGES = [
    {"id": 1, "file_name": "a b/ü.jpg", "width": 40, "height": 25},
    {"id": 2, "file_name": "c.jpg", "width": 50, "height": 80},
    {"id": 3, "file_name": "none.jpg", "width": 8, "height": 9},
]
CATEGORIES = [{"id": 5, "name": 'cat "<&>"'}, {"id": 9, "name": "dog"}]
BOX = {"image_id": 2, "category_id": 9, "bbox": [5.0, 20.0, 10.0, 36.0], "score": 0.25}


def rle():
    """Two rectangles of 8 x 4 and 5 x 10 pixels, the second with a hole of 2."""
    mask = np.zeros((25, 40), np.uint8, order="F")
    mask[2:6, 30:38] = 1
    mask[10:20, 4:9] = 1
    mask[12, 5:7] = 0
    made = masks.encode(mask)
    return {"size": made["size"], "counts": made["counts"].decode()}


@pytest.fixture
def detections():
    masked = {"image_id": 1, "category_id": 5, "bbox": [4.0, 2.0, 34.0, 18.0], "segmentation": rle()}
    first = {**BOX, "category_id": 5, "score": 0.75, "bbox": [0.0, 0.0, 50.0, 8.0]}
    return [{**masked, "score": 0.5}, BOX, first]


@pytest.fixture
def written(tmp_path, detections):
    files = predictions.write_all(tmp_path, IMAGES, detections, CATEGORIES)
    assert {path.name for path in files.values()} == {path.name for path in tmp_path.iterdir()}
    return {name: json.loads(path.read_text()) for name, path in files.items() if path.suffix == ".json"}


def corners(outline):
    return {*zip(outline[::2], outline[1::2], strict=True)}


def test_coco_and_cvat_have_every_detection_as_it_is(written, detections):
    assert written["results"] == detections
    assert written["images"] == {"images": IMAGES, "categories": CATEGORIES, "annotations": []}
    cvat = written["cvat"]
    assert (cvat["images"], [each["id"] for each in cvat["categories"]]) == (IMAGES, [5, 9])
    assert [each["id"] for each in cvat["annotations"]] == [1, 2, 3]
    for found, given in zip(cvat["annotations"], detections, strict=True):
        assert {**found, **{key: given[key] for key in BOX}} == found
    assert [each["area"] for each in cvat["annotations"]] == [80, 360, 400]
    large, small = cvat["annotations"][0]["segmentation"]
    assert corners(large) == {(4, 10), (9, 10), (9, 20), (4, 20)}
    assert corners(small) == {(30, 2), (38, 2), (38, 6), (30, 6)}
    assert cvat["annotations"][1]["segmentation"] == []


def test_label_studio_counts_in_percent_of_each_side(written):
    tasks = written["label_studio"]
    assert [task["data"]["image"].partition("?d=")[2] for task in tasks] == [
        "a%20b/%C3%BC.jpg",
        "c.jpg",
        "none.jpg",
    ]
    (masked,), (boxes,), (none,) = (task["predictions"] for task in tasks)
    assert [each["score"] for each in (masked, boxes, none)] == [0.5, 0.75, 0]
    large, small = masked["result"]
    assert {*map(tuple, large["value"]["points"])} == {(10, 40), (22.5, 40), (22.5, 80), (10, 80)}
    assert {*map(tuple, small["value"]["points"])} == {(75, 8), (95, 8), (95, 24), (75, 24)}
    assert large["value"]["polygonlabels"] == ['cat "<&>"']
    second, first = (each["value"] for each in boxes["result"])
    assert [second[key] for key in ("x", "y", "width", "height")] == [10, 25, 20, 45]
    assert [first[key] for key in ("x", "y", "width", "height")] == [0, 0, 100, 10]
    assert (second["rectanglelabels"], first["rectanglelabels"]) == (["dog"], ['cat "<&>"'])
    assert [each["score"] for each in boxes["result"]] == [0.25, 0.75]
    assert none["result"] == []
    for result, image in ((masked["result"], IMAGES[0]), (boxes["result"], IMAGES[1])):
        assert len({each["id"] for each in result}) == 2
        for each in result:
            assert (each["original_width"], each["original_height"]) == (image["width"], image["height"])
    interface = ET.fromstring(predictions.label_config(CATEGORIES))
    assert [each.get("value") for each in interface.iter("Label")] == ['cat "<&>"', "dog"] * 2


def test_the_outline_of_a_mask():
    mask = np.zeros((20, 30), np.uint8)
    mask[2:8, 3:9] = 1
    mask[4:6, 5:7] = 0  # a hole
    mask[12:16, 20:28] = 1
    mask[0, 0] = 1  # a speck
    rle = masks.encode(np.asfortranarray(mask))
    second, first = ({*zip(each[::2], each[1::2], strict=True)} for each in predictions.outlines(rle)[:2])
    assert first == {(20, 12), (28, 12), (28, 16), (20, 16)}
    assert second == {(3, 2), (9, 2), (9, 8), (3, 8)}
    assert predictions.outlines(masks.encode(np.zeros((4, 4), np.uint8, order="F"))) == []


def test_a_triangle_is_no_speck():
    steps = np.asfortranarray(np.tri(4, dtype=np.uint8))
    (outline,) = predictions.outlines(masks.encode(steps))
    assert corners(outline) == {(0, 0), (0, 4), (4, 4)}


def test_regions_of_an_image_have_names_of_their_own(detections):
    (task,) = predictions.to_label_studio(IMAGES[:1], [detections[0]] * 3, CATEGORIES)
    assert len({each["id"] for each in task["predictions"][0]["result"]}) == 6


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.9, 0.7, 0.7, 0.5]),
        ({"score": 0.7}, [0.9, 0.7, 0.7]),
        ({"most": 3}, [0.9, 0.7, 0.7]),
        ({"show": ("dog",)}, [0.9, 0.5]),
        ({"show": ("dog", "cow"), "most": 2}, [0.9, 0.7]),
    ],
)
def test_the_surest_are_kept_of_what_is_asked_for(options, kept):
    names = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "cow"))]
    told = PredictOptions(**{"score": 0.5, "show": (), "most": None, "every": 1, **options})
    task = _Task(None, None, names, (), told)
    found = [(0.5, 1), (0.7, 0), (0.9, 1), (0.49, 1), (0.7, 2)]
    given = [{"score": score, "category_id": number} for score, number in found]
    assert [each["score"] for each in task._kept(given)] == kept
