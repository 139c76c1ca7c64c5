"""The cheapest next experiment, which tells the two likeliest causes apart."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from triplet.progress import duration
from triplet.published import curves
from triplet.published.causes import EXCLUDED, SEEN, Cause
from triplet.published.facts import Facts
from triplet.published.reference import Reference

PROOF = 120.0
"""Seconds of a conversion with its proof, on a CPU."""
EVALUATION = 1200.0
"""Seconds of an evaluation on 5000 images with PreciseBN left to the training, on one V100."""
PROBE = 500
"""Iterations that show whether a loss falls or diverges."""
BY_LOG = ("schedule", "undecayed stop", "weights not loaded", "PreciseBN", "divergence", "training data")
BY_CONFIG = (
    "learning rate",
    "BN statistics",
    "frozen stages",
    "norm after res5",
    "colour order, mean, stride",
    "image sizes",
    "evaluation",
    "mixed precision",
    "rescaled by the number of GPUs",
    "SyncBN",
    "schedule",
)
BY_WEIGHTS = ("other weights", "weights not loaded", "BN folded into the weights")


@dataclass(frozen=True)
class Given:
    """The arguments of ``triplet explain``."""

    arguments: tuple[str, ...]
    """Options that name the result: --result, --method, --target."""
    config: Path | None = None
    log: Path | None = None
    weights: Path | None = None


@dataclass(frozen=True)
class Experiment:
    """An experiment, and what it tells."""

    command: str
    seconds: float
    tells: str
    machine: str = ""
    """Hardware that the seconds are for; empty for any."""

    def __str__(self) -> str:
        takes = "seconds" if self.seconds < 60 else f"about {duration(self.seconds)}"
        return f"{self.command}  ({takes}{self.machine and ' on ' + self.machine}; {self.tells})"


def cheapest(causes: list[Cause], facts: Facts, reference: Reference, given: Given) -> Experiment | None:
    """Return what to run next: a file to add where one would tell, else the shortest run that would.

    Args:
        causes: ranked.
        facts: what is known.
        reference: what the result is compared with.
        given: what explain was given.

    Returns:
        None where every cause is excluded.
    """
    first = [cause for cause in causes if cause.verdict != EXCLUDED][:2]
    if not first:
        return None
    method = reference.method or "triplet"
    names = [cause.name for cause in first]
    pair = " from ".join(names)
    open_names = [cause.name for cause in first if cause.verdict != SEEN]
    if any(name in BY_CONFIG for name in open_names) and not given.config and facts.rate is None:
        return Experiment(_again(given, "--config FILE"), 0.5, f"the run's config tells {pair}")
    if any(name in BY_LOG for name in open_names) and not given.log:
        return Experiment(
            _again(given, "--log FILE"), 0.5, f"the run's log.txt or metrics.json tells {pair}"
        )
    if any(name in BY_WEIGHTS for name in open_names) and not given.weights:
        return Experiment(_again(given, "--weights FILE"), 10, f"the weights' file tells {pair}")
    return _to_run(names[0], method, facts, pair)


def _to_run(name: str, method: str, facts: Facts, pair: str) -> Experiment:
    """Return a short run for a cause."""
    gpus = facts.gpus or 1
    machine = f"{gpus} V100"
    seconds = curves.published().speed[facts.kind or "c4"].seconds * 8 / gpus
    if name in BY_WEIGHTS:
        return Experiment(
            f"triplet convert --run {method}", PROOF, "its proof shows which tensors were loaded, exactly"
        )
    if name == "divergence":
        half = f" SOLVER.BASE_LR={facts.rate / 2:g}" if facts.rate else ""
        command = f"triplet finetune --run {method} SOLVER.MAX_ITER={PROBE}" + half
        return Experiment(
            command,
            PROBE * seconds,
            "a loss that falls at half the rate says that the rate was too high",
            machine,
        )
    if name in ("evaluation", "PreciseBN"):
        return Experiment(
            f"triplet eval --run {method} --model model_final.pth --config config.yaml",
            EVALUATION / gpus,
            f"the same model, evaluated as the published ones: tells {pair}",
            machine,
        )
    if name in ("noise", "rate tuned for the target"):
        return Experiment(
            f"triplet finetune --run seed1/{method} --seed 1 --schedule 1/8x",
            11_250 * seconds,
            "a second seed at an eighth of 1x shows the noise",
            machine,
        )
    return Experiment(
        f"triplet finetune --run probe/{method} --schedule 1/8x",
        11_250 * seconds,
        f"the AP to expect is printed first; reaching it by the kit's recipe tells {pair}",
        machine,
    )


def _again(given: Given, more: str) -> str:
    """Return the command of explain with one more option."""
    words = ["triplet", "explain", *given.arguments]
    for option, path in (("--config", given.config), ("--log", given.log), ("--weights", given.weights)):
        if path:
            words += [option, str(path)]
    return f"{shlex.join(words)} {more}"
