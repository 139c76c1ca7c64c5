"""Draw a few validation images with the truth on the left and the detections on the right."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as masks
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from benchmarks.detection import compat  # noqa: F401
from triplet import files

from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode

COUNT = 6
SURE = 0.5
"""Lowest score of a detection that is drawn."""
SEEN = 0.05
"""Lowest score of a keypoint that is drawn, as in Detectron2's Visualizer."""
SIDE = 638
"""Width in pixels of the truth and of the detections in a picture, about that of COCO's images."""
PANEL = 318
"""Width in pixels of an image in a sheet."""
TALLEST = 4
"""Largest height of a picture in widths, so that an image of 2 x 30000 pixels does not take a gigabyte."""
DRAWN = 300
"""Most objects to draw in an image; the densest of COCO has some 90."""
GAP = 4
COLUMNS = 4
"""Images in a row of a sheet."""


def choose(dataset: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose annotated images evenly spread over their ids, the same for every run.

    Args:
        dataset: Detectron2's data set, one dictionary per image.
    """
    annotated = sorted(
        (image for image in dataset if image["annotations"]), key=lambda image: image["image_id"]
    )
    return annotated[:: max(1, len(annotated) // COUNT)][:COUNT]


def draw(
    chosen: Sequence[dict[str, Any]],
    detections: Sequence[dict[str, Any]],
    categories: Sequence[str],
    folder: Path,
) -> list[str]:
    """Write a JPEG for each image, 1280 px wide.

    Args:
        chosen: images and their truth, from Detectron2's data set.
        detections: detections of any images in COCO's result format, with categories counted from 0.
        categories: names of the categories.
        folder: the destination.

    Returns:
        The names of the files, made from the images' ids.
    """
    found: dict[Any, list[dict[str, Any]]] = {image["image_id"]: [] for image in chosen}
    for each in detections:
        if each["image_id"] in found and each["score"] >= SURE:
            found[each["image_id"]].append({**each, "bbox_mode": BoxMode.XYWH_ABS})
    names = []
    for image in chosen:
        pixels = read_image(image["file_name"], "RGB")
        truth = panel(pixels, image["annotations"], categories, SIDE)
        detected = panel(pixels, found[image["image_id"]], categories, SIDE)
        gap = torch.full((3, truth.shape[1], GAP), 255, dtype=torch.uint8)
        pair = torch.cat([truth, gap, detected], 2)
        names.append(f"{image['image_id']}.jpg".replace("/", "_"))
        with files.atomic(folder / names[-1]) as temporary:
            Image.fromarray(pair.permute(1, 2, 0).numpy()).save(temporary, "JPEG", quality=85)
    return names


def draw_sheet(
    images: Sequence[tuple[Path, Sequence[Mapping[str, Any]]]], classes: Sequence[str], path: Path
) -> None:
    """Write one PNG of annotated images, four in a row.

    Args:
        images: files and their objects in COCO's format, with classes counted from 0.
        classes: names of the classes.
        path: the PNG to write.
    """
    tiles = []
    for file, objects in images:
        boxes = [{**each, "bbox_mode": BoxMode.XYWH_ABS} for each in objects]
        tiles.append(panel(read_image(str(file), "RGB"), boxes, classes))
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.shape[1] for tile in row) + GAP for row in rows]
    sheet = torch.full((3, sum(heights), COLUMNS * (PANEL + GAP)), 255, dtype=torch.uint8)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            top, left = sum(heights[:number]), column * (PANEL + GAP)
            sheet[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as temporary:
        Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(temporary, "PNG")


def panel(
    pixels: np.ndarray,
    objects: Sequence[Mapping[str, Any]],
    categories: Sequence[str],
    width_shown: int = PANEL,
) -> Tensor:
    """Draw an image with its boxes, and with masks and keypoints if there are any.

    Args:
        pixels: (h, w, 3) uint8 RGB.
        objects: annotations or detections with ``bbox_mode``, categories counted from 0.
        categories: names of the categories.
        width_shown: width of the picture in pixels.

    Returns:
        (3, h * width_shown / w, width_shown) uint8; narrower if it would be higher than TALLEST times
        ``width_shown``.
    """
    height, width = pixels.shape[:2]
    scale = min(width_shown / width, TALLEST * width_shown / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    canvas = torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()
    if not objects:
        return canvas
    objects = objects[:DRAWN]
    colours: list[Any] = [_colour(each["category_id"]) for each in objects]
    if outlined := [i for i, each in enumerate(objects) if each.get("segmentation")]:
        stack = np.stack([_mask(objects[i]["segmentation"], height, width, size) for i in outlined])
        canvas = draw_segmentation_masks(
            canvas, torch.from_numpy(stack), alpha=0.45, colors=[colours[i] for i in outlined]
        )
    boxes = torch.tensor(
        [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in objects]
    )
    labels = [
        categories[each["category_id"]] + (f" {each['score']:.2f}" if "score" in each else "")
        for each in objects
    ]
    canvas = draw_bounding_boxes(
        canvas,
        boxes * scale,
        labels,
        colours,
        width=2,
        label_colors=[(0, 0, 0)] * len(labels),
        label_background_colors=colours,
        fill_labels=True,
    )
    for each, colour in zip(objects, colours, strict=True):
        if each.get("keypoints"):
            points = torch.tensor(each["keypoints"], dtype=torch.float32).view(1, -1, 3)
            shown = points[:, points[0, :, 2] > SEEN, :2]
            canvas = draw_keypoints(canvas, shown * scale, colors=colour, radius=2)
    result: Tensor = canvas
    return result


def _mask(outline: Any, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Decode polygons or a run-length encoding to (h, w) bool at the panel's size."""
    if isinstance(outline, list):  # polygons with fewer than three points are not drawn or trained on
        polygons = [each for each in outline if len(each) >= 6]
        if not polygons:
            return np.zeros(size[::-1], bool)
        outline = masks.merge(masks.frPyObjects(polygons, height, width))
    elif isinstance(outline["counts"], list):
        outline = masks.frPyObjects(outline, height, width)
    full = Image.fromarray(masks.decode(outline) * 255)
    return np.asarray(full.resize(size, Image.Resampling.BILINEAR)) > 127


def _colour(category: int) -> tuple[int, int, int]:
    """Return a category's colour; successive categories are far apart on the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb(category * 0.618034 % 1, 0.85, 1)
    return round(255 * red), round(255 * green), round(255 * blue)
