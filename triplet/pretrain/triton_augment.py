"""Triton kernels of ``gpu_augment``: the chain of colour operations, and a pass of the box blur.

Torch's operators move 28 GB for 392 views of 224 pixels. These kernels move 0.6 GB: they read and write the
views once for the colours and once in each of the blur's passes, and read them once for contrast's mean.
The pixels are the same bit for bit, so no operation may round differently: no fused multiply-add
(``enable_fp_fusion=False``), no approximate division (``div_rn``).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

OPERATIONS = ("brightness", "contrast", "saturation", "hue")
BLOCK = 1024
"""Pixels that a program handles."""
VIEWS = 1
"""Views that a program handles. More than one pays off in Triton's interpreter alone."""

_CONTRAST = tl.constexpr(OPERATIONS.index("contrast"))
_SATURATION = tl.constexpr(OPERATIONS.index("saturation"))
_HUE = tl.constexpr(OPERATIONS.index("hue"))
# The table's first columns; a pair for each place in the chain follows, then the weights of the blur.
_LENGTH, _GRAYSCALE, _SOLARIZE, _SOLARIZE_BLURRED, _BLURRED = map(tl.constexpr, range(5))
_PAIRS = tl.constexpr(5)


class Chain(NamedTuple):
    """The operations on one view."""

    jitter: Sequence[tuple[str, float]]
    """Names of OPERATIONS, each with its factor; hue's is an integer, in 1/256 of the circle."""
    grayscale: bool
    solarize: bool
    blur: Sequence[float] | None
    """Weights of the box in units of 2**-24, None for no blur. All views have the same odd number of
    weights."""


def make_table(chains: Sequence[Chain]) -> tuple[Tensor, int]:
    """Encode the chains for the kernels: (n, k) float32 on the CPU, and the number of places in a chain.

    Row i also holds the number of the i-th view that is blurred.
    """
    places = max((len(chain.jitter) for chain in chains), default=0)
    taps = max((len(chain.blur) for chain in chains if chain.blur is not None), default=0)
    table = torch.zeros(len(chains), _PAIRS.value + 2 * places + taps)
    for row, chain in zip(table.numpy(), chains, strict=True):
        blurred = chain.blur is not None
        row[:4] = (
            len(chain.jitter),
            chain.grayscale,
            chain.solarize and not blurred,
            chain.solarize and blurred,
        )
        for place, (name, factor) in enumerate(chain.jitter):
            pair = _PAIRS.value + 2 * place
            row[pair : pair + 2] = OPERATIONS.index(name), factor
        if chain.blur is not None:
            row[-taps:] = chain.blur
    turns = [view for view, chain in enumerate(chains) if chain.blur is not None]
    table[: len(turns), _BLURRED.value] = torch.tensor(turns, dtype=torch.float32)
    return table, places


def augment(pixels: Tensor, table: Tensor, places: int, chains: Sequence[Chain], passes: int) -> Tensor:
    """Run the kernels.

    Args:
        pixels: (n, 3, h, w) uint8 RGB, contiguous; not modified.
        table: made by ``make_table``, on the same device.
        places: number of places in a chain, from ``make_table``.
        chains: the chains that the table encodes.
        passes: number of box filters along the rows, and as many along the columns.

    Returns:
        (n, 3, h, w) uint8 RGB.
    """
    views, _, height, width = pixels.shape
    changed, size, columns = torch.empty_like(pixels), height * width, table.shape[1]
    if not pixels.numel():
        return changed
    sums = torch.zeros(views, max(places, 1), dtype=torch.int64, device=pixels.device)
    with torch.cuda.device_of(pixels):
        tile = dict(VIEWS=VIEWS, BLOCK=BLOCK, enable_fp_fusion=False)
        grid, chain = (triton.cdiv(views, VIEWS), triton.cdiv(size, BLOCK)), dict(PLACES=places, **tile)
        for turn in range(max(sum(name == "contrast" for name, _ in each.jitter) for each in chains)):
            _sum_luma[grid](pixels, table, sums, turn, views, columns, size, **chain)
        _recolour[grid](pixels, changed, table, sums, views, columns, size, **chain)
        blurred = sum(each.blur is not None for each in chains)
        if not blurred:
            return changed
        source, target = changed, torch.empty_like(changed)
        grid, weights = (
            (triton.cdiv(blurred, VIEWS), triton.cdiv(3 * size, BLOCK)),
            _PAIRS.value + 2 * places,
        )
        lines = [(1, width)] * passes + [(width, height)] * passes
        for number, (stride, length) in enumerate(lines, 1):
            arguments = table, blurred, columns, weights, stride, length, 3 * size
            _box[grid](
                source, target, *arguments, TAPS=columns - weights, LAST=number == len(lines), **tile
            )
            source, target = target, source
    return source


