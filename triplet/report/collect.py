"""Records in, comparable results out."""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from triplet import records
from triplet.records import Record

STAGES = ("pretrain", "convert", "finetune", "eval")
METRICS = ("AP", "AP50", "AP75")
SCHEDULE_2X = 180_000
"""Iterations at batch 16."""
VAL2017 = 5_000
"""Images."""
# What a stage reads of the one before: (stage, its input, stage before, its output).
LINKS = (
    ("convert", "weights", "pretrain", "checkpoint"),
    ("finetune", "weights", "convert", "weights"),
    ("eval", "model", "finetune", "model"),
)


@dataclass(frozen=True)
class Run:
    """A row of a table in one seed: the records of its stages.

    Its folder below checkpoints/ is ``[experiment/][seed<N>/]row``. Runs of the paper's table itself
    have no experiment (``triplet``, ``seed1/triplet``) and the paper's budget.
    """

    name: str
    stages: dict[str, Record]
    stale: str = ""
    """Why later stages of it are left out: they read something that has changed since."""

    @property
    def row(self) -> str:
        """Which row of the table it is."""
        return self.name.rpartition("/")[2]

    @property
    def experiment(self) -> str:
        """What it may be compared with; '' for the paper's table."""
        parts = self.name.split("/")[:-1]
        own = "/".join(part for part in parts if not re.fullmatch(r"seed\d+", part))
        return own or ("" if self.full_budget else "another budget than the paper's")

    @property
    def full_budget(self) -> bool:
        """Whether it is the 2x schedule, evaluated on all of val2017 (or not there yet)."""
        finetune, evaluated = self.stages.get("finetune"), self.stages.get("eval")
        return (finetune is None or finetune.results.get("iterations") == SCHEDULE_2X) and (
            evaluated is None or evaluated.results.get("images") == VAL2017
        )

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
    for stage in STAGES:
        for path in checkpoints.rglob(f"{stage}/record.json"):
            if record := records.read(path.parent):
                name = path.parent.parent.relative_to(checkpoints).as_posix()
                found.setdefault(name, {})[stage] = record
    return [_consistent(name, stages) for name, stages in sorted(found.items())]


def _consistent(name: str, stages: dict[str, Record]) -> Run:
    """The run up to the first stage that read something else than the one before has left."""
    for stage, read, before, wrote in LINKS:
        if stage not in stages or before not in stages:
            continue
        used, there = stages[stage].inputs.get(read), stages[before].outputs.get(wrote)
        given = before == "pretrain" and used and there and used.path != there.path  # convert --weights
        if used and there and used.sha256 != there.sha256 and not given:
            kept = STAGES[: STAGES.index(stage)]
            return Run(
                name,
                {k: v for k, v in stages.items() if k in kept},
                f"its {stage} was made from another {before}; run it again with FORCE=1",
            )
    return Run(name, stages)


def scores(runs: list[Run], row: str, task: str, metric: str) -> Score | None:
    """A row's number over its seeds, None where no run of it was evaluated."""
    values = [run.value(task, metric) for run in runs if run.row == row]
    known = tuple(value for value in values if value is not None)
    return Score(known) if known else None
