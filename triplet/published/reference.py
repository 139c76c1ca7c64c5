"""The published result to compare a finetuning with, and the AP that it implies at other lengths."""

import functools
import re
from dataclasses import dataclass

from triplet.published import curves
from triplet.published.configs import recipes
from triplet.published.curves import FULL, Band
from triplet.published.facts import Facts
from triplet.published.methods import load_methods

SCHEDULES = {"1x": 90_000, "2x": 180_000, "3x": 270_000}
"""Detectron2's schedules, in iterations of 16 images."""
STAND_IN = "moco-v2"
"""Method whose curves show what share of a published result a shorter schedule keeps."""
RATE = 0.02
"""Base learning rate of Detectron2's and mmdetection's R-CNNs for 16 images."""
RETINA_RATE = 0.01
"""Base learning rate of their RetinaNets for 16 images."""


@dataclass(frozen=True)
class Reference:
    """A published result in percent, and how it was reached, as far as known."""

    label: str
    box: float
    mask: float | None
    kind: str = "c4"
    """Detector of the published curves: c4 or fpn."""
    iterations: int = FULL
    """Iterations of 16 images."""
    method: str = ""
    """Method of the table; empty if the weights belong to none."""
    of_table: bool = True
    """Whether box and mask AP are the table's own, reached with its recipe."""

    @classmethod
    def of_method(cls, method: str) -> "Reference":
        """Return the table's result for a method."""
        found = load_methods()[method]
        published = found.of_its_weights
        return cls(found.label, published.box, published.mask, method=method)

    @classmethod
    def of_target(
        cls, target: tuple[float, float | None], facts: Facts, method: str = "", names: str = ""
    ) -> "Reference":
        """Return any published AP as a reference.

        Args:
            target: box and mask AP in percent.
            facts: facts of the run that fell short of it.
            method: method of the table that the weights belong to, if any.
            names: names of config files, which may say 1x, 2x or 3x.
        """
        kind = facts.kind or ("c4" if method else "fpn")
        label = load_methods()[method].label if method else "the target"
        return cls(label, target[0], target[1], kind, _schedule(facts, names), method, of_table=False)

    @property
    def self_supervised(self) -> bool:
        """Whether the weights are those of a self-supervised method."""
        return self.method not in ("", "supervised", "random")

    def expected(self, iterations: float) -> tuple[Band, Band | None]:
        """Return the box and mask AP of the same weights after a schedule, in iterations of 16 images."""
        return _expected(self, iterations)

    def random(self, iterations: float) -> tuple[Band, Band]:
        """Return the box and mask AP of random weights after a schedule, in iterations of 16 images."""
        found = curves.expected("random", self.kind, iterations)
        assert found
        return found.box, found.mask

    def rate(self, facts: Facts) -> float:
        """Return the base learning rate for 16 images that belongs to the run's scheduler."""
        if facts.other.startswith("RetinaNet"):
            return RETINA_RATE
        known = recipes().get(facts.scheduler or "")
        return known[1] if known else RATE


@functools.lru_cache(maxsize=1024)
def _expected(reference: Reference, iterations: float) -> tuple[Band, Band | None]:
    if reference.of_table:
        found = curves.expected(reference.method, "c4", iterations)
        assert found  # every method has a published AP
        return found.box, found.mask
    parts, whole = (
        curves.expected(STAND_IN, reference.kind, min(n, reference.iterations))
        for n in (iterations, reference.iterations)
    )
    assert parts
    assert whole
    box = _scaled(parts.box, reference.box / whole.box.mid)
    return box, _scaled(parts.mask, reference.mask / whole.mask.mid) if reference.mask else None


def _scaled(band: Band, by: float) -> Band:
    return Band(band.low * by, band.mid * by, band.high * by)


def _schedule(facts: Facts, names: str) -> int:
    """Return the iterations of 16 images behind a published result. Users with fewer GPUs often change only
    the batch."""
    if named := re.search(r"(?<![\dx])([123]x)(?![a-z0-9])", names):
        return SCHEDULES[named[1]]
    whole = (facts.planned or 0) * (facts.batch or 16) / 16
    by_epochs = "mmdetection" in facts.other  # a smaller batch has more iterations there
    for planned in (whole if facts.iterations is None or by_epochs else None, facts.planned):
        for length in SCHEDULES.values():
            if planned and abs(planned / length - 1) < 0.03:
                return length
    return next((length for length in SCHEDULES.values() if length >= whole), SCHEDULES["3x"])
