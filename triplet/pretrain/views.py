"""Augmented views of an image: sample all random parameters first, then render the pixels.

The parameters depend on (seed, epoch, image index, view) alone, so they are the same on any number of ranks
and workers and after a resume. The released code seeds its blur by the worker's number instead, which
repeats the radii in every epoch; this defect is not reproduced.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import functional as TF

from triplet.pretrain.config import ResolutionRange, Views

Pixels = NDArray[Any]
"""(height, width, 3) uint8 RGB."""

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""PIL's weights of red, green and blue for the luma (ITU-R 601-2)."""
# ImageNet's statistics, RGB, for values in 0..255.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class InputResolutions:
    """Side in pixels at which each network sees each view in this step, the same on every rank."""

    online_1: int
    online_2: int
    target_1: int
    target_2: int


@dataclass(frozen=True)
class AugmentationParams:
    """Everything random about one view of one image."""

    box: tuple[int, int, int, int]
    """Left, top, width and height of the crop in pixels."""
    flip: bool
    jitter: tuple[tuple[str, float], ...]
    """Colour operations in order with their factors; empty for none."""
    grayscale: bool
    blur_radius: float | None
    solarize: bool


def sample_augmentation(
    config: Views, size: tuple[int, int], view: int, rng: np.random.Generator
) -> AugmentationParams:
    """Draw the parameters of one view of an image.

    Args:
        config: augmentation of the views.
        size: (width, height) of the image in pixels.
        view: 0 or 1; the two differ in blur and solarisation.
        rng: see ``view_rng``.
    """
    box = _crop_box(config, size, rng)
    flip = rng.random() < config.flip
    jitter: list[tuple[str, float]] = []
    if rng.random() < config.jitter:
        for name in ("brightness", "contrast", "saturation"):
            strength = getattr(config, name)
            jitter.append((name, rng.uniform(max(0.0, 1 - strength), 1 + strength)))
        jitter.append(("hue", rng.uniform(-config.hue, config.hue)))
        jitter = [jitter[i] for i in rng.permutation(len(jitter))]
    grayscale = rng.random() < config.grayscale
    if grayscale and config.grayscale_first:
        jitter.insert(0, ("saturation", 0.0))  # PIL converts to grey this way
    return AugmentationParams(
        box=box,
        flip=flip,
        jitter=tuple(jitter),
        grayscale=grayscale and not config.grayscale_first,
        blur_radius=(rng.uniform(*config.blur_radius) if rng.random() < config.blur[view] else None),
        solarize=rng.random() < config.solarize[view],
    )


