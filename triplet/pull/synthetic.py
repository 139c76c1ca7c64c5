"""The demo's data set, drawn from a seed: textured shapes on textured ground.

A class is a shape with a texture; each shape and each texture occurs in several classes and all
colours are random, so neither colour nor shape nor texture alone tells the class.
"""

import json
import math
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field, NonNegativeInt, PositiveInt

from triplet import files
from triplet.config import InOrder, Settings
from triplet.progress import Bar

SHAPES = ("disc", "square", "star")
TEXTURES = ("striped", "dotted")
Radius = Annotated[float, Field(ge=4, le=60)]
CLASSES = tuple(f"{texture} {shape}" for texture, shape in product(TEXTURES, SHAPES))
SIDE = 128
"""Width and height of every image in pixels."""


@dataclass(frozen=True)
class Shape:
    """One object: its class, its place and its paint."""

    category: int
    centre: tuple[float, float]
    radius: float
    angle: float
    period: float
    """Period of the texture in pixels."""
    colours: np.ndarray
    """(2, 3) RGB."""

    @property
    def outline(self) -> np.ndarray:
        """Return the (k, 2) corners of its polygon in pixels."""
        shape = SHAPES[self.category % len(SHAPES)]
        corners = {"disc": 24, "square": 4, "star": 10}[shape]
        angles = self.angle + 2 * math.pi * np.arange(corners) / corners
        radii = np.full(corners, self.radius)
        if shape == "star":
            radii[1::2] *= 0.45
        ring = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None]
        result: np.ndarray = ring + np.array(self.centre)
        return result


def _random_shape(rng: np.random.Generator, category: int, radii: tuple[float, float]) -> Shape:
    radius = rng.uniform(*radii)
    margin = radius + 1
    colours = rng.uniform(0, 255, (2, 3))
    while np.abs(colours[0] - colours[1]).mean() < 70:  # keep the texture visible
        colours = rng.uniform(0, 255, (2, 3))
    return Shape(
        category=category,
        centre=(rng.uniform(margin, SIDE - margin), rng.uniform(margin, SIDE - margin)),
        radius=radius,
        angle=rng.uniform(0, 2 * math.pi),
        period=rng.uniform(7, 11),
        colours=colours,
    )


def _ground(rng: np.random.Generator) -> np.ndarray:
    """Draw a (SIDE, SIDE, 3) background of smooth muted colours with meaningless strokes."""
    low, high = rng.uniform(80, 175, (2, 3))
    coarse = rng.uniform(size=(6, 6))
    smooth = Image.fromarray((coarse * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    mix = np.asarray(smooth, dtype=np.float64)[..., None] / 255
    ground = Image.fromarray((low * (1 - mix) + high * mix).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(2, 6))):
        x0, y0, x1, y1 = rng.uniform(0, SIDE, 4)
        colour = tuple(int(c) for c in rng.uniform(0, 255, 3))
        draw.line((x0, y0, x1, y1), fill=colour, width=int(rng.integers(1, 4)))
    return np.asarray(ground, dtype=np.float64)


def _paint(canvas: np.ndarray, shape: Shape) -> None:
    """Blend a textured shape into the canvas, its edge antialiased by fourfold supersampling."""
    fine = Image.new("L", (SIDE * 4, SIDE * 4))
    ImageDraw.Draw(fine).polygon([tuple(p) for p in shape.outline * 4], fill=255)
    mask = np.asarray(fine.reduce(4), dtype=np.float64)[..., None] / 255
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    c, s = math.cos(shape.angle), math.sin(shape.angle)
    u, v = (c * x + s * y) / shape.period, (c * y - s * x) / shape.period
    if TEXTURES[shape.category // len(SHAPES)] == "striped":
        wave = np.cos(2 * math.pi * u)
    else:
        wave = np.cos(2 * math.pi * u) + np.cos(2 * math.pi * v) - 0.7
    share = 1 / (1 + np.exp(-6 * wave))[..., None]
    paint = shape.colours[0] * share + shape.colours[1] * (1 - share)
    canvas += mask * (paint - canvas)


def draw_image(
    rng: np.random.Generator, objects: int, radii: tuple[float, float]
) -> tuple[Image.Image, list[Shape]]:
    """Draw one SIDE x SIDE RGB image and return it with its shapes, which do not touch.

    Args:
        rng: source of all randomness.
        objects: number of objects to try to place.
        radii: smallest and largest radius in pixels.
    """
    canvas, shapes = _ground(rng), list[Shape]()
    for _ in range(objects):
        for _attempt in range(20):
            new = _random_shape(rng, int(rng.integers(len(CLASSES))), radii)
            if all(math.dist(new.centre, s.centre) > new.radius + s.radius for s in shapes):
                shapes.append(new)
                _paint(canvas, new)
                break
    canvas += rng.normal(0, 6, canvas.shape)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8)), shapes


def _annotation(shape: Shape, image: int, number: int) -> dict[str, object]:
    points = shape.outline
    x, y = points.T
    area = 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return {
        "id": number,
        "image_id": image,
        "category_id": shape.category + 1,
        "segmentation": [[round(float(c), 2) for c in points.flatten()]],
        "bbox": [round(float(c), 2) for c in (left, top, right - left, bottom - top)],
        "area": round(area, 2),
        "iscrowd": 0,
    }


class Drawn(Settings):
    """Numbers of images and objects; sizes are in pixels of an image of SIDE x SIDE."""

    seed: NonNegativeInt = 0
    unlabelled: PositiveInt
    """Number of images for pretraining; each shows one large object, like ImageNet's images."""
    train: PositiveInt
    val: PositiveInt
    radii: Annotated[tuple[Radius, Radius], InOrder]
    """Sizes of the smallest and the largest object in the annotated images."""
    large: Annotated[tuple[Radius, Radius], InOrder]
    """Sizes of the smallest and the largest object in the unlabelled images."""
    objects: Annotated[tuple[NonNegativeInt, NonNegativeInt], InOrder]
    """Smallest and largest number of objects in an annotated image."""


def draw_dataset(folder: Path, config: Drawn) -> None:
    """Draw ``unlabelled/``, and ``train2017/``, ``val2017/``, ``annotations/`` in COCO's layout.

    An image depends only on the seed, its split and its number.
    """
    with Bar("pull: drawing", config.unlabelled + config.train + config.val) as bar:
        for i in range(config.unlabelled):
            rng = np.random.default_rng((config.seed, 0, i))
            _save(draw_image(rng, 1, config.large)[0], folder / "unlabelled", i)
            bar.step()
        splits = (("train2017", config.train), ("val2017", config.val))
        for number, (split, count) in enumerate(splits, 1):
            images, annotations = [], list[dict[str, object]]()
            for i in range(1, count + 1):
                rng = np.random.default_rng((config.seed, number, i))
                objects = int(rng.integers(config.objects[0], config.objects[1] + 1))
                image, shapes = draw_image(rng, objects, config.radii)
                name = _save(image, folder / split, i)
                images.append({"id": i, "file_name": name, "width": SIDE, "height": SIDE})
                for shape in shapes:
                    annotations.append(_annotation(shape, i, len(annotations) + 1))
                bar.step()
            truth = {
                "info": {
                    "description": "drawn by the Triplet reproduction kit",
                    "version": str(config.seed),
                },
                "licenses": [],
                "images": images,
                "annotations": annotations,
                "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES, 1)],
            }
            files.write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(truth))


def _save(image: Image.Image, folder: Path, number: int) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{number:012d}.png"
    image.save(folder / name, compress_level=0)  # quicker to read: its noise hardly compresses
    return name
