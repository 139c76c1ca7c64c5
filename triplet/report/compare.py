"""Two methods side by side: AP by category, size and recall, and whether the choice of images could explain
the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from triplet import paths, untrusted
from triplet.analysis import ANALYSIS, Analysis, TaskAnalysis
from triplet.progress import say
from triplet.report import plots
from triplet.report.plots import Plot
from triplet.report.tables import NONE, Cell, Grid, number, slug
from triplet.runs import Run
from triplet.scores import LABELS

LIKELY = 95
"""Percentage of the draws that an interval contains."""
MOST = 24
"""Most methods in a comparison, which keeps its numbers below 150 kB."""
WHAT = (
    "From the evaluator's own arrays; with several seeds, means over them. The interval: AP of both "
    "over the same 1000 draws of images, with replacement, and the middle 95 % of the differences. It "
    "tells how far the choice of images matters, not how far another training would differ."
)
HIGHER = "higher on nearly every draw of images: which images were evaluated does not explain it"
LOWER = "lower on nearly every draw of images: which images were evaluated does not explain it"
OPEN = "the interval holds 0: these images cannot tell the two apart"


@dataclass(frozen=True)
class Difference:
    """AP of one method minus that of another, with its interval over resampled images."""

    value: float
    low: float
    high: float

    @property
    def meaning(self) -> str:
        """Say what the interval means."""
        if self.low > 0:
            return HIGHER
        if self.high < 0:
            return LOWER
        return OPEN

    def text(self) -> str:
        return f"{self.value:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class Comparison:
    """Methods that were evaluated on the same images."""

    name: str
    title: str
    methods: dict[str, dict[str, list[TaskAnalysis]]]
    """Label -> task -> one analysis per seed."""
    first: str
    """The method that the page shows first, compared with ``base``."""
    base: str
    tasks: list[str] = field(default_factory=list)

    @property
    def heading(self) -> str:
        """Title of the group of methods."""
        return "COCO's table" if self.title == "table" else self.title


def read(run: Run) -> Analysis | None:
    """Read the analysis that a run's evaluation wrote; None if there is none, or it is gone or damaged."""
    record = run.stages.get("eval")
    if record is None or ANALYSIS not in record.outputs:
        return None
    path = paths.local(record.outputs[ANALYSIS].path)
    try:
        return Analysis.model_validate_json(untrusted.read_bytes(path, untrusted.RECORD, "analysis"))
    except FileNotFoundError:
        return None
    except ValidationError:
        say(f"{path} is damaged and left out; evaluate again with FORCE=1")
        return None


def comparisons(groups: Mapping[str, Sequence[Run]]) -> list[Comparison]:
    """Return a comparison for each group of runs of which at least one has an analysis."""
    found = []
    for title, runs in groups.items():
        known = [(run, analysis.root) for run in runs if (analysis := read(run)) and analysis.root]
        if not known:
            continue
        like = _key(known[0][1])
        methods: dict[str, dict[str, list[TaskAnalysis]]] = {}
        for run, tasks in known:
            if _key(tasks) == like and (run.label in methods or len(methods) < MOST):
                for task, each in tasks.items():
                    methods.setdefault(run.label, {}).setdefault(task, []).append(each)
        labels = list(methods)
        first = next((label for label in labels if label.rpartition("/")[2] == "triplet"), labels[0])
        others = [label for label in labels if label != first]
        wanted = ("supervised", "random")
        base = next((o for name in wanted for o in others if o.rpartition("/")[2] == name), None)
        tasks_ = [task for task in LABELS if task in methods[first]]
        found.append(Comparison(slug(title), title, methods, first, base or (others or [first])[0], tasks_))
    return found


def _key(tasks: Mapping[str, TaskAnalysis]) -> list[Any]:
    """Return what must be equal for two runs to be compared image by image."""
    return [
        (
            task,
            each.draws,
            each.images,
            each.categories,
            [*each.by_size, *each.precision],
            len(each.resampled),
        )
        for task, each in tasks.items()
    ]


def ap(analyses: Sequence[TaskAnalysis], size: str = "all") -> list[float | None]:
    """Return AP by category, averaged over seeds."""
    by_seed = zip(*(each.by_size[size] for each in analyses), strict=True)
    return [
        float(np.mean(known)) if (known := [v for v in values if v is not None]) else None
        for values in by_seed
    ]


def mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def difference(ours: Sequence[TaskAnalysis], theirs: Sequence[TaskAnalysis]) -> Difference | None:
    """Return one method's AP minus another's, averaged over seeds; None if one has no objects or no
    draws."""
    one, other = mean(ap(ours)), mean(ap(theirs))
    drawn = [np.mean([each.resampled for each in analyses], 0) for analyses in (ours, theirs)]
    if one is None or other is None or not drawn[0].size:
        return None
    rest = (100 - LIKELY) / 2
    low, high = np.percentile(drawn[0] - drawn[1], [rest, 100 - rest])
    return Difference(one - other, float(low), float(high))