@triton.jit
def _luma(red, green, blue):
    return (19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16


@triton.jit
def _blend(start, value, factor):
    mixed = start.to(tl.float32) + factor * (value - start).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)  # truncated, not rounded


@triton.jit
def _to_hsv(red, green, blue):
    """Convert RGB to HSV as Pillow's Convert.c does, in float32 except where C promotes to double."""
    value = tl.maximum(tl.maximum(red, green), blue)
    range_ = (value - tl.minimum(tl.minimum(red, green), blue)).to(tl.float32)
    gray = range_ == 0
    divisor = tl.where(gray, 1.0, range_)
    saturation = tl.math.div_rn(range_, tl.where(value == 0, 1, value).to(tl.float32))
    from_red = tl.math.div_rn((value - red).to(tl.float32), divisor)
    from_green = tl.math.div_rn((value - green).to(tl.float32), divisor)
    from_blue = tl.math.div_rn((value - blue).to(tl.float32), divisor)
    first = from_blue - from_green
    second = (from_red.to(tl.float64) + 2.0 - from_blue.to(tl.float64)).to(tl.float32)
    third = (from_green.to(tl.float64) + 4.0 - from_red.to(tl.float64)).to(tl.float32)
    hue = tl.where(red == value, first, tl.where(green == value, second, third))
    turn = hue.to(tl.float64) / 6.0 + 1.0
    hue = (turn - tl.floor(turn)).to(tl.float32)
    whole_hue = tl.where(gray, 0, (hue.to(tl.float64) * 255.0).to(tl.int32))
    whole_saturation = tl.where(gray, 0, (saturation.to(tl.float64) * 255.0).to(tl.int32))
    return whole_hue, whole_saturation, value


@triton.jit
def _to_rgb(hue, saturation, value):
    """Convert HSV to RGB as Pillow's Convert.c does; products of float32 and double are double, as in C."""
    sixth = hue.to(tl.float64) * 6.0 / 255.0
    sector = tl.floor(sixth)
    rest = (sixth - sector).to(tl.float32)
    share = (saturation.to(tl.float64) / 255.0).to(tl.float32)
    full = value.to(tl.float64)
    product = (share * rest).to(tl.float64)
    p = tl.floor(full * (1.0 - share.to(tl.float64)) + 0.5).to(tl.int32)
    q = tl.floor(full * (1.0 - product) + 0.5).to(tl.int32)
    t = tl.floor(full * (1.0 - share.to(tl.float64) * (1.0 - rest.to(tl.float64))) + 0.5).to(tl.int32)
    i = sector.to(tl.int32) % 6
    red = tl.where((i == 0) | (i == 5), value, tl.where(i == 1, q, tl.where(i == 4, t, p)))
    green = tl.where((i == 1) | (i == 2), value, tl.where(i == 0, t, tl.where(i == 3, q, p)))
    blue = tl.where((i == 3) | (i == 4), value, tl.where(i == 2, t, tl.where(i == 5, q, p)))
    return red, green, blue


