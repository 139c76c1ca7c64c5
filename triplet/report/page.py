"""The HTML page: one file of at most LARGEST bytes that needs no network."""

import base64
import bisect
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from triplet.records import Record
from triplet.report import compare, tables
from triplet.report.coco import machine
from triplet.report.compare import Comparison
from triplet.report.costs import RunCost
from triplet.report.pictures import Picture, pictures
from triplet.report.plots import Plot
from triplet.report.tables import Grid
from triplet.runs import Run
from triplet.scores import TASKS

LARGEST = 2_000_000
"""Largest size of the page in bytes."""
HERE = Path(__file__).parent
FEW = 4
"""Number of runs up to which their parts of the page start unfolded."""


@dataclass(frozen=True)
class StageCard:
    """One stage of a run, shown as a link of the run's chain."""

    name: str
    time: str
    cost: str
    rate: str
    sha: str
    """Shortened hash of the stage's first output."""
    link: str
    """Anchor of the stage's record."""


@dataclass(frozen=True)
class RunPart:
    """The page's part on one run."""

    run: Run
    anchor: str
    summary: str
    cards: list[StageCard]
    deviations: Grid
    records: Grid | None
    """Table of the records; None where the page would be too large."""
    plots: list[str]
    """Names of the figures that show the run."""
    why: str
    """Anchor of the causes that may explain the run's shortfall."""


def page(
    content: dict[str, Any],
    runs: list[Run],
    figures: Sequence[Plot],
    known: Mapping[str, Record],
    compared: Sequence[Comparison] = (),
) -> str:
    """Render the HTML. To fit the size, pictures are left out first, then records, single runs, and
    figures."""
    shown: list[Picture] = pictures(runs)
    comparisons = [comparison(each, figures) for each in compared]
    lacking = [part for grid in content["targets"] if (part := grid.part(missing=True)).rows]
    there = any(cell.link for grid in content["coco"] for row in grid.rows for cell in row[3:4])
    coco = [[grid.part(missing=each) for grid in content["coco"]] for each in (False, True)]
    measured = [part for grid in content["targets"] if (part := grid.part(missing=False)).rows]
    fixed = {
        "recipes": [filled(grid) for grid in content["recipes"]],
        "recipes_there": any(run.of_the_table for run in runs),
        "experiments": [filled(grid) for grid in content["experiments"]],
        "seeds": filled(content["seeds"]),
        "targets": [filled(grid) for grid in measured],
        "costs": [filled(grid) for grid in content["costs"]],
        "coco_there": coco[0] if there else [],
        "coco_missing": [grid for grid in (coco[1] if there else content["coco"]) if grid.rows],
        "targets_missing": lacking,
        "targets_command": tables.commands(lacking),
        "missing_command": content["missing"],
        "released": filled(content["deviations"].of("the release")),
        "few": len(runs) <= FEW,
        "comparisons": comparisons,
        "others": tables.of_others(runs, known),
    }
    whole = [run_part(run, content, figures, known) for run in runs]
    by_size = sorted(figures, key=lambda plot: len(plot.svg))

    @functools.cache
    def cut(some: int, with_records: int, with_parts: int, drawn: int) -> str:
        bare = [replace(part, records=None) for part in whole[with_records:with_parts]]
        names = {plot.name for plot in by_size[:drawn]}
        more = {
            "pictures": shown[:some],
            "parts": whole[:with_records] + bare,
            "gone": {tables.anchor(run.name) for run in runs[with_parts:]},
            "left_out": len(runs) - with_records,
            "runs_left_out": len(runs) - with_parts,
            "plots": {plot.name: plot for plot in figures if plot.name in names},
        }
        return render("page.html.j2", {**content, **fixed, **more})

    def fits(held: tuple[int, int, int, int]) -> bool:
        return held == cuts[-1] or len(cut(*held).encode()) <= LARGEST

    cuts = _cuts(len(shown), len(runs), len(figures))
    return cut(*cuts[0 if fits(cuts[0]) else bisect.bisect_left(cuts, True, lo=1, key=fits)])


