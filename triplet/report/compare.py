"""COCO's analyses of a method, or of two side by side: AP by category, size and recall, and whether the
choice of images could explain a difference."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from triplet import paths, untrusted
from triplet.analysis import ANALYSIS, Analysis, TaskAnalysis
from triplet.progress import say
from triplet.report import plots
from triplet.report.coco import schedule
from triplet.report.plots import Plot
from triplet.report.tables import NONE, Cell, Grid, anchor, formatted, measured, number, slug
from triplet.runs import METRICS, Run, score
from triplet.runs import groups as alike
from triplet.scores import LABELS, TASKS

LIKELY = 95
"""Percentage of the draws that an interval contains."""
MOST = 24
"""Most methods in a comparison, which keeps its numbers below 150 kB."""
WHAT = (
    "From the evaluator's own arrays; with several seeds, means over them. The interval: AP of both "
    "over the same 1000 draws of images, with replacement, and the middle 95 % of the differences. It "
    "tells how far the choice of images matters, not how far another training would differ."
)
SEEDS = (
    "Runs that differ in nothing but the seed: mean ± standard deviation, then each run, with its AP less "
    f"that of the first run on the same draws of images and the interval of the middle {LIKELY} %. Where "
    "the interval holds 0, these images cannot tell the two runs apart."
)
APART = "first − second"
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
        value, low, high = (formatted(each) for each in (self.value, self.low, self.high))
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Comparison:
    """Methods, or the seeds of a single method, that were evaluated on the same images."""

    name: str
    title: str
    methods: dict[str, dict[str, list[TaskAnalysis]]]
    """Label of the method, or name of the run -> task -> one analysis per seed."""
    first: str
    """The method that the page shows first, compared with ``base``; equal to ``base`` if it is alone."""
    base: str
    tasks: list[str] = field(default_factory=list)
    runs: dict[str, dict[str, TaskAnalysis]] = field(default_factory=dict)
    """Name of the run -> task -> its analysis."""
    left_out: list[str] = field(default_factory=list)
    """Runs that were evaluated on other images or classes, or are too many."""

    @property
    def heading(self) -> str:
        """Title of the group of methods."""
        return "COCO's table" if self.title == "table" else self.title

    @property
    def alone(self) -> bool:
        """Whether there is nothing to compare the first method with."""
        return self.first == self.base


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
    """Return a comparison for each group of runs of which at least one has an analysis.

    Seeds of one method are averaged. Where a group has a single method, its seeds are compared instead.
    """
    found = []
    for title, runs in groups.items():
        known = [(run, analysis.root) for run in runs if (analysis := read(run)) and analysis.root]
        if not known:
            continue
        by_seed = len({run.label for run, _ in known}) == 1
        like = _key(known[0][1])
        methods: dict[str, dict[str, list[TaskAnalysis]]] = {}
        compared = {}
        for run, tasks in known:
            label = run.name if by_seed else run.label
            if _key(tasks) == like and (label in methods or len(methods) < MOST):
                compared[run.name] = tasks
                for task, each in tasks.items():
                    methods.setdefault(label, {}).setdefault(task, []).append(each)
        first, base = _shown(list(methods))
        there = [task for task in LABELS if task in methods[first]]
        rest = [run.name for run, _ in known if run.name not in compared]
        found.append(Comparison(slug(title), title, methods, first, base, there, compared, rest))
    return found


def _shown(labels: Sequence[str]) -> tuple[str, str]:
    """Choose the method that is shown first, and the one to compare it with."""
    first = next((label for label in labels if label.rpartition("/")[2] == "triplet"), labels[0])
    others = [label for label in labels if label != first]
    wanted = ("supervised", "random")
    base = next((o for name in wanted for o in others if o.rpartition("/")[2] == name), None)
    return first, base or (others or [first])[0]


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
                interval = Cell(f"{formatted(found.low)} to {formatted(found.high)}", found.low)
                cells = [Cell(label), Cell(LABELS[task], kind="word"), number(found.value, "+.1f", "ours")]
                grid.rows.append([*cells, interval, Cell(found.meaning, kind="prose")])
    return grid


def of_categories(comparison: Comparison, task: str) -> Grid:
    """Return each category's AP of the first method and the base, and the difference, largest loss first;
    of a single method, its AP by every task, the lowest first."""
    grid = _beside(
        comparison, task, "category", lambda seeds: dict(zip(seeds[0].categories, ap(seeds), strict=True))
    )
    by = 1 if comparison.alone else -1
    grid.rows.sort(key=lambda row: (row[by].value is None, row[by].value or 0.0))
    return grid


def of_sizes(comparison: Comparison, task: str) -> Grid:
    """Return the table of AP by size of the objects; of a single method, by every task."""
    return _beside(
        comparison, task, "size", lambda seeds: {size: mean(ap(seeds, size)) for size in seeds[0].by_size}
    )


def _beside(
    comparison: Comparison,
    task: str,
    by: str,
    values: Callable[[Sequence[TaskAnalysis]], dict[str, float | None]],
) -> Grid:
    """Return a table of the first method and the base beside each other, or of a single method's tasks.

    Args:
        comparison: the methods.
        task: the task in which two methods are compared.
        by: category or size.
        values: returns AP by that, averaged over seeds.
    """
    first = comparison.methods[comparison.first]
    title = f"{comparison.heading}: {LABELS[task]} AP by {by}"
    if comparison.alone:
        title = f"{comparison.heading}: AP by {by}"
        columns = {f"{LABELS[each]} AP": values(first[each]) for each in comparison.tasks}
    else:
        ours, theirs = values(first[task]), values(comparison.methods[comparison.base][task])
        apart = {
            name: None if value is None or (other := theirs[name]) is None else value - other
            for name, value in ours.items()
        }
        columns = {comparison.first: ours, comparison.base: theirs, APART: apart}
    rows = [
        [
            Cell(name),
            *(number(of.get(name), "+.1f" if column == APART else ".1f") for column, of in columns.items()),
        ]
        for name in next(iter(columns.values()))
    ]
    heading = {"size": "Objects", "category": "Category"}[by]
    return Grid(f"by-{by}-{comparison.name}", title, "", (heading, *columns), rows)


def tables_of(comparison: Comparison) -> list[Grid]:
    """Return the tables of every task by size and by category, and those of all pairs, if there are any."""
    tasks = comparison.tasks[:1] if comparison.alone else comparison.tasks
    found = [of(comparison, task) for task in tasks for of in (of_sizes, of_categories)]
    return found if comparison.alone else [of_pairs(comparison), *found]


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


def of_seeds(runs: Sequence[Run], comparison: Comparison | None) -> Grid:
    """Return the table of those results of COCO's table that have several seeds: mean and deviation, then
    each run, and its difference from the first one over the same draws of images.

    Args:
        runs: the runs of COCO's table.
        comparison: theirs, if one of them has an analysis.
    """
    analyses = comparison.runs if comparison else {}
    paired = [f"{label} AP − first run" for label in TASKS.values()]
    columns = [
        "Run",
        "seeds",
        *(f"{label} {metric}" for label in TASKS.values() for metric in METRICS),
        *paired,
    ]
    grid = Grid("seeds", "Seeds of the paper's table", SEEDS, columns)
    for group in alike([*runs]):
        if len(group) == 1:
            continue
        named = f"{group[0].label}, {schedule(group[0].iterations)}"
        for title, members in [(named, group), *((run.name, [run]) for run in group)]:
            cells = [
                measured(score([run.value(task, metric) for run in members]), [run.name for run in members])
                for task in TASKS
                for metric in METRICS
            ]
            ours, first = (analyses.get(name, {}) for name in (title, group[0].name))
            apart = [
                difference([ours[task]], [first[task]])
                if title != group[0].name and task in ours and task in first
                else None
                for task in TASKS
            ]
            cells += [Cell(each.text(), each.value) if each else Cell() for each in apart]
            link = "" if members is group else anchor(title)
            grid.rows.append([Cell(title, link=link), number(len(members), "d"), *cells])
    return grid
