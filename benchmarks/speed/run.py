"""``python -m benchmarks.speed.run``: the kit beside the released code, part by part, in one run.

All parts on a GPU are the probe's comparison: ``benchmarks.speed.probe --everything``, a process for each.
"""

import argparse
import contextlib
import gc
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import components, probe, results
from benchmarks.speed.end_to_end import backends, end_to_end
from benchmarks.speed.flops import peak
from benchmarks.speed.photos import draw_photos
from benchmarks.speed.recipes import QUARTER, RELEASED, SMOKE, recipes
from benchmarks.speed.steps import Setup, step
from benchmarks.speed.timing import Budget, Case
from triplet import files, toolchain
from triplet.config import load
from triplet.environment import share_of_cores
from triplet.errors import KitError, message_of
from triplet.pretrain.config import Pretrain
from triplet.progress import say

NAMES = ("step", "head", "update", "data", "detection")
"""Names of the parts, the one that matters most first."""
EVERYTHING = 3600
"""Time limit of everything measured on a GPU, in seconds."""
THREADS = 1
"""Threads of this process: one, to compare code and not its use of cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; return 0, or 2 with one line that says what is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parser().parse_args(argv)
    if arguments.what == "all" and arguments.device != "cpu" and torch.cuda.is_available():
        return probe.main(_as_probe(arguments))
    toolchain.expandable_segments()  # as the kit's own commands
    try:
        with _threads(THREADS):
            failed = _run(arguments, shlex.join(["python", "-m", "benchmarks.speed.run", *argv]))
    except (KitError, OSError) as error:
        return _fail(str(error))
    return _fail("; ".join(failed)) if failed else 0


def _as_probe(arguments: argparse.Namespace) -> list[str]:
    """Translate the options to the probe's."""
    said = ["--everything", "--device", "cuda", "--seconds", str(EVERYTHING)]
    said += ["--output", str(arguments.output)] if arguments.output else []
    said += ["--tiny"] if arguments.smoke else []
    options = ["--seconds", str(arguments.seconds)]
    options += ["--images", str(arguments.images.absolute())] if arguments.images else []
    options += ["--batch", str(arguments.batch)] if arguments.batch else []
    options += ["--no-compile"] if arguments.no_compile else []
    return [*said, f"--comparison={shlex.join(options)}"]


def detection(budget: Budget, images: int) -> Case:
    """See ``benchmarks.speed.detection``; imported late, for the other parts do not need Detectron2."""
    from benchmarks.speed import detection as module

    return module.detection(budget, images)


def _fail(message: str) -> int:
    print(f"benchmarks.speed.run: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.run", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=(*NAMES, "all"))
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument(
        "--seconds",
        type=float,
        default=20.0,
        help="of measuring each case, warm-up not counted (default: 20)",
    )
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="real images (default: drawn JPEGs of 500 x 375)"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="images in a step (default: GPU 196, CPU 24)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="leave torch.compile out (it takes minutes)"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, for tests: no number means anything"
    )
    return parser


@dataclass
class _Results:
    """The measurements so far, written after each case, so that an interrupted run leaves results."""

    output: Path | None
    command: str
    smoke: bool
    cases: list[dict[str, Any]] = field(default_factory=list)
    together: list[dict[str, Any]] = field(default_factory=list)
    """Measurements of loader and step together."""
    failed: list[str] = field(default_factory=list)
    """Lines for the parts that failed."""

    def add(self, case: Case) -> None:
        """Keep a case, replacing its version from earlier rounds."""
        self.cases = [each for each in self.cases if each["case"] != case.name]
        self.cases.append(results.as_json(case))
        self.save()

    def save(self) -> None:
        """Write the JSON file, if one is requested."""
        if self.output:
            header = results.header(self.command, THREADS, smoke=self.smoke)
            content = {
                **header,
                "cases": self.cases,
                "loader_and_step": self.together,
                "failed": self.failed,
            }
            files.write_text(self.output, json.dumps(content, indent=1) + "\n")


