"""Fit a finetuning to the user's GPUs and hours: choose the images in a pass, compress the whole
schedule."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from triplet.errors import KitError

from detectron2.config import CfgNode

SCHEDULE_1X = 90_000 * 16
"""Number of images in Detectron2's 1x schedule: 12.3 epochs of COCO."""
SCHEDULE = ("MAX_ITER", "STEPS", "WARMUP_ITERS")
"""Keys of SOLVER that set the length of a schedule."""
SMALLER = "train on smaller images (INPUT.MIN_SIZE_TRAIN=(480,)) or on another GPU"
FEWEST = 100
"""Minimum schedule length, in iterations."""
MARGIN = 0.9
"""Fraction of a GPU's memory to plan with: other image sizes and fragmentation take more than was
measured."""
RESERVE = 0.05
"""Fraction of the hours to leave for loading and checkpoints."""
FORWARD = 1 / 3
"""Time of a forward pass as a fraction of an iteration; precise BN needs only forward passes."""


@dataclass(frozen=True)
class Memory:
    """Memory that training takes on a GPU, modelled as linear in the images of a forward pass."""

    one: float
    """Bytes with one image."""
    more: float
    """Bytes for each further image."""

    @classmethod
    def through(cls, one: float, two: float) -> "Memory":
        """Fit the peaks in bytes with one and with two images; a peak that did not fit is infinite."""
        return cls(one, max(two - one, one / 8))

    def peak(self, images: int) -> float:
        """Return the bytes for a number of images in a pass."""
        return self.one + self.more * (images - 1) if images > 1 else self.one


def per_process(cfg: CfgNode, processes: int) -> int:
    """Return the number of images of a batch for each process.

    Raises:
        KitError: the processes cannot share the batch evenly.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % processes:
        fitting = ", ".join(str(n) for n in divisors(batch))
        raise KitError(
            f"{processes} processes cannot share a batch of {batch} images (SOLVER.IMS_PER_BATCH); "
            f"GPUS x NODES may be {fitting}"
        )
    return int(batch // processes)


def divisors(number: int) -> list[int]:
    """Return all divisors of a number, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def check_passes(share: int, images: int) -> None:
    """Raise KitError unless a process's share of a batch divides into passes of ``images`` images."""
    if share % images:
        raise KitError(
            f"{share} images for each process do not divide into passes of {images}; "
            f"--images-per-gpu may be {', '.join(map(str, divisors(share)))}"
        )


def images_in_a_pass(share: int, memory: Memory, limit: float) -> int:
    """Return the most images in a pass that fit a GPU, such that equal passes make up a process's share.

    Args:
        share: images of a batch for one process.
        memory: the memory that images take.
        limit: bytes of the smallest GPU.

    Raises:
        KitError: not even one image fits.
    """
    if memory.one > MARGIN * limit:
        takes = "more" if math.isinf(memory.one) else f"{memory.one / 1e9:.1f} GB"
        raise KitError(f"one image takes {takes}, the GPU has {limit / 1e9:.1f} GB; {SMALLER}")
    return max(n for n in divisors(share) if memory.peak(n) <= MARGIN * limit)


def full(images: int, *, kept: bool = False) -> str:
    """Return the message for a GPU that is out of memory, with the remedy.

    Args:
        images: images of one process in one pass.
        kept: whether BN must keep this number of images, as fewer would make it a different training.
    """
    if kept:
        return (
            f"the GPU is full with the {images} images in a pass that this finetuning has begun with; free "
            "it of others, or take more GPUs, and run the same command: it goes on where it stopped"
        )
    less = max((n for n in divisors(images) if n < images), default=0)
    advice = f"add --images-per-gpu {less}" if less else SMALLER
    return f"the GPU is full with {images} images in a pass; {advice}"


def part(schedule: str, cfg: CfgNode) -> float:
    """Return the fraction of a config's own schedule that the user asks for.

    Args:
        schedule: see ``length``.
        cfg: config with its full schedule.

    Raises:
        KitError: see ``length``.
    """
    value, in_1x = length(schedule)
    return value * SCHEDULE_1X / (cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH) if in_1x else value


