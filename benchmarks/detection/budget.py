"""Fit a finetuning to the user's GPUs and hours: images in a pass, and a schedule compressed as a whole."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from triplet.errors import KitError

from detectron2.config import CfgNode

SCHEDULE_1X = 90_000 * 16
"""Images that Detectron2's 1x schedule trains on: 12.3 epochs of COCO."""
SCHEDULE = ("MAX_ITER", "STEPS", "WARMUP_ITERS")
"""Keys of SOLVER that set the length of a schedule."""
SMALLER = "train on smaller images (INPUT.MIN_SIZE_TRAIN=(480,)) or on another GPU"
FEWEST = 100
"""Minimum schedule length, in iterations."""
MARGIN = 0.9
"""Fraction of a GPU's memory to plan with: other sizes of images, and fragmentation, take more than was
measured."""
RESERVE = 0.05
"""Fraction of the hours to leave for loading and checkpoints."""
FORWARD = 1 / 3
"""Time of a forward pass as a fraction of an iteration; precise BN goes forward only."""


@dataclass(frozen=True)
class Memory:
    """Memory that training takes on a GPU, linear in the images of a forward pass."""

    one: float
    """Bytes with one image."""
    more: float
    """Bytes for each further image."""

    @classmethod
    def through(cls, one: float, two: float) -> "Memory":
        """Fit the peaks with one and with two images, in bytes; infinite where they did not fit."""
        return cls(one, max(two - one, one / 8))

    def peak(self, images: int) -> float:
        """Bytes with so many images in a pass."""
        return self.one + self.more * (images - 1) if images > 1 else self.one


def per_process(cfg: CfgNode, processes: int) -> int:
    """Images of a batch for each process.

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
    """All divisors of a number, in ascending order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def check_passes(share: int, images: int) -> None:
    """Raise KitError unless a process's share of a batch divides into passes of so many images."""
    if share % images:
        raise KitError(
            f"{share} images for each process do not divide into passes of {images}; "
            f"--images-per-gpu may be {', '.join(map(str, divisors(share)))}"
        )


def images_in_a_pass(share: int, memory: Memory, limit: float) -> int:
    """The most images in a pass that a GPU holds, where equal passes make up a process's share.

    Args:
        share: images of a batch for one process.
        memory: what they take.
        limit: bytes of the smallest GPU.

    Raises:
        KitError: not even one fits.
    """
    if memory.one > MARGIN * limit:
        takes = "more" if math.isinf(memory.one) else f"{memory.one / 1e9:.1f} GB"
        raise KitError(f"one image takes {takes}, the GPU has {limit / 1e9:.1f} GB; {SMALLER}")
    return max(n for n in divisors(share) if memory.peak(n) <= MARGIN * limit)


def full(images: int, *, kept: bool = False) -> str:
    """Message for a GPU that is out of memory: what happened, and what to do.

    Args:
        images: of one process in one pass.
        kept: whether BN has to stay over as many; with fewer it would be another training.
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
    """The fraction of a config's own schedule that the user asks for.

    Args:
        schedule: ``2x``, ``1x``, ``1/2x``, ``0.3x`` in units of Detectron2's 1x (1.44 million images), or
            ``1/2``, ``0.3``, ``1`` of the config's own.
        cfg: with its whole schedule.

    Raises:
        KitError: none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\d+/\d+)(x?)", schedule)
    value = float(Fraction(match[1])) if match and not match[1].endswith("/0") else 0.0
    if not match or value <= 0:
        raise KitError(f"--schedule is 2x, 1x, 1/2x, 1/4x, 1/8x or a part such as 1/2: found {schedule!r}")
    if not match[2]:
        return value
    return float(value * SCHEDULE_1X / (cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH))


def compress(cfg: CfgNode, fraction: float) -> CfgNode:
    """Compress the whole schedule to ``fraction`` of its iterations: warm-up, decays and end.

    The learning rate goes with the batch and stays. A schedule cut short instead would end undecayed.

    Raises:
        KitError: fewer than FEWEST iterations are left.
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
    """The config with the schedule of another one's section SOLVER."""
    changed = cfg.clone()
    changed.defrost()
    for key in SCHEDULE:
        changed.SOLVER[key] = solver[key]
    return changed


def part_in(hours: float, seconds: float, cfg: CfgNode) -> float:
    """The fraction of a config's schedule that hours allow, at most 1.

    Args:
        hours: time for training, precise BN, loading and checkpoints.
        seconds: of an iteration.
        cfg: with its own schedule.
    """
    iterations = hours * 3600 * (1 - RESERVE) / seconds - _precise_bn(cfg)
    return float(max(0.0, min(1.0, iterations / cfg.SOLVER.MAX_ITER)))


def lasts(seconds: float, cfg: CfgNode, done: int = 0) -> float:
    """Seconds that the rest of a schedule takes, with precise BN, loading and checkpoints.

    Args:
        seconds: of an iteration.
        cfg: with the schedule to train.
        done: iterations that lie behind.
    """
    return float((cfg.SOLVER.MAX_ITER - done + _precise_bn(cfg)) * seconds / (1 - RESERVE))


def _precise_bn(cfg: CfgNode) -> float:
    """Time of precise BN, in iterations."""
    precise = cfg.TEST.PRECISE_BN
    return precise.NUM_ITER * FORWARD if precise.ENABLED and bn_images(cfg, 1, 1) else 0.0


def bn_images(cfg: CfgNode, processes: int, images: int) -> int:
    """Images over which a BN layer of the backbone takes its statistics; 0 where it is frozen.

    Raises:
        KitError: another norm, which no weights of the table have.
    """
    norm = cfg.MODEL.RESNETS.NORM
    pools = {"SyncBN": processes * images, "BN": images, "FrozenBN": 0}
    if norm not in pools:
        raise KitError(f"MODEL.RESNETS.NORM is {norm!r}; finetuning knows {', '.join(pools)}")
    return pools[norm]


def images_of_pool(cfg: CfgNode, processes: int, pool: int) -> int | None:
    """Images of a process in a pass that let BN take its statistics over ``pool`` images.

    Returns:
        None where ``pool`` is 0 and any number will do.

    Raises:
        KitError: so many processes cannot have such a pool.
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
