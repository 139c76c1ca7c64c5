"""Colour augmentation of many views at once on their device: ``views.render_view`` from the jitter on.

It uses torch instead of DALI, whose colour operators apply one order to all samples and whose hue differs
from PIL's.

The pixels equal those of the ``pil`` backend bit for bit: each operation truncates or rounds to 8 bits
where PIL does. The host never waits for the device: it knows from the draws which operations each view
needs, and sends all parameters in one or two copies. On a GPU the kernels of ``triton_augment`` do the
work; elsewhere, or without Triton, torch's operators do.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triplet import toolchain
from triplet.pretrain.views import AugmentationParams

Operation = Callable[[Tensor, Tensor], Tensor]
"""A function of (m, 3, h, w) uint8 RGB and (m, k) float32 parameters, a row for each view, that returns
(m, 3, h, w) uint8."""

BLUR_PASSES = 3
"""Number of box filters with which PIL approximates a Gaussian."""


class AugmentationStep(NamedTuple):
    """One operation on some of the views."""

    operation: Operation
    views: list[int]
    numbers: NDArray[np.float32]
    """(m, k) parameters, a row for each of these views."""


def gpu_augment(pixels: Tensor, draws: Sequence[AugmentationParams]) -> Tensor:
    """Jitter, grayscale, blur and solarise each view according to its draws.

    Args:
        pixels: (n, 3, h, w) uint8 RGB, already cropped, resized and mirrored; not modified.
        draws: one for each of the n views, in order.

    Returns:
        (n, 3, h, w) uint8 RGB on the same device.
    """
    kernels = _kernels() if pixels.is_cuda else None
    return by_triton(pixels, draws, kernels) if kernels else by_torch(pixels, draws)


@functools.cache
def _kernels() -> ModuleType | None:
    """Return the Triton kernels; None without Triton or the C compiler that builds its launchers."""
    if toolchain.missing(gpu=True):
        return None
    try:
        from triplet.pretrain import triton_augment
    except ImportError:
        return None
    return triton_augment


def by_triton(pixels: Tensor, draws: Sequence[AugmentationParams], kernels: ModuleType) -> Tensor:
    """Augment with Triton; see ``gpu_augment``. ``kernels`` is the module ``triton_augment``."""
    weights = iter(box_weights([d.blur_radius for d in draws if d.blur_radius is not None]))
    chains = [
        kernels.Chain(
            [(name, _turn(factor) if name == "hue" else factor) for name, factor in d.jitter],
            d.grayscale,
            d.solarize,
            None if d.blur_radius is None else next(weights),
        )
        for d in draws
    ]
    table, places = kernels.make_table(chains)
    changed: Tensor = kernels.augment(
        pixels.contiguous(), send(table, pixels.device), places, chains, BLUR_PASSES
    )
    return changed


def _turn(factor: float) -> int:
    """Return the shift of the hue in 1/256 of the circle, truncated as torchvision does."""
    return int(factor * 255) % 256


def by_torch(pixels: Tensor, draws: Sequence[AugmentationParams]) -> Tensor:
    """Augment with torch alone; see ``gpu_augment``."""
    pixels = pixels.clone(memory_format=torch.contiguous_format)
    steps = [step for step in _steps(draws) if step.views]
    if not steps:
        return pixels
    views = send(torch.tensor([i for step in steps for i in step.views]), pixels.device)
    numbers = send(torch.from_numpy(np.concatenate([s.numbers.ravel() for s in steps])), pixels.device)
    for step, index, flat in zip(
        steps,
        views.split([len(step.views) for step in steps]),
        numbers.split([step.numbers.size for step in steps]),
        strict=True,
    ):
        changed = step.operation(pixels.index_select(0, index), flat.view(step.numbers.shape))
        pixels.index_copy_(0, index, changed)
    return pixels


def _steps(draws: Sequence[AugmentationParams]) -> Iterator[AugmentationStep]:
    every = list(enumerate(draws))
    for place in range(max((len(d.jitter) for d in draws), default=0)):
        for name, operation in JITTER.items():
            factors = {i: d.jitter[place][1] for i, d in every if name in dict(d.jitter[place : place + 1])}
            if name == "hue":
                factors = {i: _turn(factor) for i, factor in factors.items()}
            yield AugmentationStep(
                operation, list(factors), np.array([*factors.values()], dtype=np.float32)[:, None]
            )
    none = np.empty((len(draws), 0), dtype=np.float32)
    gray = [i for i, d in every if d.grayscale]
    yield AugmentationStep(_grayscale, gray, none[gray])
    radii = {i: d.blur_radius for i, d in every if d.blur_radius is not None}
    yield AugmentationStep(_blur, list(radii), box_weights([*radii.values()]))
    solar = [i for i, d in every if d.solarize]
    yield AugmentationStep(_solarize, solar, none[solar])


def send(values: Tensor, device: torch.device) -> Tensor:
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values


def _luma(pixels: Tensor) -> Tensor:
    """Return the (m, 1, h, w) int32 luma, rounded to 8 bits in PIL's fixed point."""
    red, green, blue = pixels.to(torch.int32).split(1, dim=1)
    result: Tensor = (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16
    return result


def _blend(start: Tensor | int, pixels: Tensor, factors: Tensor) -> Tensor:
    mixed = start + factors[:, :, None, None] * (pixels.float() - start)
    return mixed.clamp_(0, 255).to(torch.uint8)  # truncated, not rounded


def _brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    return _blend(0, pixels, factors)


def _contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    luma = _luma(pixels)
    count = luma[0].numel()
    mean = (2 * luma.sum((1, 2, 3), keepdim=True) + count) // (2 * count)  # rounded
    return _blend(mean, pixels, factors)


def _saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    return _blend(_luma(pixels), pixels, factors)


def _hue(pixels: Tensor, turns: Tensor) -> Tensor:
    to_hsv, to_rgb = _colour_tables(pixels.device)
    red, green, blue = pixels.to(torch.int32).unbind(1)
    hsv = to_hsv.index_select(0, (red << 16 | green << 8 | blue).flatten()).view(red.shape)
    hsv = hsv + (turns[:, :, None].int() << 16) & 0xFFFFFF  # around the circle
    rgb = to_rgb.index_select(0, hsv.flatten()).view(red.shape)
    return torch.stack([rgb >> 16, rgb >> 8 & 255, rgb & 255], dim=1).to(torch.uint8)


@functools.cache
def _colour_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return tables of all 2**24 colours from RGB to HSV and from HSV to RGB as PIL converts them, each
    colour packed into one number.

    They take 64 MB each and a second to make. Formulas that agree would need thirty operations, some in
    float64.
    """
    numbers = np.arange(1 << 24, dtype="<i4").view(np.uint8).reshape(4096, 4096, 4)
    tables = []
    for before, after in (("RGB", "HSV"), ("HSV", "RGB")):
        colours = Image.frombytes(before, (4096, 4096), numbers[..., 2::-1].tobytes()).convert(after)
        table = np.zeros_like(numbers)
        table[..., 2::-1] = np.asarray(colours)
        tables.append(torch.from_numpy(table.reshape(-1).view("<i4")).to(device))
    return tables[0], tables[1]


def _grayscale(pixels: Tensor, nothing: Tensor) -> Tensor:
    return _luma(pixels).to(torch.uint8).expand(-1, 3, -1, -1)


def box_weights(radii: Sequence[float]) -> NDArray[np.float32]:
    """Return the (m, taps) weights, in units of 2**-24, of the box that PIL applies ``BLUR_PASSES`` times
    for each Gaussian.

    A box has fractional ends (Gwosdek et al., SSVM 2011). The arithmetic is float32, as in PIL's BoxBlur.c.
    """
    variance = np.array(radii, dtype=np.float32) ** 2 / np.float32(BLUR_PASSES)
    length = np.sqrt(12.0 * variance.astype(np.float64) + 1.0).astype(np.float32)
    whole = np.floor((length - 1) / 2)
    end = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    radius = whole + end
    reach = radius.astype(np.int64)[:, None]
    inner = (np.float32(1 << 24) / (radius * 2 + 1)).astype(np.int64)[:, None]
    outer = ((1 << 24) - (2 * reach + 1) * inner) // 2
    far = reach.max(initial=0) + 1
    distance = np.abs(np.arange(-far, far + 1))[None]
    weights = np.where(distance <= reach, inner, np.where(distance == reach + 1, outer, 0))
    return weights.astype(np.float32)


def _blur(pixels: Tensor, weights: Tensor) -> Tensor:
    """Blur along rows, then along columns; each pass repeats the border of its own input."""
    # In float64, products and sums of 24-bit weights and 8-bit values are exact.
    kernels = weights.double()[:, None, None].expand(-1, 3, -1, -1).reshape(-1, 1, 1, weights.shape[1])
    far = weights.shape[1] // 2
    for _ in ("rows", "columns"):
        for _ in range(BLUR_PASSES):
            lines = F.pad(pixels.double(), (far, far, 0, 0), mode="replicate")
            sums = F.conv2d(lines.flatten(0, 1)[None], kernels / (1 << 24), groups=len(kernels))
            pixels = sums.add_(0.5).to(torch.uint8).view(pixels.shape)
        pixels = pixels.transpose(2, 3)
    return pixels


def _solarize(pixels: Tensor, nothing: Tensor) -> Tensor:
    return torch.where(pixels < 128, pixels, 255 - pixels)


JITTER: dict[str, Operation] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
}
