"""What AP to expect of a finetuning, from published points (configs/expected.yaml) and this machine's own.

A row's AP after a shorter schedule is its published AP at 2x times the share of it that other pretrained
weights kept in such a schedule. The points lie at few lengths: between them the share is interpolated in
the logarithm of the iterations, and its range is that of the points. This machine's own runs of about that
length then move the expectation half of the way to what they reached, and widen its range.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import numpy as np

from triplet.config import Settings, parse_file
from triplet.paths import CONFIGS
from triplet.published.rows import load_methods
from triplet.scores import TASKS

PATH = CONFIGS / "expected.yaml"
NOISE = 0.3
"""AP by which two runs of the same thing on COCO differ."""
FULL = 180_000
"""Iterations of 16 images: the 2x schedule."""
ALONE = 0.05
"""Of the AP at FULL: how far a row may lie from a single published curve."""
CHAINED = 90_000
"""Where curves end that do not reach FULL."""
IMAGES = 117_266
"""Of train2017 that have objects: what the published runs trained on."""
BATCH = 16
"""Images of a step of the published runs, and under their BN."""
NEAR = 2.0
"""A local run informs schedules within this factor of its own length."""


class Curve(Settings):
    """AP of one initialisation after schedules of several lengths."""

    detector: Literal["c4", "fpn"]
    init: str
    source: str
    points: list[tuple[int, float, float]]
    """Iterations at batch 16, box AP, mask AP; ascending."""
    doubt: str = ""

    def at(self, iterations: int, task: int) -> float | None:
        """AP of a task (0 box, 1 mask) at one of its points."""
        return next((point[1 + task] for point in self.points if point[0] == iterations), None)


class Speed(Settings):
    seconds: float
    """Of an iteration of 16 images on 8 V100."""


class PublishedCurves(Settings):
    sources: dict[str, str]
    curves: list[Curve]
    undecayed: list[Curve]
    speed: dict[str, Speed]


@dataclass(frozen=True)
class Band:
    """AP to expect, in percent."""

    low: float
    mid: float
    high: float

    def __str__(self) -> str:
        return f"{self.mid:.1f} ({self.low:.1f} to {self.high:.1f})"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Expected:
    box: Band
    mask: Band
    basis: str
    """Where it comes from, for the reader."""


@dataclass(frozen=True)
class LocalResult:
    """AP that a finetuning on this machine reached, by the recipe but for its length."""

    run: str
    row: str
    iterations: float
    """At batch 16."""
    reached: tuple[float, float]
    """Box and mask AP."""


@functools.cache
def published() -> PublishedCurves:
    """configs/expected.yaml; KitError when it does not fit the schema."""
    return parse_file(PATH, PublishedCurves)


def detector(settings: dict[str, Any]) -> str | None:
    """Which of the curves' detectors a config of Detectron2's builds, resolved: c4, fpn or None."""
    network = settings["MODEL"]
    heads, backbone = network["ROI_HEADS"], network["RESNETS"]
    if not (network["MASK_ON"] and backbone["DEPTH"] == 50 and backbone["STEM_OUT_CHANNELS"] == 64):
        return None
    if heads["NUM_CLASSES"] != 80 or network["META_ARCHITECTURE"] != "GeneralizedRCNN":
        return None
    if heads["NAME"].startswith("Res5ROIHeads"):
        return "c4"
    fpn = network["BACKBONE"]["NAME"] == "build_resnet_fpn_backbone" and not network["KEYPOINT_ON"]
    return "fpn" if fpn else None


def expected(row: str, kind: str, iterations: float, own: Sequence[LocalResult] = ()) -> Expected | None:
    """AP of a row of the table after a schedule that was compressed as a whole.

    Args:
        row: its name in methods.yaml.
        kind: of detector, c4 or fpn.
        iterations: at batch 16.
        own: this machine's runs of the C4 detector, see ``runs.local_results``.

    Returns:
        None where nothing is published of the row.
    """
    full = full_ap(row, kind)
    if not full:
        return None
    curves = published().curves
    if row == "random":
        used = [curve for curve in curves if curve.init == "random" and curve.detector == kind]
    else:
        used = [
            curve
            for curve in curves
            if curve.init != "random" and (curve.detector == kind or curve.source == "budgeted")
        ]
    box, mask = (
        _band([values[task] for values in full], share(used, task, iterations))
        for task in range(len(TASKS))
    )
    lengths = sorted({point[0] for curve in used for point in curve.points})
    sources = sorted({curve.source for curve in used})
    whole = " and ".join(f"{box:.1f} / {mask:.1f}" for box, mask in full)
    basis = f"its published {whole} at 2x, and {len(used)} published curves at {len(lengths)} lengths"
    basis += f" ({', '.join(sources)})"
    if not lengths[0] <= iterations <= lengths[-1]:
        basis += "; nothing was published of such a length: the nearest one stands for it"
    near = [run for run in own if kind == "c4" and 1 / NEAR <= run.iterations / iterations <= NEAR]
    if near:
        box, mask = (_moved(band, near, task) for task, band in enumerate((box, mask)))
        basis += f"; moved by {len(near)} of your runs ({', '.join(run.run for run in near)})"
    doubts = [curve.doubt for curve in used if curve.doubt]
    return Expected(box, mask, "; ".join([basis, *doubts]))


def _moved(band: Band, runs: Sequence[LocalResult], task: int) -> Band:
    """A band half of the way to where own runs lie relative to theirs, and wide enough for both."""
    theirs = [(run, expected(run.row, "c4", run.iterations)) for run in runs]
    ratio = fmean(run.reached[task] / (found.box, found.mask)[task].mid for run, found in theirs if found)
    half = (1 + ratio) / 2
    return Band(min(band.low, band.low * half), band.mid * half, max(band.high, band.high * half))


def _band(full: Sequence[float], part: tuple[float, float, float]) -> Band:
    low, mid, high = part
    return Band(max(0.0, min(full) * low - NOISE), fmean(full) * mid, max(full) * high + NOISE)


@functools.cache
def full_ap(row: str, kind: str) -> list[tuple[float, float]]:
    """Box and mask AP of a row at FULL: of C4 as the table has them, else as each source has."""
    if kind == "c4":
        method = load_methods().get(row)
        return [(method.readme.box, method.readme.mask)] if method else []
    found = [curve for curve in published().curves if curve.detector == kind and curve.init == row]
    values = [(curve.at(FULL, 0), curve.at(FULL, 1)) for curve in found]
    return [(box, mask) for box, mask in values if box is not None and mask is not None]


def share(curves: Sequence[Curve], task: int, iterations: float) -> tuple[float, float, float]:
    """Lowest, mean and highest part of the AP at FULL that schedules of a length reach.

    Curves that end at CHAINED are continued by what the others gain from there to FULL. Only lengths with
    three curves or more tell how far initialisations lie apart; where there are none, ALONE is taken.
    """
    pairs = [(curve.at(CHAINED, task), curve.at(FULL, task)) for curve in curves]
    chain = fmean(a / b for a, b in pairs if a is not None and b is not None)
    found: dict[int, list[float]] = {}
    for curve in curves:
        full, chained = curve.at(FULL, task), curve.at(CHAINED, task)
        base = full or (chained or 0.0) / chain
        for point in curve.points if base else ():
            found.setdefault(point[0], []).append(point[1 + task] / base)

    def between(values: dict[int, float]) -> float:
        grid = sorted(values)
        return float(np.interp(np.log(max(iterations, 1)), np.log(grid), [values[n] for n in grid]))

    mid = between({n: fmean(parts) for n, parts in found.items()})
    several = {n: parts for n, parts in found.items() if len(parts) > 2}
    down, up = (
        between({n: abs(pick(parts) - fmean(parts)) for n, parts in several.items()}) if several else ALONE
        for pick in (min, max)
    )
    return (0.0 if iterations < min(found) else mid - down), mid, mid + up


def _undecayed(kind: str) -> Curve:
    return next(curve for curve in published().undecayed if curve.detector == kind)


def decays(kind: str) -> int:
    """Iterations after which the rate fell in the training that ``undecayed`` knows."""
    return _undecayed(kind).points[-2][0]


def undecayed(kind: str, iterations: float) -> tuple[float, float]:
    """Box and mask AP of a training stopped before its rate fell, in parts of its end's.

    Past the last point before the rate fell it is that point's: nothing is gained there any more.
    """
    curve = _undecayed(kind)
    grid = np.log([point[0] for point in curve.points[:-1]])
    end = curve.points[-1]
    box, mask = (
        float(np.interp(np.log(max(iterations, 1)), grid, [point[1 + task] for point in curve.points[:-1]]))
        / end[1 + task]
        for task in (0, 1)
    )
    return box, mask
