"""What fits the user's GPUs and hours: images in a pass, and a schedule compressed as a whole."""

import re
from dataclasses import dataclass
from fractions import Fraction

from triplet.errors import KitError

from detectron2.config import CfgNode

SCHEDULE_1X = 90_000 * 16
"""Images that Detectron2's 1x schedule trains on, 12.3 epochs of COCO."""
FEWEST = 100
"""Iterations below which a schedule is none."""
MARGIN = 0.9
"""Of a GPU's memory: other sizes of images, and fragmentation, take some more than was measured."""
RESERVE = 0.05
"""Of the hours: loading, precise BN, checkpoints and evaluation."""


@dataclass(frozen=True)
class Memory:
    """Of one process on its GPU, in bytes: what training takes anyway, and for each image in a pass."""

    fixed: float
    image: float

    @classmethod
    def through(cls, one: float, two: float) -> "Memory":
        """From the peaks with one and with two images."""
        return cls(fixed=max(0.0, 2 * one - two), image=max(two - one, one / 8))

    def peak(self, images: int) -> float:
        return self.fixed + self.image * images


def per_process(cfg: CfgNode, processes: int) -> int:
    """Images of a batch for each process; KitError when they cannot share it evenly."""
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % processes:
        fitting = ", ".join(str(n) for n in divisors(batch))
        raise KitError(
            f"{processes} processes cannot share a batch of {batch} images (SOLVER.IMS_PER_BATCH); "
            f"GPUS x NODES may be {fitting}"
        )
    return batch // processes


def divisors(number: int) -> list[int]:
    """Ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def images_in_a_pass(share: int, memory: Memory, limit: float) -> int:
    """The most images of a process's share that a GPU holds at once, in equal passes.

    Args:
        share: images of a batch for one process.
        memory: what they take.
        limit: bytes of the smallest GPU.

    Raises:
        KitError: not even one fits.
    """
    fitting = [n for n in divisors(share) if memory.peak(n) <= MARGIN * limit]
    if not fitting:
        raise KitError(
            f"one image takes {memory.peak(1) / 1e9:.1f} GB, the GPU has {limit / 1e9:.1f} GB; "
            "train on smaller images (INPUT.MIN_SIZE_TRAIN=(480,)) or on another GPU"
        )
    return fitting[-1]


def part(schedule: str, cfg: CfgNode) -> float:
    """The part of a config's own schedule that the user asks for.

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
    return value * SCHEDULE_1X / (cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH)


def compress(cfg: CfgNode, fraction: float) -> CfgNode:
    """The config with its whole schedule in ``fraction`` of the iterations: warm-up, decays and end.

    The learning rate is the batch's and stays. A schedule cut short instead would end undecayed.

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


def part_in(hours: float, seconds: float, cfg: CfgNode) -> float:
    """The part of a config's schedule that hours allow, at most 1.

    Args:
        hours: for everything.
        seconds: of an iteration.
        cfg: with its whole schedule.
    """
    return min(1.0, hours * 3600 * (1 - RESERVE) / (seconds * cfg.SOLVER.MAX_ITER))


def bn_images(cfg: CfgNode, processes: int, images: int) -> int:
    """Images over which a BN layer of the backbone takes its statistics; 0 where it is frozen or none."""
    norm = cfg.MODEL.RESNETS.NORM
    return {"SyncBN": processes * images, "BN": images}.get(norm, 0)
