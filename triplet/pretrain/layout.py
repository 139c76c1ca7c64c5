"""Division of an optimiser step among processes, passes and micro-batches.

The config fixes what the optimiser sees: ``accumulate`` micro-batches of ``groups`` negative groups, where
each micro-batch shares its BN statistics. A layout spreads that over any number of processes:

- up to ``groups`` processes share each micro-batch, with a whole number of groups each;
- more processes form teams, which work on micro-batches in parallel instead of one after the other.

Either way the optimiser step is the same. Only if a GPU cannot hold its share of a micro-batch
(``images_per_gpu``) is the share cut into passes with BN statistics of their own; ``describe`` says so.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods import METHODS, check


@dataclass(frozen=True)
class MicroBatch:
    """One process's part of a micro-batch: the images of one forward and backward pass."""

    iteration: int
    """Number of the whole micro-batch in the run, from 0; the same for all processes that share it."""
    items: tuple[tuple[int, int], ...]
    """(epoch, index) of its images."""
    first: int = 0
    """Position of the first of these images in the whole micro-batch."""


@dataclass(frozen=True)
class Layout:
    """The division of work: ``ranks`` processes share a micro-batch, and ``teams`` micro-batches run in
    parallel."""

    config: Pretrain
    teams: int
    ranks: int
    splits: int
    """Passes into which a process cuts its share of a micro-batch."""

    @property
    def passes(self) -> int:
        """Passes of a process in an optimiser step."""
        return self.config.optimizer.accumulate // self.teams * self.splits

    @property
    def images(self) -> int:
        """Images of a process in a pass."""
        return self.config.micro_batch // (self.ranks * self.splits)

    @property
    def bn_images(self) -> int:
        """Images that share BN statistics."""
        grouped = self.config.batch_norm == "group"
        return self.config.loss.group if grouped else self.images * self.ranks

    def team(self, rank: int) -> int:
        """Return the team of a process."""
        return rank // self.ranks

    def describe(self) -> str:
        """One line for the log."""
        in_group = METHODS[self.config.method].TRAITS.negatives_in_group
        negatives = f"negatives among {self.config.loss.group}, " if in_group else ""
        line = (
            f"{self.config.batch} images a step = {self.teams * self.ranks} processes x {self.passes} "
            f"passes x {self.images} images; {negatives}BN over {self.bn_images}"
        )
        if self.splits > 1 and self.config.batch_norm == "shared":
            line += f" (the config asks for {self.config.micro_batch}: images_per_gpu forbids it)"
        return line

    def steps(self, order: "Order", rank: int, start: int) -> Iterator[list[MicroBatch]]:
        """Yield the list of a process's passes for each optimiser step from ``start`` on."""
        accumulate = self.config.optimizer.accumulate
        share = self.images * self.splits
        first = rank % self.ranks * share
        for step in range(start, order.steps):
            passes = []
            for round_ in range(accumulate // self.teams):
                iteration = step * accumulate + round_ * self.teams + self.team(rank)
                items = order.micro_batch(iteration)[first : first + share]
                for cut in range(0, share, self.images):
                    passes.append(MicroBatch(iteration, tuple(items[cut : cut + self.images]), first + cut))
            yield passes


def make_layout(config: Pretrain, processes: int) -> Layout:
    """Find the layout for a number of processes.

    Raises:
        KitError: the settings do not fit the method (see ``methods.check``), or the step does not divide
            among the processes.
    """
    check(config)
    groups, accumulate = config.optimizer.groups, config.optimizer.accumulate
    possible = [
        n
        for n in range(1, groups * accumulate + 1)
        if (n <= groups and groups % n == 0)
        or (n > groups and n % groups == 0 and accumulate % (n // groups) == 0)
    ]
    if processes not in possible:
        raise KitError(
            f"{config.batch} images a step ({accumulate} micro-batches of {groups} groups of "
            f"{config.loss.group}) do not divide among {processes} processes; possible: "
            f"{', '.join(map(str, possible))}; or change optimizer.groups and optimizer.accumulate"
        )
    ranks = min(processes, groups)
    held = groups // ranks
    limit = config.images_per_gpu or config.micro_batch
    if limit < config.loss.group:
        raise KitError(
            f"images_per_gpu={limit} is less than a negative group of {config.loss.group} images, "
            "which must stay together"
        )
    fitting = max(n for n in range(1, held + 1) if held % n == 0 and n * config.loss.group <= limit)
    return Layout(config, teams=processes // ranks, ranks=ranks, splits=held // fitting)


@lru_cache(maxsize=4)  # at an epoch's end, other teams and the loaders that read ahead are in the next one
def permutation(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch's images: a function of the seed and the epoch alone."""
    drawn = np.random.default_rng((seed, epoch, 0x0DE5)).permutation(images)
    drawn.setflags(write=False)
    return drawn


class Order:
    """The images of every micro-batch of a run, a function of the seed alone.

    Each epoch is a permutation of all images. It drops the remainder that does not fill a micro-batch,
    which differs from epoch to epoch. A run has whole optimiser steps only.
    """

    def __init__(self, images: int, config: Pretrain) -> None:
        self.images, self.config = images, config
        self.per_epoch = images // config.micro_batch
        if self.per_epoch == 0:
            raise KitError(
                f"found {images} images, fewer than one micro-batch of {config.micro_batch} "
                f"(loss.group {config.loss.group} x optimizer.groups {config.optimizer.groups}); "
                "give more images or lower optimizer.groups"
            )

    @property
    def steps(self) -> int:
        """Number of optimiser steps in the whole run."""
        return self.per_epoch * self.config.schedule.epochs // self.config.optimizer.accumulate

    @property
    def iterations(self) -> int:
        """Number of micro-batches in the whole run."""
        return self.steps * self.config.optimizer.accumulate

    def epoch(self, steps: int) -> int:
        """Return how many epochs a number of optimiser steps completes."""
        return steps * self.config.optimizer.accumulate // self.per_epoch

    def ends_epoch(self, step: int, every: int) -> bool:
        """Return whether optimiser step number ``step``, from 1, completes an epoch whose number ``every``
        divides."""
        before, now = self.epoch(step - 1) // every, self.epoch(step) // every
        return now > before or (step == self.steps)

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"{self.config.schedule.epochs} epochs of {self.images} images = {self.iterations} iterations "
            f"= {self.steps} optimiser steps"
        )

    def micro_batch(self, iteration: int) -> list[tuple[int, int]]:
        """Return (epoch, index) of the images of a micro-batch."""
        epoch, place = divmod(iteration, self.per_epoch)
        size = self.config.micro_batch
        order = permutation(self.images, self.config.seed, epoch)
        return [(epoch, index) for index in order[place * size : (place + 1) * size].tolist()]
