"""Predictions as files for other tools: COCO's results, CVAT's import, Label Studio's pre-annotations."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from pycocotools import mask as masks

from triplet import files

Json = dict[str, Any]
SLACK = 0.8
"""Pixels by which a polygon may deviate from the edge of its mask, so that it has few corners."""
LOCAL_FILES = "/data/local-files/?d="
"""Address at which Label Studio serves the files of a folder added as local storage."""


def write_all(
    folder: Path,
    images: Sequence[Json],
    detections: Sequence[Json],
    categories: Sequence[Json],
    videos: tuple[str, ...] = (),
) -> dict[str, Path]:
    """Write all formats.

    Args:
        folder: the destination.
        images: images in COCO's format: ``id``, ``file_name``, ``width``, ``height``.
        detections: detections in COCO's result format.
        categories: categories in COCO's format: ``id`` and ``name``.
        videos: beginnings of the file names of frames, which Label Studio does not get: they are not files.

    Returns:
        The files by name, for a record.
    """
    stills = [each for each in images if not each["file_name"].startswith(videos)]
    content = {
        "results": ("results.json", list(detections)),
        "images": (
            "images.json",
            {"images": list(images), "categories": list(categories), "annotations": []},
        ),
        "cvat": ("cvat.json", to_cvat(images, detections, categories)),
        "label_studio": ("label_studio.json", to_label_studio(stills, detections, categories)),
    }
    for name, value in content.values():
        files.write_text(folder / name, json.dumps(value))
    files.write_text(folder / "label_studio.xml", label_config(categories))
    return {
        **{key: folder / name for key, (name, _) in content.items()},
        "label_studio_config": folder / "label_studio.xml",
    }


def outlines(segmentation: Json) -> list[list[float]]:
    """Return polygons around the parts of a run-length encoded mask, largest first; holes are filled.

    They run along the pixels' edges, as COCO's polygons do, and deviate by less than a pixel. Smaller parts
    are left out.

    Returns:
        ``[x0, y0, x1, y1, ...]`` in pixels for each part.
    """
    # OpenCV's contours run through the pixels' centres. In a mask of twice the size, these lie a quarter of
    # a pixel inside the edge on either side.
    doubled = np.ascontiguousarray(masks.decode(segmentation)).repeat(2, 0).repeat(2, 1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    edges = [cv2.approxPolyDP(np.ceil(each / 2).astype(np.int32), SLACK, True) for each in contours]
    kept = sorted((each for each in edges if len(each) >= 3), key=cv2.contourArea, reverse=True)
    return [each.reshape(-1).astype(float).tolist() for each in kept]


def to_cvat(images: Iterable[Json], detections: Iterable[Json], categories: Iterable[Json]) -> Json:
    """Return COCO 1.0 instances for CVAT's import: polygons if there are masks, else boxes."""
    annotations = []
    for number, each in enumerate(detections, 1):
        rle = each.get("segmentation")
        annotations.append(
            {
                "id": number,
                "image_id": each["image_id"],
                "category_id": each["category_id"],
                "segmentation": outlines(rle) if rle else [],
                "area": float(masks.area(rle)) if rle else each["bbox"][2] * each["bbox"][3],
                "bbox": each["bbox"],
                "iscrowd": 0,
                "score": each["score"],
                "attributes": {"occluded": False},
            }
        )
    return {
        "info": {"description": "predictions of triplet-kit"},
        "licenses": [],
        "categories": [{**each, "supercategory": ""} for each in categories],
        "images": list(images),
        "annotations": annotations,
    }


def to_label_studio(
    images: Iterable[Json], detections: Iterable[Json], categories: Iterable[Json]
) -> list[Json]:
    """Return a task per image with its pre-annotations: polygons if there are masks, else boxes, in
    percent."""
    names = {each["id"]: each["name"] for each in categories}
    found: dict[int, list[Json]] = {}
    for each in detections:
        found.setdefault(each["image_id"], []).append(each)
    tasks = []
    for image in images:
        regions = [
            region
            for number, each in enumerate(found.get(image["id"], []))
            for region in _regions(each, image, names[each["category_id"]], number)
        ]
        scores = [each["score"] for each in found.get(image["id"], [])]
        prediction = {"model_version": "triplet-kit", "result": regions, "score": max(scores, default=0.0)}
        address = LOCAL_FILES + quote(os.fsencode(image["file_name"]))
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    return tasks


def _regions(detection: Json, image: Json, name: str, number: int) -> list[Json]:
    """Return Label Studio's regions: one for each part of a mask, or the box."""
    width, height = image["width"], image["height"]
    parts = outlines(detection["segmentation"]) if detection.get("segmentation") else []
    common = {
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": detection["score"],
    }
    if parts:
        return [
            {
                **common,
                "id": f"{number}-{part}",
                "type": "polygonlabels",
                "from_name": "polygon",
                "value": {
                    "points": [
                        [100 * x / width, 100 * y / height]
                        for x, y in zip(outline[::2], outline[1::2], strict=True)
                    ],
                    "closed": True,
                    "polygonlabels": [name],
                },
            }
            for part, outline in enumerate(parts)
        ]
    x, y, w, h = detection["bbox"]
    box = {
        "x": 100 * x / width,
        "y": 100 * y / height,
        "width": 100 * w / width,
        "height": 100 * h / height,
    }
    value = {**box, "rotation": 0, "rectanglelabels": [name]}
    return [{**common, "id": f"{number}", "type": "rectanglelabels", "from_name": "box", "value": value}]


def label_config(categories: Iterable[Json]) -> str:
    """Return Label Studio's labelling interface for the regions."""
    labels = "".join(f"<Label value={quoteattr(each['name'])}/>" for each in categories)
    return (
        '<View><Image name="image" value="$image"/>'
        f'<PolygonLabels name="polygon" toName="image">{labels}</PolygonLabels>'
        f'<RectangleLabels name="box" toName="image">{labels}</RectangleLabels></View>\n'
    )