def curve(analyses: Sequence[TaskAnalysis], iou: str) -> list[float]:
    """Return the precision at each of COCO's recalls, averaged over seeds."""
    return [float(value) for value in np.mean([each.precision[iou] for each in analyses], 0)]


def of_pairs(comparison: Comparison) -> Grid:
    """Return the table of every method compared with the base, boxes and masks."""
    grid = Grid(
        f"paired-{comparison.name}",
        f"{comparison.heading}: each method less {comparison.base}, on the same images",
        WHAT,
        ("Method", "task", "AP − base", "95 % interval over images", "what it means"),
    )
    base = comparison.methods[comparison.base]
    for label, tasks in comparison.methods.items():
        for task in comparison.tasks:
            if label == comparison.base or task not in tasks or task not in base:
                continue
            if found := difference(tasks[task], base[task]):
                interval = Cell(f"{found.low:+.1f} to {found.high:+.1f}", found.low)
                cells = [Cell(label), Cell(LABELS[task], kind="word"), number(found.value, "+.1f", "ours")]
                grid.rows.append([*cells, interval, Cell(found.meaning, kind="prose")])
    return grid


def of_categories(comparison: Comparison, task: str) -> Grid:
    """Return each category's AP of the first method and the base, and the difference, largest loss
    first."""
    ours, theirs = comparison.methods[comparison.first][task], comparison.methods[comparison.base][task]
    names, one, other = ours[0].categories, ap(ours), ap(theirs)
    rows = [
        (name, a, b, None if a is None or b is None else a - b)
        for name, a, b in zip(names, one, other, strict=True)
    ]
    rows.sort(key=lambda row: (row[3] is None, row[3] or 0.0))
    return Grid(
        f"by-category-{comparison.name}",
        f"{comparison.heading}: AP by category",
        "",
        ("Category", "first", "second", "first − second"),
        [[Cell(name), number(a), number(b), number(d, "+.1f")] for name, a, b, d in rows],
    )


def of_sizes(comparison: Comparison, task: str) -> Grid:
    """Return the table of AP by size of the objects."""
    ours, theirs = comparison.methods[comparison.first][task], comparison.methods[comparison.base][task]
    grid = Grid(
        f"by-size-{comparison.name}",
        f"{comparison.heading}: AP by size",
        "",
        ("Objects", "first", "second", "first − second"),
    )
    for size in ours[0].by_size:
        a, b = mean(ap(ours, size)), mean(ap(theirs, size))
        apart = None if a is None or b is None else a - b
        grid.rows.append([Cell(size), number(a), number(b), number(apart, "+.1f")])
    return grid


def sentence(comparison: Comparison, task: str) -> str:
    """Say the paired difference of the two methods that are shown."""
    found = difference(
        comparison.methods[comparison.first][task], comparison.methods[comparison.base][task]
    )
    return f"{found.text()} {LABELS[task]} AP: {found.meaning}." if found else NONE


def precision(comparison: Comparison) -> Plot:
    """Plot precision over recall of every method, boxes and masks, at both IoU."""
    panels = {
        f"{LABELS[task]}, IoU {float(iou):.2f}": {
            label: curve(each[task], iou) for label, each in comparison.methods.items() if task in each
        }
        for task in comparison.tasks
        for iou in next(iter(comparison.methods.values()))[task][0].precision
    }
    name = f"precision-{comparison.name}"
    return plots.precision(panels, name, "Precision in percent over recall, the mean over categories.")


def data(comparison: Comparison) -> dict[str, Any]:
    """Return the numbers of all methods, of which the page's script can show any two."""
    labels = list(comparison.methods)
    tasks = {}
    for task in comparison.tasks:
        methods = {label: each[task] for label, each in comparison.methods.items() if task in each}
        first = next(iter(methods.values()))[0]
        pairs = {}
        for i, one in enumerate(labels):
            for j, other in enumerate(labels[:i]):
                if (
                    one in methods
                    and other in methods
                    and (found := difference(methods[one], methods[other]))
                ):
                    pairs[f"{i}-{j}"] = [round(v, 2) for v in (found.value, found.low, found.high)]
        sizes = list(first.by_size)
        values = {
            label: [[None if v is None else round(v, 2) for v in ap(each, size)] for size in sizes]
            for label, each in methods.items()
        }
        tasks[task] = {
            "label": LABELS[task],
            "categories": first.categories,
            "sizes": sizes,
            "ap": [values.get(label) for label in labels],
            "pairs": pairs,
        }
    return {
        "labels": labels,
        "tasks": tasks,
        "meanings": {"higher": HIGHER, "lower": LOWER, "open": OPEN},
        "first": labels.index(comparison.first),
        "second": labels.index(comparison.base),
    }
