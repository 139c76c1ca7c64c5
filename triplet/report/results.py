"""Every measured number as a flat list, for results.json and results.csv."""

import csv
import io
from collections.abc import Iterator
from typing import Any

from triplet.report.targets import BENCHMARKS, measured
from triplet.runs import METRICS, Run
from triplet.scores import TASKS

COLUMNS = ("run", "experiment", "method", "seed", "table", "task", "metric", "value", "record")


def flat(runs: list[Run]) -> list[dict[str, Any]]:
    """Return one entry per number, with the path of the record that it comes from."""
    return [*_detections(runs), *_others(runs)]


def _detections(runs: list[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for task, label in TASKS.items():
            for metric in METRICS:
                if (value := run.value(task, metric)) is not None:
                    table = "coco" if run.of_the_table else "voc-detection" if run.of_voc else "experiment"
                    yield _number(run, "eval", table, label, metric, value)


def _others(runs: list[Run]) -> Iterator[dict[str, Any]]:
    for table in BENCHMARKS:
        for run, stage, protocol, values in measured(table, runs):
            if stage != "eval":
                for metric in BENCHMARKS[table][1]:
                    if values.get(metric) is not None:
                        yield _number(run, stage, table, protocol, metric, values[metric])


def _number(run: Run, stage: str, table: str, task: str, metric: str, value: float) -> dict[str, Any]:
    record = f"checkpoints/{run.name}/{stage}/record.json"
    seed = run.stages[stage].seed
    found = (run.name, run.experiment, run.method, seed, table, task, metric, value, record)
    return dict(zip(COLUMNS, found, strict=True))


def _plain(value: Any) -> Any:
    """Return a cell that no spreadsheet takes for a formula."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def as_csv(lines: list[dict[str, Any]]) -> str:
    """Format the entries as CSV; text that a spreadsheet would execute begins with an apostrophe."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _plain(value) for key, value in line.items()} for line in lines)
    return buffer.getvalue()
