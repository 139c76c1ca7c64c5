"""Time, GPU hours and energy of the stages."""

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
    """Average power as a share of the thermal design power."""
    pue: Annotated[float, Field(ge=1)]
    """Power usage effectiveness: a data centre's whole power divided by that of its computers."""
    tdp: dict[str, float]
    """Thermal design power in watts, by words of a GPU's name."""


@dataclass(frozen=True)
class RunCost:
    """Cost of one stage of one run."""

    run: str
    stage: str
    hours: float
    """Wall-clock hours."""
    gpu: str
    """Name of the GPU; '' if a CPU did the work."""
    gpus: int
    energy: float | None
    """Upper bound in kWh; None if the GPU's power is not known."""
    measured: float | None = None
    """kWh measured by the GPUs' own counters; None if one of them has none."""

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


def costs(runs: list[Run], power: Power | None = None) -> list[RunCost]:
    """Return the cost of every stage, in the runs' order."""
    power = power or load(PATH, Power)
    return [_cost(run.name, stage, record, power) for run in runs for stage, record in run.stages.items()]


def is_card(name: str, card: str) -> bool:
    """Return whether a GPU's own name is that of a card, without a suffix that makes it another model of
    the series."""
    return bool(re.search(rf"\b{card}\b(?!.*\b(Ti|SUPER|D|Laptop|Max-Q)\b)", name))


def _cost(run: str, stage: str, record: Record, power: Power) -> RunCost:
    names = record.hardware.get("gpus") or [""]
    # Each process has one GPU, on any number of machines; GPUs that stay idle are not counted.
    count = record.world_size if names[0] else 0
    hours = record.seconds / 3600
    watts = next((watts for card, watts in power.tdp.items() if is_card(names[0], card)), None)
    energy = None
    if watts is not None and count:
        energy = hours * count * watts / 1000 * power.utilisation * power.pue
    return RunCost(run, stage, hours, names[0], count, energy, record.energy_kwh if count else None)
