"""Expected AP of a finetuning, from published points (configs/expected.yaml) and this machine's own runs.

A method's AP after another schedule is its published AP at 2x times the share of it that such a schedule
reaches. The share is 1 at 2x by definition. For every other published point, the missing share, divided by
the logarithm of the length in units of 2x, is regressed (scikit-learn's Bayesian ridge) on that logarithm,
on the method's AP at 2x (stronger weights keep more) and on the detector. The division makes the scatter of
short and long schedules alike, as a regression with one standard deviation assumes. Random weights learn
differently and have a regression of their own. ``leave_one_out`` measures the accuracy.

This machine's own runs of about the requested length move the expectation half of the way to their AP, and
widen its interval; they never move a published point.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Any, Literal

import numpy as np

from triplet.config import Settings, parse_file
from triplet.paths import CONFIGS
from triplet.published.methods import load_methods
from triplet.scores import TASKS

PATH = CONFIGS / "expected.yaml"
NOISE = 0.3
"""AP by which two runs of the same recipe on COCO differ. OpenSelfSup's zoo has listed one MoCo v2 file at
40.6/35.3 (commit 892922a) and at 41.0/35.6 (106218c)."""
FULL = 180_000
"""Iterations of the 2x schedule, of 16 images each."""
COVERAGE = 0.8
"""Probability with which an interval should contain the AP of a training."""
QUANTILE = NormalDist().inv_cdf((1 + COVERAGE) / 2)
WIDER = 1.5
"""Factor on an interval for each difference that the published points do not cover. It is a convention:
nobody has measured it."""
CHAINED = 90_000
"""Iterations at which the curves that do not reach FULL end."""
IMAGES = 117_266
"""Images of train2017 that have objects, on which the published runs trained."""
BATCH = 16
"""Images in a step of the published runs, all of which share BN statistics."""
POOL = 8
"""Smallest number of images sharing BN statistics for which no loss of AP is known."""
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
        """Return the AP of a task (0 box, 1 mask) at one of the points; None for another length."""
        return next((point[1 + task] for point in self.points if point[0] == iterations), None)


class Speed(Settings):
    seconds: float
    """Seconds per iteration of 16 images on 8 V100."""


class PublishedCurves(Settings):
    sources: dict[str, str]
    curves: list[Curve]
    undecayed: list[Curve]
    decayed: list[Curve]
    speed: dict[str, Speed]


@dataclass(frozen=True)
class Band:
    """Expected AP in percent."""

    low: float
    mid: float
    high: float

    def __str__(self) -> str:
        return f"{self.mid:.1f} ({self.low:.1f} to {self.high:.1f})"

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def lowered(self, by: float) -> "Band":
        """Lower the lower end by a possible cost in AP."""
        return Band(max(0.0, self.low - by), self.mid, self.high)

    def within(self, other: "Band") -> "Band":
        """Limit the ends and the middle to those of another band."""
        return Band(min(self.low, other.low), min(self.mid, other.mid), min(self.high, other.high))


@dataclass(frozen=True)
class Expected:
    box: Band
    mask: Band
    basis: str
    """Where the expectation comes from, in words."""
    unlike: tuple[str, ...] = ()
    """Differences that the published points do not cover, each of which has widened both bands."""


@dataclass(frozen=True)
class LocalResult:
    """AP of a finetuning on this machine that differs from the recipe only in its length."""

    run: str
    method: str
    iterations: float
    """Iterations, converted to batch 16."""
    reached: tuple[float, float]
    """Box and mask AP."""


@functools.cache
def published() -> PublishedCurves:
    """Read configs/expected.yaml; KitError if it does not fit the schema."""
    return parse_file(PATH, PublishedCurves)


def detector(settings: dict[str, Any]) -> str | None:
    """Return which of the curves' detectors a resolved config of Detectron2 builds: c4, fpn or None."""
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


