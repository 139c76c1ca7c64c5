"""Small annotation files: two images, a polygon, run lengths, a crowd, and a person's keypoints."""

import json

import numpy as np
import pytest
from pycocotools import mask as masks

WIDTH, HEIGHT = 60, 40


def compressed(polygon):
    """COCO's text of run lengths."""
    merged = masks.merge(masks.frPyObjects([polygon], HEIGHT, WIDTH))
    return {"size": [HEIGHT, WIDTH], "counts": merged["counts"].decode()}


def uncompressed(mask):
    """COCO's list of run lengths."""
    pixels = masks.decode(mask).flatten(order="F")
    ends = np.flatnonzero(np.diff(pixels)) + 1
    runs = np.diff([0, *ends, len(pixels)]).tolist()
    return {"size": mask["size"], "counts": [0, *runs] if pixels[0] else runs}


def square(x, y, side):
    return [x, y, x + side, y, x + side, y + side, x, y + side]


@pytest.fixture
def table():
    """Instances of two categories, as a dictionary that may be changed."""
    crowd = uncompressed(compressed(square(20, 10, 12)))
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (3, 1)],
        "categories": [{"id": 7, "name": "disc"}, {"id": 2, "name": "bar"}],
        "annotations": [
            {
                "id": 11,
                "image_id": 3,
                "category_id": 2,
                "bbox": [5, 5, 10, 10],
                "area": 100,
                "iscrowd": 0,
                "segmentation": [square(5, 5, 10), square(30, 20.5, 4)],
            },
            {
                "id": 12,
                "image_id": 1,
                "category_id": 7,
                "bbox": [20, 10, 12, 12],
                "area": 144.0,
                "iscrowd": 1,
                "segmentation": crowd,
            },
            {
                "id": 13,
                "image_id": 1,
                "category_id": 2,
                "bbox": [0.0, 0.5, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "segmentation": [square(0, 0.5, 20)],
            },
        ],
    }


@pytest.fixture
def people(table):
    """The same with keypoints."""
    table["categories"] = [{"id": 1, "name": "person"}]
    for each in table["annotations"]:
        each["category_id"] = 1
        each["keypoints"] = [v for i in range(17) for v in (10 + i, 10 + i, 2)]
        each["num_keypoints"] = 17
    return table


@pytest.fixture
def write(tmp_path):
    """Writes a table as it is, or bytes; returns the path."""

    def write(content):
        path = tmp_path / "instances_val2017.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write
