"""The report stage: records in, a page, Markdown, CSV and JSON out."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import jinja2

import triplet
from triplet import files, records
from triplet.methods import Method, load_methods
from triplet.progress import say
from triplet.report.collect import METRICS, Run, collect, scores
from triplet.report.plots import curves

TASKS = {"bbox": "box", "segm": "mask"}
NOISE = 0.3
"""AP by which two runs of the same thing on COCO differ (recipe, section 6)."""


def report() -> None:
    """Write ``reports/`` from every record below the checkpoints, with none, some or all rows there."""
    folder = records.root("reports")
    checkpoints = records.root("checkpoints")
    runs = collect(checkpoints)

    def work(job: records.Job) -> None:
        content = contents(runs, load_methods())
        outputs = {
            "page": ("index.html", _render("page.html.j2", content)),
            "markdown": ("report.md", _render("report.md.j2", content)),
            "csv": ("results.csv", _csv(runs)),
            "json": ("results.json", json.dumps(_flat(runs), indent=1)),
        }
        for name, (file, text) in outputs.items():
            files.write_text(folder / file, text)
            job.outputs[name] = folder / file
        job.results["runs"] = len(runs)

    inputs = {
        f"{run.name}/{stage}": records.stage_folder(run.name, stage) / "record.json"
        for run in runs
        for stage in run.stages
    }
    records.perform("report", folder, config={}, inputs=inputs, work=work, force=True, clear=False)
    say(f"report: {records.portable(folder / 'index.html')} ({len(runs)} runs)")


def contents(runs: list[Run], methods: dict[str, Method]) -> dict[str, Any]:
    """Everything the templates show."""
    own = [run for run in runs if run.experiment == ""]
    experiments = sorted({run.experiment for run in runs} - {""})
    return {
        "version": triplet.__version__,
        "commit": records.commit(),
        "metrics": METRICS,
        "tasks": TASKS,
        "noise": NOISE,
        "paper": [_paper_row(name, method, own) for name, method in methods.items()],
        "experiments": [
            _experiment(name, [run for run in runs if run.experiment == name]) for name in experiments
        ],
        "runs": runs,
    }


def _paper_row(name: str, method: Method, runs: list[Run]) -> dict[str, Any]:
    cells = []
    for task, column in TASKS.items():
        score = scores(runs, name, task, "AP")
        target = getattr(method.readme, column)
        cells.append(
            {
                "readme": target,
                "zoo": getattr(method.zoo, column) if method.zoo else None,
                "ours": score,
                "difference": score.mean - target if score else None,
            }
        )
    return {"name": name, "label": method.label, "cells": cells}


def _experiment(name: str, runs: list[Run]) -> dict[str, Any]:
    """A table of rows that were trained alike, random first, with each row's gain over random."""
    rows = sorted({run.row for run in runs}, key=lambda row: (row != "random", row))
    table = []
    for row in rows:
        gain = _paired_gain(runs, row, "random") if row != "random" else None
        table.append(
            {
                "row": row,
                "seeds": sum(run.row == row and "eval" in run.stages for run in runs),
                "scores": {(t, m): scores(runs, row, t, m) for t in TASKS for m in METRICS},
                "gain": gain,
            }
        )
    return {
        "name": name,
        "rows": table,
        "pretrain": curves(
            [run for run in runs if run.row != "random"], "pretrain",
            {"loss": "loss", "positive_cosine": "cosine of positives", "feature_std": "feature spread"},
        ),
        "finetune": curves(
            runs, "finetune", {"total_loss": "loss", "loss_cls": "classes", "loss_mask": "masks"}
        ),
    }  # fmt: skip


def _paired_gain(runs: list[Run], row: str, base: str) -> Any:
    """Box AP of a row minus that of the base in the same seed, over the seeds that have both."""
    from triplet.report.collect import Score

    by_name = {run.name: run.value("bbox", "AP") for run in runs}
    gains = []
    for run in runs:
        if run.row == row:
            ours = run.value("bbox", "AP")
            theirs = by_name.get(run.name.removesuffix(row) + base)
            if ours is not None and theirs is not None:
                gains.append(ours - theirs)
    return Score(tuple(gains)) if gains else None


def _flat(runs: list[Run]) -> list[dict[str, Any]]:
    """One line for each run, task and metric."""
    return [
        {
            "run": run.name,
            "experiment": run.experiment,
            "row": run.row,
            "seed": run.stages["eval"].seed,
            "task": TASKS[task],
            "metric": metric,
            "value": value,
        }
        for run in runs
        for task in TASKS
        for metric in METRICS
        if (value := run.value(task, metric)) is not None
    ]


def _csv(runs: list[Run]) -> str:
    buffer = io.StringIO()
    columns = ("run", "experiment", "row", "seed", "task", "metric", "value")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(runs))
    return buffer.getvalue()


def _render(template: str, content: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)