def _cuts(pictures: int, runs: int, figures: int) -> list[tuple[int, int, int, int]]:
    """Return what the page may hold, from everything to nothing: pictures, runs with their records, runs
    with a part of their own, and figures."""
    cuts = [(pictures >> n, runs, runs, figures) for n in range(pictures.bit_length())]
    cuts += [(0, runs >> 2 * n, runs, figures) for n in range((runs.bit_length() + 1) // 2)]
    cuts += [(0, 0, runs >> n, figures) for n in range(runs.bit_length())]
    return cuts + [(0, 0, 0, number) for number in range(figures, -1, -1)]


def filled(grid: Grid) -> Grid:
    """Return a table without the columns that are empty in every row."""
    kept = [
        i
        for i in range(len(grid.columns))
        if i == 0 or any(row[i].text != tables.NONE for row in grid.rows) or not grid.rows
    ]
    columns = [grid.columns[i] for i in kept]
    return replace(grid, columns=columns, rows=[[row[i] for i in kept] for row in grid.rows])


def run_part(
    run: Run, content: Mapping[str, Any], figures: Sequence[Plot], known: Mapping[str, Record]
) -> RunPart:
    """Collect one run's chain of stages, deviations, records and figures."""
    spent = {cost.stage: cost for cost in content["spent"] if cost.run == run.name}
    numbers = [
        f"{label} AP {value:.1f}"
        for task, label in TASKS.items()
        if (value := run.value(task, "AP")) is not None
    ]
    done = ", ".join(numbers) or f"no evaluation yet; done: {', '.join(run.stages)}"
    own = {name: each for name, each in known.items() if name.startswith(f"checkpoints/{run.name}/")}
    records = tables.of_records(run, own)
    lines = [
        plot.name
        for plot in figures
        if plot.live
        and any(s.get("run") == run.name for panel in plot.live["panels"] for s in panel["series"])
    ]
    cause = next((line.cause for line in content["lines"] if run.name in line.runs and line.cause), "")
    cards = [_card(run, stage, record, spent[stage]) for stage, record in run.stages.items()]
    own_deviations = filled(content["deviations"].of(run.name))
    why = tables.why(cause) if cause else ""
    return RunPart(run, tables.anchor(run.name), done, cards, own_deviations, records, lines, why)


def _card(run: Run, stage: str, record: Record, cost: RunCost) -> StageCard:
    units = ((3600, "h"), (60, "min"), (1, "s"))
    size, unit = next((each for each in units if record.seconds >= each[0]), units[-1])
    time = f"{record.seconds / size:.1f} {unit}"
    spent = machine([cost.gpu] if cost.gpu else [], cost.gpus)
    if cost.gpus:
        spent += f", {cost.gpu_hours:.1f} GPU h"
    if cost.measured is not None:
        spent += f", {cost.measured:.1f} kWh by the GPUs' counters"
    elif cost.energy is not None:
        spent += f", at most {cost.energy:.1f} kWh"
    rate = f"{record.images_per_second:.0f} images/s" if record.images_per_second else ""
    sha = next(iter(record.outputs.values())).sha256[:12] if record.outputs else ""
    return StageCard(stage, time, spent, rate, sha, f"record-{tables.slug(f'{run.name}/{stage}')}")


def comparison(each: Comparison, figures: Sequence[Plot]) -> dict[str, Any]:
    """Collect the page's part on one group of methods: the two shown first, and the numbers of all; or the
    numbers of the only one."""
    task = each.tasks[0]
    return {
        "name": each.name,
        "title": each.heading,
        "first": each.first,
        "base": each.base,
        "alone": each.alone,
        "left_out": each.left_out,
        "sentence": compare.sentence(each, task),
        "what": compare.WHAT,
        "sizes": compare.of_sizes(each, task),
        "categories": compare.of_categories(each, task),
        "paired": compare.of_pairs(each),
        "data": None if each.alone else compare.data(each),
        "plot": next((plot for plot in figures if plot.name == f"precision-{each.name}"), None),
    }


def render(template: str, content: dict[str, Any]) -> str:
    """Render a template of this folder with its styles and scripts, whose hashes stand in the page's
    policy."""
    scripts = ["\n" + (HERE / name).read_text() for name in ("uplot/uPlot.iife.min.js", "page.js")]
    hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts]
    policy = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        _templates()
        .get_template(template)
        .render(**content, scripts=scripts, policy=policy, slug=tables.slug, anchor=tables.anchor)
    )


@functools.cache
def _templates() -> jinja2.Environment:
    """Return this folder's templates, each of which is compiled once in a process."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
