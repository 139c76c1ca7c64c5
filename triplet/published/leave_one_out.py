"""Accuracy of the expected AP: each published curve against the prediction of all other curves.

``python -m triplet.published.leave_one_out`` rewrites benchmarks/results/expected.json.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from triplet.paths import CONFIGS
from triplet.published.curves import COVERAGE, FULL, Curve, Regression, alike, points
from triplet.scores import TASKS

PATH = CONFIGS.parent / "benchmarks" / "results" / "expected.json"


@dataclass(frozen=True)
class LeftOut:
    """A published point against the prediction of the other curves."""

    curve: Curve
    iterations: int
    task: int
    error: float
    """Expected minus published AP."""
    half: float
    """Half the width of the interval, in AP."""

    @property
    def covered(self) -> bool:
        return abs(self.error) <= self.half


def leave_one_out() -> list[LeftOut]:
    """Predict every curve of pretrained weights with a published AP at 2x, point by point, from the other
    curves."""
    curves, found = alike(random=False), []
    for task in range(len(TASKS)):
        for curve in curves:
            if curve.at(FULL, task) is None:
                continue
            fitted = Regression([other for other in curves if other is not curve], task)
            for iterations, value, full in points(curve, task, fitted.chain):
                share = fitted.share(iterations, full, curve.detector)
                found.append(LeftOut(curve, iterations, task, share.mid * full - value, share.half(full)))
    return found


def summary() -> dict[str, Any]:
    """Summarise errors and coverage of ``leave_one_out`` by task and length, for
    benchmarks/results/expected.json."""
    left: dict[str, Any] = {}
    everything = leave_one_out()
    for task, name in enumerate(TASKS.values()):
        of_task = [each for each in everything if each.task == task]
        lengths = sorted({each.iterations for each in of_task})
        left[name] = {
            **{
                str(length): _errors([each for each in of_task if each.iterations == length])
                for length in lengths
            },
            "all": _errors(of_task),
        }
    return {
        "command": "python -m triplet.published.leave_one_out",
        "curves": len(alike(random=False)),
        "interval": COVERAGE,
        "left_out": left,
    }


def _errors(left: Sequence[LeftOut]) -> dict[str, float]:
    errors = [abs(each.error) for each in left]
    return {
        "points": len(left),
        "median_error": round(median(errors), 2),
        "largest_error": round(max(errors), 2),
        "bias": round(fmean(each.error for each in left), 2),
        "coverage": round(fmean(each.covered for each in left), 2),
        "half_interval": round(fmean(each.half for each in left), 2),
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(summary(), indent=1) + "\n")