@triton.jit
def _apply(red, green, blue, row, sums, end, size, PLACES: tl.constexpr):
    """Apply the first ``end`` operations of each view's chain; skip those that no view of the tile
    needs."""
    for place in range(PLACES):
        operation = tl.load(row + (_PAIRS + 2 * place)).to(tl.int32)
        factor = tl.load(row + (_PAIRS + 2 * place + 1))
        turned, blended = (place < end) & (operation == _HUE), (place < end) & (operation != _HUE)
        if tl.max(turned.to(tl.int32)) > 0:
            hue, saturation, value = _to_hsv(red, green, blue)
            new_red, new_green, new_blue = _to_rgb((hue + factor.to(tl.int32)) & 255, saturation, value)
            red = tl.where(turned, new_red, red)
            green = tl.where(turned, new_green, green)
            blue = tl.where(turned, new_blue, blue)
        if tl.max(blended.to(tl.int32)) > 0:
            whole = tl.load(sums + place)
            mean = ((2 * whole + size) // (2 * size)).to(tl.int32)  # rounded
            start = tl.where(operation == _CONTRAST, mean, 0)  # black for brightness
            start = tl.where(operation == _SATURATION, _luma(red, green, blue), start)
            red = tl.where(blended, _blend(start, red, factor), red)
            green = tl.where(blended, _blend(start, green, factor), green)
            blue = tl.where(blended, _blend(start, blue, factor), blue)
    return red, green, blue


@triton.jit
def _tile(
    table, sums, views, columns, size, PLACES: tl.constexpr, VIEWS: tl.constexpr, BLOCK: tl.constexpr
):
    """Return a program's views with their table rows and sums, (VIEWS, 1), its pixels, (1, BLOCK), and
    which of them exist."""
    view = (tl.program_id(0) * VIEWS + tl.arange(0, VIEWS)[:, None]).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    known = tl.minimum(view, views - 1)  # beyond the last view, repeat it
    return known, table + known * columns, sums + known * PLACES, at, (view < views) & (at < size)


@triton.jit
def _load(pixels, view, at, inside, size):
    first = pixels + (3 * size * view + at)
    red = tl.load(first, mask=inside, other=0).to(tl.int32)
    green = tl.load(first + size, mask=inside, other=0).to(tl.int32)
    blue = tl.load(first + 2 * size, mask=inside, other=0).to(tl.int32)
    return red, green, blue


@triton.jit
def _sum_luma(
    pixels,
    table,
    sums,
    turn,
    views,
    columns,
    size,
    PLACES: tl.constexpr,
    VIEWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the luma before the ``turn``-th contrast of each view."""
    view, row, own, at, inside = _tile(table, sums, views, columns, size, PLACES, VIEWS, BLOCK)
    length = tl.load(row + _LENGTH).to(tl.int32)
    met, end = tl.full([VIEWS, 1], -1, tl.int32), tl.full([VIEWS, 1], -1, tl.int32)
    for place in range(PLACES):
        operation = tl.load(row + (_PAIRS + 2 * place)).to(tl.int32)
        met += ((place < length) & (operation == _CONTRAST)).to(tl.int32)
        end = tl.where((met == turn) & (end < 0), place, end)
    if tl.max(end) >= 0:
        red, green, blue = _load(pixels, view, at, inside & (end >= 0), size)
        red, green, blue = _apply(red, green, blue, row, own, end, size, PLACES)
        luma = tl.where(inside & (end >= 0), _luma(red, green, blue), 0)
        whole = tl.sum(luma, axis=1)[:, None].to(tl.int64)
        tl.atomic_add(own + tl.maximum(end, 0), whole, mask=end >= 0)


@triton.jit
def _recolour(
    pixels,
    changed,
    table,
    sums,
    views,
    columns,
    size,
    PLACES: tl.constexpr,
    VIEWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Apply the whole chain, grayscale, and the solarisation of the views that are not blurred."""
    view, row, own, at, inside = _tile(table, sums, views, columns, size, PLACES, VIEWS, BLOCK)
    red, green, blue = _load(pixels, view, at, inside, size)
    red, green, blue = _apply(red, green, blue, row, own, tl.load(row + _LENGTH), size, PLACES)
    gray, luma = tl.load(row + _GRAYSCALE) > 0, _luma(red, green, blue)
    red, green, blue = tl.where(gray, luma, red), tl.where(gray, luma, green), tl.where(gray, luma, blue)
    solarize = tl.load(row + _SOLARIZE) > 0
    red = tl.where(solarize, tl.minimum(red, 255 - red), red)
    green = tl.where(solarize, tl.minimum(green, 255 - green), green)
    blue = tl.where(solarize, tl.minimum(blue, 255 - blue), blue)
    first = changed + (3 * size * view + at)
    tl.store(first, red.to(tl.uint8), mask=inside)
    tl.store(first + size, green.to(tl.uint8), mask=inside)
    tl.store(first + 2 * size, blue.to(tl.uint8), mask=inside)


@triton.jit
def _box(
    source,
    target,
    table,
    blurred,
    columns,
    weights,
    stride,
    length,
    size,
    TAPS: tl.constexpr,
    LAST: tl.constexpr,
    VIEWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Apply one box filter along lines of ``length`` values ``stride`` apart; the border of the source is
    repeated."""
    turn = tl.program_id(0) * VIEWS + tl.arange(0, VIEWS)[:, None]
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = (turn < blurred) & (at < size)
    view = tl.load(table + turn * columns + _BLURRED, mask=turn < blurred, other=0).to(tl.int64)
    row = table + view * columns
    place = at // stride % length
    total = tl.full(
        [VIEWS, BLOCK], 1 << 23, tl.uint32
    )  # plus a half, to round: at most 255.5 * 2**24, less than 2**32
    for tap in range(TAPS):
        near = tl.minimum(tl.maximum(place + (tap - TAPS // 2), 0), length - 1)
        value = tl.load(source + size * view + (at + (near - place) * stride), mask=inside, other=0)
        total += value.to(tl.uint32) * tl.load(row + (weights + tap)).to(tl.uint32)
    value = (total >> 24).to(tl.int32)
    if LAST:
        value = tl.where(tl.load(row + _SOLARIZE_BLURRED) > 0, tl.minimum(value, 255 - value), value)
    tl.store(target + size * view + at, value.to(tl.uint8), mask=inside)
