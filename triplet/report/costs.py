"""Time, GPU hours and energy of stages."""

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from triplet.config import Settings, load
from triplet.paths import CONFIGS
from triplet.records import Record
from triplet.runs import Run

PATH = CONFIGS / "power.yaml"
FORMULA = "GPU hours x thermal design power x utilisation x PUE"


class Power(Settings):
    utilisation: Annotated[float, Field(gt=0, le=1)]
    """Share of the design power."""
    pue: Annotated[float, Field(ge=1)]
    """All of a data centre's power over its computers'."""
    tdp: dict[str, float]
    """Watts, by words of a GPU's name."""


@dataclass(frozen=True)
class RunCost:
    """Cost of one stage of one run."""

    run: str
    stage: str
    hours: float
    """By the clock."""
    gpu: str
    """Its name; '' where a CPU did the work."""
    gpus: int
    energy: float | None
    """kWh at most; None where the power is not known."""
    measured: float | None = None
    """kWh that its GPUs took by their own counters; None where one has none."""

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


def costs(runs: list[Run], power: Power | None = None) -> list[RunCost]:
    """Return the cost of every stage, in the runs' order."""
    power = power or load(PATH, Power)
    return [_cost(run.name, stage, record, power) for run in runs for stage, record in run.stages.items()]


def is_card(name: str, card: str) -> bool:
    """Return whether a GPU's own name has the words of a card, and none that make it another one of the
    series."""
    return bool(re.search(rf"\b{card}\b(?!.*\b(Ti|SUPER|D|Laptop|Max-Q)\b)", name))


def _cost(run: str, stage: str, record: Record, power: Power) -> RunCost:
    names = record.hardware.get("gpus") or [""]
    # A process has a GPU of its own, on any number of machines; what one alone leaves idle is not counted.
    count = record.world_size if names[0] else 0
    hours = record.seconds / 3600
    watts = next((watts for card, watts in power.tdp.items() if is_card(names[0], card)), None)
    energy = None
    if watts is not None and count:
        energy = hours * count * watts / 1000 * power.utilisation * power.pue
    return RunCost(run, stage, hours, names[0], count, energy, record.energy_kwh if count else None)