def _crop_box(config: Views, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draw a crop as torchvision's RandomResizedCrop.get_params does, from a numpy generator."""
    width, height = size
    for _ in range(10):
        area = width * height * rng.uniform(*config.scale)
        aspect = math.exp(rng.uniform(math.log(config.ratio[0]), math.log(config.ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int(rng.integers(0, width - w + 1))
            return left, int(rng.integers(0, height - h + 1)), w, h
    aspect = min(max(width / height, config.ratio[0]), config.ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - w) // 2, (height - h) // 2, w, h


def view_rng(seed: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """Return the generator of one view of one image in one epoch."""
    return np.random.default_rng((seed, epoch, index, view))


def render_view(
    image: Image.Image,
    draws: AugmentationParams,
    side: int,
    backend: str = "pil",
    interpolation: str = "bicubic",
) -> Pixels:
    """Render a view as (side, side, 3) uint8 RGB by the released transforms, in their order.

    Args:
        image: RGB.
        draws: the parameters of the view.
        side: side of the view in pixels.
        backend: ``pil`` gives exactly the released pixels. ``opencv`` is several times faster and differs
            in rounding and in the blur, a true Gaussian that PIL approximates by boxes. Both crop, resize
            and mirror with PIL. The tests state how far they differ.
        interpolation: ``bicubic`` or ``bilinear``, for the resizing.
    """
    left, top, width, height = draws.box
    # Crop first: resizing with a box would mix pixels outside the crop into its border.
    image = image.crop((left, top, left + width, top + height))
    image = image.resize((side, side), Image.Resampling[interpolation.upper()])
    if draws.flip:
        image = ImageOps.mirror(image)
    return BACKENDS[backend](image, draws)


def augmented_views(
    image: Image.Image, config: Views, rng: Callable[[int], np.random.Generator], count: int
) -> Pixels:
    """Render (count, side, side, 3) uint8 views of an RGB image.

    Args:
        image: RGB.
        config: augmentation of the views.
        rng: maps the number of a view to its generator, see ``view_rng``.
        count: number of views, 1 or 2.
    """
    drawn = [sample_augmentation(config, image.size, view, rng(view)) for view in range(count)]
    return np.stack(
        [render_view(image, each, config.size, config.backend, config.interpolation) for each in drawn]
    )


def _pil(image: Image.Image, draws: AugmentationParams) -> Pixels:
    for name, factor in draws.jitter:
        image = getattr(TF, f"adjust_{name}")(image, factor)
    if draws.grayscale:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    if draws.blur_radius is not None:
        image = image.filter(ImageFilter.GaussianBlur(draws.blur_radius))
    if draws.solarize:
        image = ImageOps.solarize(image, threshold=128)
    return np.asarray(image)


def _opencv(image: Image.Image, draws: AugmentationParams) -> Pixels:
    cv2.setNumThreads(0)  # each process works on one image: threads would only compete with each other
    pixels = np.asarray(image)
    for name, factor in draws.jitter:
        pixels = JITTER[name](pixels, factor)
    if draws.grayscale:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if draws.blur_radius is not None:  # PIL's radius is the standard deviation; PIL repeats the border
        pixels = cv2.GaussianBlur(pixels, (0, 0), draws.blur_radius, borderType=cv2.BORDER_REPLICATE)
    if draws.solarize:
        pixels = cv2.LUT(pixels, _SOLARIZE)
    return pixels


def _blend(start: int, pixels: Pixels, factor: float) -> Pixels:
    """Return start + factor * (pixels - start), clipped to 0..255 and truncated as PIL does."""
    table = np.float32(start) + np.float32(factor) * (np.arange(256, dtype=np.float32) - np.float32(start))
    return cv2.LUT(pixels, table.clip(0, 255).astype(np.uint8))


def _brightness(pixels: Pixels, factor: float) -> Pixels:
    return _blend(0, pixels, factor)


def _contrast(pixels: Pixels, factor: float) -> Pixels:
    return _blend(int(np.dot(LUMA, cv2.mean(pixels)[:3]) + 0.5), pixels, factor)


def _saturation(pixels: Pixels, factor: float) -> Pixels:
    # The offset turns OpenCV's rounding into PIL's truncation; exactly 0.5 would round ties to even.
    mix = factor * np.eye(3, dtype=np.float32) + (1 - factor) * LUMA
    return cv2.transform(pixels, np.column_stack([mix, np.full(3, -0.499, dtype=np.float32)]))


def _hue(pixels: Pixels, factor: float) -> Pixels:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(factor * 255) % 256)  # around the circle
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


BACKENDS: dict[str, Callable[[Image.Image, AugmentationParams], Pixels]] = {"pil": _pil, "opencv": _opencv}
JITTER: dict[str, Callable[[Pixels, float], Pixels]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
_SOLARIZE = np.where(np.arange(256) < 128, np.arange(256), 255 - np.arange(256)).astype(np.uint8)


def centre_view(image: Image.Image, shorter: int, side: int) -> Pixels:
    """Resize the shorter side to ``shorter`` and crop the centre as torchvision does: (side, side, 3) uint8
    RGB."""
    return np.asarray(TF.center_crop(TF.resize(image, shorter), [side, side]))


def normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalise (..., 3, h, w) uint8 by ImageNet's mean and standard deviation, to ``dtype``."""
    mean, std = _statistics(dtype, images.device)
    return (images.to(dtype) - mean) / std


@functools.cache  # copying them to a GPU each time would make the host wait for it
def _statistics(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(values, dtype=dtype).view(3, 1, 1).to(device) for values in (MEAN, STD))
    return mean, std


def draw_resolutions(config: Views, seed: int, iteration: int) -> InputResolutions:
    """Draw the four resolutions of one iteration from seed and iteration alone, equal on all ranks."""
    rng = np.random.default_rng((seed, iteration, 0x51DE5))

    def draw(sides: ResolutionRange) -> int:
        return (
            int(rng.integers(0, (sides.largest - sides.smallest) // sides.step + 1)) * (sides.step)
            + sides.smallest
        )

    return InputResolutions(
        online_1=draw(config.online),
        online_2=draw(config.online),
        target_1=draw(config.target),
        target_2=draw(config.target),
    )
