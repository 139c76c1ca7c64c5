"""The metrics of a training: a line of JSON and TensorBoard scalars for each step, throughput and
memory."""

import contextlib
import json
import resource
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from triplet import files
from triplet.progress import duration


class MetricLogger:
    """Write ``metrics.jsonl`` and ``tensorboard/`` of a run, on the main process alone.

    Args:
        folder: folder of the run.
        start: number of optimiser steps done; later lines of an earlier session are deleted.
        iterations: number of micro-batches in a step.
        is_main_process: whether to write at all.
    """

    def __init__(self, folder: Path, start: int, iterations: int, *, is_main_process: bool) -> None:
        self.last: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()
        self._writes = is_main_process
        if not is_main_process:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        self.last = files.cut_lines(path, "iteration", start * iterations)
        self._lines = self._stack.enter_context(path.open("a"))
        self._board = self._stack.enter_context(
            SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1 if start else None)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log one optimiser step in a single write, so that a reader never sees half a line."""
        self.last = values
        if not self._writes:
            return
        self._lines.write(json.dumps(values) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)


class ThroughputMeter:
    """Measure the throughput of a run and estimate its end.

    Args:
        batch: images in an optimiser step, over all processes.
        steps: number of steps of the whole run.
        start: number of steps done already.
    """

    SETTLED, KNOWN = 10, 20
    """Steps of a session before timing begins, and before the forecast is printed: the first steps compile,
    tune and fill caches."""

    def __init__(self, batch: int, steps: int, start: int) -> None:
        self.batch, self.steps, self.start = batch, steps, start
        self._began = self._last = time.monotonic()
        self._done, self._settled = 0, 0.0

    def step(self, waited: float) -> dict[str, float]:
        """Return the log entries of a step that ends now and waited ``waited`` seconds for data."""
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._done += 1
        if self._done == self.SETTLED:
            self._settled = now
        return {
            "step_time": round(seconds, 4),
            "data_time": round(waited, 4),
            "images_per_second": round(self.batch / max(seconds, 1e-9), 2),
        }

    def pause(self) -> None:
        """Exclude the time since the end of the last step from the next one."""
        self._last = time.monotonic()

    def forecast(self, done: int) -> str | None:
        """Print once, after the first steps of a session, how long the run will take."""
        if self._done != self.KNOWN or done == self.steps:
            return None
        step = (self._last - self._settled) / (self.KNOWN - self.SETTLED)
        left, whole = duration(step * (self.steps - done)), duration(step * self.steps)
        return f"{self.batch / step:.1f} images/s: about {left} to go, {whole} in all"

    def average(self) -> float | None:
        """Images per second of this session; None if it took no steps."""
        seconds = time.monotonic() - self._began
        return round(self._done * self.batch / seconds, 2) if self._done else None


def memory(device: torch.device) -> int:
    """Return the peak memory of this process in bytes: on its GPU, else resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