def expected(
    method: str,
    kind: str,
    iterations: float,
    own: Sequence[LocalResult] = (),
    unlike: Sequence[str] = (),
    recipe: str = "",
) -> Expected | None:
    """Return the expected AP of a method of the table after a schedule that was compressed as a whole.

    Args:
        method: its name in methods.yaml.
        kind: the detector, c4 or fpn.
        iterations: length of the schedule at batch 16.
        own: this machine's runs of the C4 detector, see ``runs.local_results``.
        unlike: known differences from the published runs, such as BN over fewer images; each widens the
            interval.
        recipe: recipe of the training, see ``configs.recipe_of``; by default the method's in the table.

    Returns:
        The expected AP; None if nothing is published for the method.
    """
    full = full_ap(method, kind)
    if not full:
        return None
    used = alike(method == "random")
    recipe = recipe or load_methods()[method].recipe
    unlike = [*_untold(method, kind, iterations, recipe), *unlike]
    box, mask = (
        _band([values[task] for values in full], method, kind, task, iterations, len(unlike))
        for task in range(len(TASKS))
    )
    shortest, _ = lengths(kind, random=method == "random")
    if iterations < shortest and (longer := expected(method, kind, shortest)):
        box, mask = _capped(box, longer.box), _capped(mask, longer.mask)
    sources = sorted({curve.source for curve in used})
    whole = " and ".join(f"{box:.1f} / {mask:.1f}" for box, mask in full)
    basis = f"the published {whole} at 2x, and a regression over {len(used)} published curves"
    basis += f" ({', '.join(sources)})"
    moves = kind == "c4" and not _is_full(iterations)  # what is published is not moved
    near = [run for run in own if moves and 1 / NEAR <= run.iterations / iterations <= NEAR]
    if near:
        box, mask = (_moved(band, near, task) for task, band in enumerate((box, mask)))
        basis += f"; adjusted by {len(near)} of your runs ({', '.join(run.run for run in near)})"
    doubts = [curve.doubt for curve in used if curve.doubt]
    wider = [f"the range is widened by half for each of these, which no curve covers: {'; '.join(unlike)}"]
    mask = mask.within(box)  # far from all points the two regressions may cross
    return Expected(box, mask, "; ".join([basis, *doubts, *(wider if unlike else [])]), tuple(unlike))


def _capped(band: Band, longer: Band) -> Band:
    """Limit a band to the upper end of a longer schedule's band."""
    return Band(band.low, band.mid, max(band.mid, min(band.high, longer.high)))


def _untold(method: str, kind: str, iterations: float, recipe: str) -> Iterator[str]:
    """Yield what the published points do not cover about a training of this length by this recipe."""
    shortest, longest = lengths(kind, random=method == "random")
    if not shortest <= iterations <= longest:
        yield (
            f"this length (the published curves of this detector have {shortest} to {longest} iterations)"
        )
    if recipe == "authors" and not _is_full(iterations):
        yield "this recipe (a cosine from 0.05, where the curves have steps from 0.02)"


def _is_full(iterations: float) -> bool:
    """Return whether a schedule is as long as those of the published AP at 2x."""
    return abs(math.log(FULL / iterations)) <= 0.05


def _moved(band: Band, runs: Sequence[LocalResult], task: int) -> Band:
    """Move a band half of the way to the AP of this machine's runs, and widen it to contain both."""
    theirs = [(run, expected(run.method, "c4", run.iterations)) for run in runs]
    ratio = fmean(run.reached[task] / (found.box, found.mask)[task].mid for run, found in theirs if found)
    half = (1 + ratio) / 2
    return Band(min(band.low, band.low * half), band.mid * half, max(band.high, band.high * half))


def _band(full: Sequence[float], method: str, kind: str, task: int, iterations: float, unlike: int) -> Band:
    """Return a band around the mean AP of the sources at 2x, wide enough for each of them."""
    shares = [(ap, regression(method == "random", task).share(iterations, ap, kind)) for ap in full]
    low = min(ap * share.mid - share.half(ap, unlike) for ap, share in shares)
    high = max(ap * share.mid + share.half(ap, unlike) for ap, share in shares)
    return Band(max(0.0, low), fmean(ap * share.mid for ap, share in shares), high)


@functools.cache
def full_ap(method: str, kind: str) -> list[tuple[float, float]]:
    """Return a method's box and mask AP at FULL: on C4 those of the method's weights, else one pair per
    source."""
    if kind == "c4":
        if (known := load_methods().get(method)) is None:
            return []
        return [(known.of_its_weights.box, known.of_its_weights.mask)]
    found = [curve for curve in published().curves if curve.detector == kind and curve.init == method]
    values = [(curve.at(FULL, 0), curve.at(FULL, 1)) for curve in found]
    return [(box, mask) for box, mask in values if box is not None and mask is not None]


@dataclass(frozen=True)
class Share:
    """Share of the AP at 2x that a schedule reaches."""

    mid: float
    deviation: float
    """Standard deviation of a single training's share."""

    def half(self, full: float, unlike: int = 0) -> float:
        """Return half the width of the interval around ``mid * full``, in AP.

        Args:
            full: AP at 2x, in percent.
            unlike: number of differences that the published points do not cover; each widens the interval.
        """
        return math.hypot(QUANTILE * self.deviation * full, NOISE) * float(WIDER**unlike)