def _run(arguments: argparse.Namespace, command: str) -> list[str]:
    """Measure every requested part; return a line for each that failed."""
    device = _device(arguments.device)
    smoke = arguments.smoke
    budget = Budget(device, seconds=0.0 if smoke else arguments.seconds, rounds=2 if smoke else 5)
    names = NAMES if arguments.what == "all" else (arguments.what,)
    measured = _Results(arguments.output, command, smoke)
    name = results.device_name(device)
    if device.type == "cuda" and peak(name) is None:
        say(f"no peak is known of {name}: MFU is left out; see benchmarks/speed/flops.py")
    setup = _setup(arguments, device)
    with tempfile.TemporaryDirectory() as temporary:
        photos = arguments.images
        if photos is None and {"data", "step"} & set(names):
            say("drawing images")
            photos = draw_photos(Path(temporary), max(64, 2 * setup.released.micro_batch))
        parts = _parts(setup, budget, photos, measured)
        for name in names:
            _measure(*parts[name], measured)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    print(results.table(measured.cases, measured.together))
    return measured.failed


def _measure(what: str, measure: Callable[[], None], measured: _Results) -> None:
    """Measure a part; a failure is recorded as a line and does not affect other parts."""
    say(f"measuring {what}")
    try:
        measure()
    except (KitError, RuntimeError, ModuleNotFoundError) as error:
        reason = message_of(error, 200)
        lower = "; give a lower --batch" if isinstance(error, torch.OutOfMemoryError) else ""
        measured.failed.append(f"{what}: {reason}{lower}")
        measured.save()
    gc.collect()


def _parts(
    setup: Setup, budget: Budget, photos: Path, measured: _Results
) -> dict[str, tuple[str, Callable[[], None]]]:
    """Name of each part, and the function that measures it."""
    smoke, cuda = measured.smoke, budget.device.type == "cuda"
    on_cpu = replace(budget, device=torch.device("cpu"))
    whole = load(RELEASED, Pretrain, SMOKE if smoke else ())
    images = 1 if smoke else 8 if cuda else 4

    def measure_head() -> None:
        for count in (16,) if smoke else (64, 196, 1024):
            measured.add(components.head(count, setup.released, budget))

    return {
        "step": ("the training step", lambda: _measure_step(setup, budget, photos, measured)),
        "head": ("the loss head", measure_head),
        "update": ("LARS and EMA", lambda: measured.add(components.update(whole, budget))),
        "data": (
            "the data pipeline",
            lambda: measured.add(components.pipeline(_data(smoke), photos, on_cpu)),
        ),
        "detection": ("a detection step", lambda: measured.add(detection(budget, images))),
    }


def _measure_step(setup: Setup, budget: Budget, photos: Path, measured: _Results) -> None:
    """Measure the step alone, then the loader and the step together."""
    _, kits = step(setup, budget, measured.add)
    if not kits:
        raise KitError("no step of the kit's got through")
    # The last kit is the one that a run on this device would use.
    for backend in backends(budget.device):
        say(f"measuring loader and step together, views by {backend}")
        measured.together.append(end_to_end(kits[-1], backend, photos, share_of_cores(), budget))
        measured.save()


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise KitError("no GPU that torch can use was found; run with --device cpu")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())  # DALI wants its number


def _setup(arguments: argparse.Namespace, device: torch.device) -> Setup:
    """Return the steps to compare: the recipe's ResNet-50 on a GPU, a quarter of it on the CPU."""
    cuda = device.type == "cuda"
    batch = arguments.batch or (12 if arguments.smoke else 196 if cuda else 24)
    model = SMOKE if arguments.smoke else () if cuda else QUARTER
    released, fast = recipes(batch, accumulate=4 if cuda else 1, model=model)
    return Setup(
        released=released,
        fast=fast,
        passes=8 if cuda else 1 if arguments.smoke else 2,
        compile=not arguments.no_compile,
    )


def _data(smoke: bool) -> Pretrain:
    """Return the config for measuring the recipe's views, in batches of 16."""
    batch = ["loss.group=16", "optimizer.groups=1", "optimizer.accumulate=1"]
    return load(RELEASED, Pretrain, [*(SMOKE if smoke else ()), *batch])


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.backends.cudnn.benchmark = benchmark


if __name__ == "__main__":
    sys.exit(main())