def length(schedule: str) -> tuple[float, bool]:
    """Return the length of a schedule, and whether its unit is Detectron2's 1x.

    Args:
        schedule: ``2x``, ``1x``, ``1/2x``, ``0.3x`` in units of Detectron2's 1x (1.44 million images), or
            ``1/2``, ``0.3``, ``1`` as a fraction of the config's own.

    Raises:
        KitError: ``schedule`` has none of these forms.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\d+/\d+)(x?)", schedule)
    value = float(Fraction(match[1])) if match and not match[1].endswith("/0") else 0.0
    if not match or value <= 0:
        raise KitError(
            "the length of a schedule is 2x, 1x, 1/2x, 1/4x, 1/8x or a part such as 1/2: "
            f"found {schedule!r}"
        )
    return value, bool(match[2])


def compress(cfg: CfgNode, fraction: float) -> CfgNode:
    """Compress the whole schedule (warm-up, decays and end) to ``fraction`` of its iterations.

    The learning rate depends on the batch and stays. A schedule cut short would end without decay.

    Raises:
        KitError: fewer than FEWEST iterations would be left.
    """
    solver = cfg.SOLVER
    iterations = round(solver.MAX_ITER * fraction)
    if iterations < min(FEWEST, solver.MAX_ITER):
        raise KitError(
            f"{iterations} iterations are left of {solver.MAX_ITER}: too few; give it more time or GPUs"
        )
    shorter = cfg.clone()
    shorter.defrost()
    shorter.SOLVER.MAX_ITER = iterations
    shorter.SOLVER.STEPS = tuple(round(step * fraction) for step in solver.STEPS)
    shorter.SOLVER.WARMUP_ITERS = round(solver.WARMUP_ITERS * fraction)
    return shorter


def with_schedule(cfg: CfgNode, solver: Mapping[str, Any]) -> CfgNode:
    """Return the config with the schedule of another config's section SOLVER."""
    changed = cfg.clone()
    changed.defrost()
    for key in SCHEDULE:
        changed.SOLVER[key] = solver[key]
    return changed


def part_in(hours: float, seconds: float, cfg: CfgNode) -> float:
    """Return the fraction of a config's schedule that the hours allow, at most 1.

    Args:
        hours: time for training, precise BN, loading and checkpoints.
        seconds: seconds per iteration.
        cfg: config with its own schedule.
    """
    iterations = hours * 3600 * (1 - RESERVE) / seconds - _precise_bn(cfg)
    return float(max(0.0, min(1.0, iterations / cfg.SOLVER.MAX_ITER)))


def lasts(seconds: float, cfg: CfgNode, done: int = 0) -> float:
    """Return the seconds that the rest of a schedule takes, with precise BN, loading and checkpoints.

    Args:
        seconds: seconds per iteration.
        cfg: config with the schedule to train.
        done: number of iterations already done.
    """
    return float((cfg.SOLVER.MAX_ITER - done + _precise_bn(cfg)) * seconds / (1 - RESERVE))


def _precise_bn(cfg: CfgNode) -> float:
    """Return the time of precise BN, in iterations."""
    precise = cfg.TEST.PRECISE_BN
    return precise.NUM_ITER * FORWARD if precise.ENABLED and bn_images(cfg, 1, 1) else 0.0


def bn_images(cfg: CfgNode, processes: int, images: int) -> int:
    """Return the number of images over which the backbone's BN takes its statistics; 0 if it is frozen.

    Raises:
        KitError: the norm is a kind that no weights of the table have.
    """
    norm = cfg.MODEL.RESNETS.NORM
    pools = {"SyncBN": processes * images, "BN": images, "FrozenBN": 0}
    if norm not in pools:
        raise KitError(f"MODEL.RESNETS.NORM is {norm!r}; finetuning knows {', '.join(pools)}")
    return pools[norm]


def images_of_pool(cfg: CfgNode, processes: int, pool: int) -> int | None:
    """Return how many images a process needs in a pass for BN statistics over ``pool`` images.

    Returns:
        The number of images; None if ``pool`` is 0 and any number will do.

    Raises:
        KitError: this number of processes cannot have such a pool.
    """
    if not pool:
        return None

    def images(count: int) -> int:
        return pool // count if cfg.MODEL.RESNETS.NORM == "SyncBN" else pool

    batch = cfg.SOLVER.IMS_PER_BATCH
    fitting = [
        n
        for n in divisors(batch)
        if images(n) and bn_images(cfg, n, images(n)) == pool and batch // n % images(n) == 0
    ]
    if processes not in fitting:
        raise KitError(
            f"this finetuning has BN over {pool} images, which {processes} processes cannot have: "
            f"GPUS x NODES may be {', '.join(map(str, fitting))}; or begin anew with --force"
        )
    return images(processes)
