"""Records in, comparable results out."""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from triplet import records
from triplet.records import Record

STAGES = ("pretrain", "convert", "finetune", "eval")
METRICS = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Run:
    """A row of a table in one seed: the records of its stages.

    Its folder below checkpoints/ is ``[experiment/][seed<N>/]row``. Runs of the paper's table itself
    have no experiment: ``triplet``, ``seed1/triplet``.
    """

    name: str
    stages: dict[str, Record]

    @property
    def row(self) -> str:
        """Which row of the table it is."""
        return self.name.rpartition("/")[2]

    @property
    def experiment(self) -> str:
        """What it may be compared with; '' for the paper's table."""
        parts = self.name.split("/")[:-1]
        return "/".join(part for part in parts if not re.fullmatch(r"seed\d+", part))

    def value(self, task: str, metric: str) -> float | None:
        """AP in percent: task bbox or segm; None if it was not evaluated."""
        evaluated = self.stages.get("eval")
        return evaluated.results.get(task, {}).get(metric) if evaluated else None

    @property
    def seconds(self) -> float:
        """Of all its stages."""
        return sum(record.seconds for record in self.stages.values())


@dataclass(frozen=True)
class Score:
    """A number over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.1f}" if self.deviation is not None else ""
        return f"{self.mean:.1f}{spread}"


def collect(checkpoints: Path) -> list[Run]:
    """Every run below the checkpoints that has at least one finished stage, by name."""
    found: dict[str, dict[str, Record]] = {}
    for path in sorted(checkpoints.rglob("record.json")):
        stage = path.parent.name
        record = records.read(path.parent)
        if stage in STAGES and record:
            name = path.parent.parent.relative_to(checkpoints).as_posix()
            found.setdefault(name, {})[stage] = record
    return [
        Run(name, {stage: stages[stage] for stage in STAGES if stage in stages})
        for name, stages in sorted(found.items())
    ]


def scores(runs: list[Run], row: str, task: str, metric: str) -> Score | None:
    """A row's number over its seeds, None where no run of it was evaluated."""
    values = [run.value(task, metric) for run in runs if run.row == row]
    known = tuple(value for value in values if value is not None)
    return Score(known) if known else None
