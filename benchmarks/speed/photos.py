"""Drawn substitutes for photographs, which cost as much to decode as ImageNet's JPEGs."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 90
"""ImageNet's most frequent shape; its files have 110 kB on average, these about 70."""
DISTINCT = 64
"""Number of distinct images; further files repeat them, which makes no difference to a loader."""


def photo(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw (375, 500, 3) RGB with a photograph's spectrum: amplitude falls with frequency, colours vary
    less than brightness, and there is a little sensor noise."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    cells = 2
    while cells < WIDTH:
        grid = rng.normal(size=(cells * HEIGHT // WIDTH + 1, cells, 1)) + 0.4 * rng.normal(
            size=(cells * HEIGHT // WIDTH + 1, cells, 3)
        )
        pixels += (
            cv2.resize(grid.astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) / cells**0.5
        )
        cells *= 2
    pixels = 118 + 58 * (pixels - pixels.mean()) / pixels.std() + rng.normal(scale=10, size=pixels.shape)
    result: NDArray[np.uint8] = pixels.clip(0, 255).astype(np.uint8)
    return result


def draw_photos(folder: Path, count: int, seed: int = 0) -> Path:
    """Write ``count`` JPEGs of 500 x 375 pixels into a folder and return it."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        if number < DISTINCT:
            Image.fromarray(photo(rng)).save(path, quality=QUALITY)
        else:
            path.write_bytes((folder / f"{number % DISTINCT:05d}.jpg").read_bytes())
    return folder
