"""Choice of the cheapest next experiment that tells the two likeliest causes apart."""

from dataclasses import dataclass
from pathlib import Path

from triplet.commands import typed
from triplet.progress import duration
from triplet.published import curves
from triplet.published.causes import EXCLUDED, POSSIBLE, SEEN, Cause
from triplet.published.facts import Facts
from triplet.published.methods import load_methods
from triplet.published.reference import Reference

PROOF = 120.0
"""Seconds for a conversion with its proof, on a CPU."""
EVALUATION = 1200.0
"""Seconds for an evaluation on 5000 images, without PreciseBN, on one V100."""
ENOUGH = 0.9
"""Part of a shortfall that seen causes explain if no other one needs to be looked for."""
PLAN = 30.0
"""Seconds for a plan."""
PROBE = 500
"""Iterations that show whether a loss falls or diverges."""
EIGHTH = 11_250
"""Iterations of an eighth of 1x."""
FPN = "configs/detection/coco_r50_fpn_1x_moco{}.yaml"
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
BY_EVALUATION = ("evaluation", "PreciseBN", "masks alone")
BY_WEIGHTS = ("other weights", "weights not loaded", "BN folded into the weights")


@dataclass(frozen=True)
class Invocation:
    """The arguments of ``triplet explain``, which the next experiment repeats."""

    arguments: tuple[str, ...]
    """Options that name the result: --result, --method, --target."""
    config: Path | None = None
    log: Path | None = None
    weights: Path | None = None
    convertible: bool = True
    """Whether ``triplet convert`` reads the weights."""


@dataclass(frozen=True)
class Experiment:
    """An experiment, and what its result shows."""

    command: str
    seconds: float
    tells: str
    machine: str = ""
    """Hardware that the seconds are for; empty for any."""

    def __str__(self) -> str:
        takes = "seconds" if self.seconds < 60 else f"about {duration(self.seconds)}"
        return f"{self.command}  ({takes}{self.machine and ' on ' + self.machine}; {self.tells})"


def cheapest(
    causes: list[Cause], facts: Facts, reference: Reference, call: Invocation
) -> Experiment | None:
    """Return the next experiment: a file to add if that would decide, else the shortest run that would.

    Args:
        causes: the ranked causes.
        facts: the known facts of the run.
        reference: the published result.
        call: the arguments of explain.

    Returns:
        The experiment; None if every cause is excluded.
    """
    first = [cause for cause in causes if cause.verdict != EXCLUDED][:2]
    if not first:
        return None
    if first[0].verdict == SEEN and first[0].part > ENOUGH:
        first = first[:1]
    possible = [cause for cause in causes if cause.verdict == POSSIBLE]
    enough = sum(cause.part for cause in causes if cause.verdict == SEEN) > ENOUGH
    if possible and not enough and all(cause.verdict == SEEN for cause in first):
        first = [first[0], possible[0]]
    names = [cause.name for cause in first]
    pair = " from ".join(names)
    open_names = [cause.name for cause in first if cause.verdict != SEEN]
    by_log = [name for name in open_names if name in BY_LOG]
    recorded = "--run" in call.arguments
    if by_log and not (call.log or call.config or recorded):  # a log.txt has the config as well
        tells = f"the run's log.txt, or its metrics.json with --config FILE, tells {pair}"
        return Experiment(_again(call, "--log"), 0.5, tells)
    if any(name in BY_CONFIG for name in open_names) and not call.config and facts.rate is None:
        return Experiment(_again(call, "--config"), 0.5, f"the run's config tells {pair}")
    if by_log and not (call.log or recorded):
        return Experiment(_again(call, "--log"), 0.5, f"the run's log.txt or metrics.json tells {pair}")
    if any(name in BY_WEIGHTS for name in open_names) and not call.weights:
        return Experiment(_again(call, "--weights"), 10, f"the weights' file tells {pair}")
    if not open_names and names[0] not in (*BY_WEIGHTS, *BY_EVALUATION, "divergence"):
        method, config = _of_kit(reference)
        gpus = ["--gpus", str(facts.gpus)] if facts.gpus else []
        without = f"without {'it' if len(names) == 1 else 'them'}"
        tells = f"{' and '.join(names)} seen; this says which AP a training {without} reaches in your hours"
        return Experiment(typed("plan", "--method", method, *config, *gpus, "--hours", "12"), PLAN, tells)
    return _to_run(names[0], reference, facts, pair, call)


def _of_kit(reference: Reference) -> tuple[str, list[str]]:
    """Return the method of the table, and the options for its config, that are nearest to a reference."""
    method = reference.method or "supervised"
    bgr = next(iter(load_methods()[method].weights.values())) == "caffe2"
    return method, ["--config", FPN.format("_msra" * bgr)] if reference.kind == "fpn" else []


def _to_run(name: str, reference: Reference, facts: Facts, pair: str, call: Invocation) -> Experiment:
    """Return a short run for a cause."""
    method, config = _of_kit(reference)
    gpus = facts.gpus or 1
    weights = ["--weights", str(call.weights) if call.convertible else "FILE"] if call.weights else []
    machine = f"{gpus} V100"
    seconds = curves.published().speed[reference.kind].seconds * 8 / gpus
    if name in BY_WEIGHTS:
        tells = "its proof shows which tensors were loaded, exactly"
        if call.weights and not call.convertible:
            tells = f"FILE is what {call.weights.name} was made from; {tells}"
        return Experiment(typed("convert", "--run", method, *weights), PROOF, tells)
    if name == "divergence":
        probe = ["--run", f"probe/{method}", *config]
        half = [f"SOLVER.BASE_LR={facts.rate / 2:g}"] if facts.rate else []
        train = typed("finetune", *probe, f"SOLVER.MAX_ITER={PROBE}", *half, gpus=gpus)
        return Experiment(
            f"{typed('convert', *probe, *weights)} && {train}",
            PROOF + PROBE * seconds,
            "a loss that falls at half the rate says that the rate was too high",
            machine,
        )
    if name in BY_EVALUATION and "mmdetection" not in facts.other:
        model = ["--model", "model_final.pth", "--config", str(call.config or "config.yaml")]
        return Experiment(
            typed("eval", "--run", method, *model, gpus=gpus),
            EVALUATION / gpus,
            f"the same model, evaluated as the published ones: tells {pair}",
            machine,
        )
    seed, run = list[str](), f"probe/{method}"
    tells = f"the AP to expect is printed first; reaching it by the kit's recipe tells {pair}"
    if name in ("noise", "rate tuned for the target"):
        seed, run = ["--seed", "1"], f"seed1/{method}"
        tells = "a second seed at an eighth of 1x shows the noise"
    steps = [
        typed("convert", "--run", run, *config, *weights),
        typed("finetune", "--run", run, *config, *seed, "--schedule", "1/8x", gpus=gpus),
        typed("eval", "--run", run, gpus=gpus),
    ]
    return Experiment(
        " && ".join(steps),
        PROOF + EIGHTH * seconds + EVALUATION / gpus,
        tells,
        machine,
    )


def _again(call: Invocation, more: str) -> str:
    """Return the command of explain with one more file."""
    words = [*call.arguments]
    for option, path in (
        ("--config", call.config),
        ("--log", call.log),
        ("--weights", call.weights),
    ):
        if path:
            words += [option, str(path)]
    return typed("explain", *words, more, "FILE")
