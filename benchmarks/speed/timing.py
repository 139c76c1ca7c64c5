"""Timing of variants of one computation in turn, so that the machine's drift affects all alike."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from triplet.errors import KitError, message_of

RANGE = (5, 95)
"""Percentiles that are reported as the range of a time or a ratio."""


@dataclass(frozen=True)
class Variant:
    """One way to compute something."""

    name: str
    run: Callable[[], object]
    """Function that computes it once."""
    images: int = 0
    """Images of a call; 0 where none are involved."""
    flop: float = 0.0
    """FLOP of a call; 0 where they are not counted."""
    ours: bool = False
    """Whether the variant is the kit's, to be compared with those that are not."""
    block: float = 0.0
    """Seconds that a repetition fills with calls, so that a short function is measured with the caches left
    by its own last call; 0 for one call."""
    cudnn_benchmark: bool = False
    resident: Callable[[], int] = lambda: 0
    """Bytes on the device that it keeps between repetitions."""


@dataclass(frozen=True)
class Budget:
    """Duration and device of a measurement."""

    device: torch.device
    seconds: float
    """Seconds to measure one case, without warm-up."""
    rounds: int = 3
    """Fewest repetitions, however long they take."""
    warmup: int = 1
    """Uncounted calls of each variant besides the first; at least one."""
    after_round: Callable[["list[Timing]"], None] = lambda timings: None
    """Called after each round with the measurements so far."""


@dataclass
class Timing:
    """Measurements of a variant."""

    variant: Variant
    first: float = 0.0
    """Seconds of the first call, including compilation and tuning."""
    calls: int = 1
    """Calls in a repetition."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of a call, the mean of each repetition."""
    peak: int = 0
    """Most bytes allocated on the GPU, for the variant itself and its repetition."""

    def rate(self, amount: float) -> float:
        """Return the amount per second, by the median time, if a call processes ``amount``."""
        return amount / float(np.median(self.seconds))


@dataclass
class Case:
    """One comparison: the variants of one computation of one size."""

    benchmark: str
    name: str
    device: torch.device
    sizes: dict[str, Any]
    timings: list[Timing]
    notes: list[str] = field(default_factory=list)

    def find(self, name: str) -> Timing:
        """Return the measurements of the variant with a name."""
        return next(timing for timing in self.timings if timing.variant.name == name)

    def ratios(self) -> list[dict[str, Any]]:
        """Compare how many times as fast each of the kit's variants is as each of the others, round by
        round."""
        found = []
        for mine in self.timings:
            for other in self.timings:
                if mine.variant.ours and not other.variant.ours:
                    each = np.array(other.seconds) / np.array(mine.seconds)
                    # If calls take different numbers of images, compare the time per image.
                    if mine.variant.images and other.variant.images:
                        each = each * (mine.variant.images / other.variant.images)
                    found.append({"of": mine.variant.name, "over": other.variant.name, **spread(each)})
        return found


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Return median and range."""
    low, high = np.percentile(values, RANGE)
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def interleave(
    variants: Sequence[Variant], budget: Budget, failed: list[str] | None = None
) -> list[Timing]:
    """Time the variants A B A B ..., each repetition to its end on the device.

    The warm-up is not counted, and the time of the first call is kept separately.

    Args:
        variants: variants of one computation.
        budget: device and duration of the measurement.
        failed: receives a line for each variant that fails in its warm-up and is then left out; if None,
            the error is raised.
    """
    timings = []
    for timing in map(Timing, variants):
        try:
            timing.first = _repeat(timing, budget.device)
            for _ in range(budget.warmup):
                once = _repeat(timing, budget.device)
        except RuntimeError as error:  # no compiler, no memory, no kernel
            if failed is None:
                raise
            failed.append(f"{timing.variant.name} failed: {message_of(error, 200)}")
            continue
        timing.calls = max(1, math.ceil(timing.variant.block / once))
        timing.peak = 0  # tuning tries algorithms with more memory than the chosen ones need
        timings.append(timing)
    if not timings:
        raise KitError("; ".join(failed or ["nothing to measure"]))
    began = time.perf_counter()
    while len(timings[-1].seconds) < budget.rounds or time.perf_counter() - began < budget.seconds:
        for timing in timings:
            timing.seconds.append(_repeat(timing, budget.device))
        budget.after_round(timings)
    return timings


def _repeat(timing: Timing, device: torch.device) -> float:
    cuda = device.type == "cuda"
    torch.backends.cudnn.benchmark = timing.variant.cudnn_benchmark
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    began = time.perf_counter()
    for _ in range(timing.calls):
        timing.variant.run()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    if cuda:
        needed = torch.cuda.max_memory_allocated() - before + timing.variant.resident()
        timing.peak = max(timing.peak, needed)
    return seconds / timing.calls