class Regression:
    """Share as a function of length, AP at 2x and detector."""

    def __init__(self, curves: Sequence[Curve], task: int) -> None:
        """Fit the regression.

        Args:
            curves: curves of pretrained weights only, or of random ones only.
            task: 0 box, 1 mask.
        """
        from sklearn.linear_model import BayesianRidge  # a second to import

        self.chain = _chain(curves, task)
        rows, missing = [], []
        for curve in curves:
            for iterations, value, full in points(curve, task, self.chain):
                length = math.log(FULL / iterations)
                rows.append(_features(length, full, curve.detector))
                missing.append((1 - value / full) / length)
        self.model = BayesianRidge().fit(rows, missing)
        self.longest = max(point[0] for curve in curves for point in curve.points)

    def share(self, iterations: float, full: float, detector: str) -> Share:
        """Predict the share after a schedule.

        Args:
            iterations: at batch 16.
            full: AP at 2x, in percent.
            detector: one of the curves'.
        """
        length = math.log(FULL / max(iterations, 1))
        start, slope = self.model.predict([_features(0.0, full, detector)])[0], self.model.coef_[0]
        # Nothing more is gained past the curve's turning point or past the longest published schedule.
        length = max(length, math.log(FULL / self.longest), -start / (2 * slope))
        mean, deviation = self.model.predict([_features(length, full, detector)], return_std=True)
        return Share(max(0.0, 1 - float(mean[0]) * length), float(deviation[0]) * abs(length))


def points(curve: Curve, task: int, chain: float) -> Iterator[tuple[int, float, float]]:
    """Yield iterations, AP, and AP at 2x of a curve; the AP at 2x is derived by ``chain`` if the curve
    lacks it."""
    full, chained = curve.at(FULL, task), curve.at(CHAINED, task)
    base = full or (chained or 0.0) / chain
    for iterations, *values in curve.points:
        known = FULL if full else CHAINED  # this point is no evidence: the others are divided by it
        if base and iterations != known:
            yield iterations, values[task], base


def _chain(curves: Sequence[Curve], task: int) -> float:
    """Return the mean share at CHAINED of the curves that have both lengths."""
    pairs = [(curve.at(CHAINED, task), curve.at(FULL, task)) for curve in curves]
    return fmean(a / b for a, b in pairs if a and b)


def _features(length: float, full: float, detector: str) -> list[float]:
    return [length, full, float(detector == "fpn")]


def alike(random: bool) -> list[Curve]:
    """Return the published curves of random weights, or of all others."""
    return [curve for curve in published().curves if (curve.init == "random") == random]


def lengths(kind: str, *, random: bool) -> tuple[int, int]:
    """Return the shortest and the longest published schedule of a detector, in iterations at batch 16."""
    found = [point[0] for curve in alike(random) if curve.detector == kind for point in curve.points]
    return min(found), max(found)


@functools.cache
def regression(random: bool, task: int) -> Regression:
    """Return the regression over all published curves of one kind; see ``alike``."""
    return Regression(alike(random), task)


def _undecayed(kind: str) -> Curve:
    return next(curve for curve in published().undecayed if curve.detector == kind)


def decays(kind: str) -> int:
    """Return the iterations after which the rate fell in the training behind ``undecayed``."""
    return _undecayed(kind).points[-2][0]


def once_decayed(kind: str) -> tuple[float, float] | None:
    """Return the box and mask AP of a training stopped after its rate fell once, as shares of its final AP;
    None if nothing is published for the detector."""
    for curve in published().decayed:
        if curve.detector == kind:
            (_, *first), (_, *end) = curve.points[0], curve.points[-1]
            return first[0] / end[0], first[1] / end[1]
    return None


def undecayed(kind: str, iterations: float) -> tuple[float, float]:
    """Return the box and mask AP of a training stopped before its rate fell, as shares of its final AP.

    Past the last point before the fall, the AP is that point's, as nothing more is gained there.
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


def ratios(
    kind: str, iterations: float, *, decayed: bool = True, random: bool = False
) -> tuple[float, float]:
    """Return the least and the greatest published ratio of box to mask AP after a schedule.

    Between two published lengths the ratios are interpolated; outside of all lengths they are those of the
    nearest one.

    Args:
        kind: the detector, c4 or fpn.
        iterations: length at batch 16.
        decayed: whether the learning rate fell before the end.
        random: whether the weights are random.
    """
    used = [curve.points for curve in alike(random) if curve.detector == kind]
    points = sorted(itertools.chain(*used) if decayed else _undecayed(kind).points[:-1])
    grid = sorted({point[0] for point in points})
    each = [[box / mask for n, box, mask in points if n == length] for length in grid]
    at = np.log(max(iterations, 1))
    return (
        float(np.interp(at, np.log(grid), [min(values) for values in each])),
        float(np.interp(at, np.log(grid), [max(values) for values in each])),
    )
