"""``python -m benchmarks.speed.probes NAME``: one probe of ``benchmarks.speed.probe``, in its own process.

Only the standard library and torch are imported at the top, so a missing package fails one probe, not all.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.probe import end_with_parent
from triplet import environment, files, toolchain
from triplet.errors import message_of

NEEDED = (
    "pydantic",
    "omegaconf",
    "pycocotools",
    "yacs",
    "fvcore",
    "iopath",
    "termcolor",
    "detectron2",
    "cv2",
)
"""Packages that the kit imports and a bare machine may lack."""


class Senseless(Exception):
    """Raised by a probe that has nothing to measure on this device."""


@dataclass
class Context:
    """Input and output of a probe."""

    device: torch.device
    tiny: bool
    seconds: float
    """Time limit in seconds."""
    output: Path
    earlier: dict[str, Any]
    """Results of the probes before, by their names."""
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Whether the probe measures a GPU."""
        return self.device.type == "cuda"

    @property
    def measuring(self) -> float:
        """Seconds of one measurement; most of the limit goes to starting, tuning and warming up."""
        return 0.0 if self.tiny else min(10.0, self.seconds / 5)

    def tell(self, **values: Any) -> None:
        """Save results now, so that they survive a later failure."""
        self.found |= values
        files.write_text(self.output, json.dumps(self.found) + "\n")

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize()

    def time(self, run: Callable[[], object], rounds: int = 20) -> float:
        """Return the seconds of a call, the least of five means after one warm-up."""
        rounds, times = 1 if self.tiny else rounds, []
        run()
        for _ in range(1 if self.tiny else 5):
            self.synchronize()
            began = time.perf_counter()
            for _ in range(rounds):
                run()
            self.synchronize()
            times.append((time.perf_counter() - began) / rounds)
        return min(times)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one probe; return 0 if done or senseless here, else 1 with the reason in the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.probes")
    parser.add_argument("name", choices=list(PLACES))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--earlier", type=Path)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args(argv)
    threading.Thread(target=end_with_parent, daemon=True).start()
    name = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    context = Context(
        torch.device(name), arguments.tiny, arguments.seconds, arguments.output, _earlier(arguments.earlier)
    )
    try:
        if name == "cuda":
            context.device = torch.device("cuda", torch.cuda.current_device())
        getattr(import_module(PLACES[arguments.name]), arguments.name)(context)
    except Senseless as error:
        context.tell(reason=str(error), senseless=True)
    except ModuleNotFoundError as error:
        context.tell(
            reason=f"{error.name} is not installed; scripts/wheels.sh makes a folder of what is missing"
        )
        return 1
    except Exception as error:
        context.tell(reason=message_of(f"{type(error).__name__}: {error}", 400))
        return 1
    return 0


def _earlier(path: Path | None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text()) if path else {"probes": []}
    except (OSError, ValueError):
        return {}
    return {entry["name"]: entry["results"] for entry in content["probes"]}


def machine(context: Context) -> None:
    """Report the card, driver, compiler, headers, allocator and packages."""
    context.tell(card="no", driver="no", **environment.hardware())
    if context.cuda:
        card = torch.cuda.get_device_properties(context.device)
        context.tell(
            card=card.name, memory_bytes=card.total_memory, capability=f"{card.major}.{card.minor}"
        )
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        context.tell(driver=subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no")
    lacking = toolchain.missing(gpu=context.cuda)
    context.tell(
        compiler="no" if any("compiler" in what for what in lacking) else "yes",
        python_headers="no" if any("headers" in what for what in lacking) else "yes",
        triton="yes" if importlib.util.find_spec("triton") else "no",
        missing=[name for name in NEEDED if importlib.util.find_spec(name) is None],
        expandable_segments=_expandable(context),
    )
    found = context.found
    context.tell(
        summary=f"card {found['card']}, driver {found['driver']}, compiler {found['compiler']}, Python.h "
        f"{found['python_headers']}, expandable segments {found['expandable_segments']}"
        + (f", missing {' '.join(found['missing'])}" if found["missing"] else "")
    )


def _expandable(context: Context) -> str:
    """Return whether memory on this GPU can grow in place; tried in another process, which a driver may
    end."""
    if not context.cuda:
        return "no"
    program = "import torch; print([torch.ones(n << 20, device='cuda').sum().item() for n in (1, 64, 8)])"
    setting = {**os.environ, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run([sys.executable, "-c", program], env=setting, capture_output=True, timeout=30)
    except subprocess.TimeoutExpired:
        return "no"
    return "no" if done.returncode else "yes"


def ceilings(context: Context) -> None:
    """Measure the peak of memory and of matrix units."""
    count = 1 << (20 if context.tiny else 30 if context.cuda else 26)
    source = torch.ones(count, dtype=torch.uint8, device=context.device)
    target = torch.empty_like(source)
    seconds = context.time(lambda: target.copy_(source))
    context.tell(copy_bytes_per_second=2 * count / seconds)
    side = 64 if context.tiny else 8192 if context.cuda else 1024
    a, b = (torch.randn(side, side, device=context.device).to(torch.bfloat16) for _ in "ab")
    seconds = context.time(lambda: a @ b)
    context.tell(matmul_flop_per_second=2 * side**3 / seconds)
    found = context.found
    context.tell(
        summary=f"copy {found['copy_bytes_per_second'] / 1e12:.2f} TB/s, bf16 matmul of {side} "
        f"{found['matmul_flop_per_second'] / 1e12:.1f} TFLOP/s"
    )


TRAINING, CORRECT = "benchmarks.speed.probes_training", "benchmarks.speed.probes_correctness"
PLACES = {
    "machine": __name__,
    "ceilings": __name__,
    "correctness": CORRECT,
    "eager": TRAINING,
    "compiled": TRAINING,
    "recolouring": CORRECT,
    "released": TRAINING,
    "views": TRAINING,
    "memory": TRAINING,
    "detection": TRAINING,
    "variants": TRAINING,
}
"""Module of each probe."""


if __name__ == "__main__":  # import this module as the probes do, so that its classes exist once
    sys.exit(import_module("benchmarks.speed.probes").main())
