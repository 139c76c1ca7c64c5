"""The plan of a finetuning: the user's options, the resolved plan, and its description in words."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.detection import budget
from triplet.progress import amount, duration
from triplet.published import configs, curves, effects
from triplet.published.methods import load_methods

from detectron2.config import CfgNode


@dataclass(frozen=True)
class FinetuneOptions:
    """The user's options for a finetuning, besides run, config and data; None means the best choice."""

    hours: float | None = None
    """Hours that the whole finetuning may take; the schedule is compressed to fit."""
    schedule: str | None = None
    """Length of the schedule, see ``budget.part``; excludes ``hours``."""
    images_per_gpu: int | None = None
    """Images of one process in one forward pass."""
    precision: str | None = None
    """One of ``trainer.PRECISIONS``."""
    seed: int = 0
    """Seed of the heads, the sampling and the data order."""
    overrides: Sequence[str] = ()
    """``KEY.SUB=value`` for Detectron2's settings."""
    force: bool = False
    """Whether to start over, replacing earlier results."""


@dataclass(frozen=True)
class FinetunePlan:
    """All decisions about a finetuning, made by ``resolve`` once and for all."""

    method: str
    """Method of the table that the weights belong to; expected AP is published by method."""
    cfg: CfgNode
    """Detectron2's config, frozen, with the schedule to train. A run's config also names its data
    (DATASETS.TRAIN), weights, folder and seed; a preview's does not."""
    settings: Mapping[str, Any]
    """The config as plain values for the record, without this machine's paths."""
    uncompressed: CfgNode
    """The config, frozen, with its own schedule, before hours or ``--schedule`` shortened it."""
    processes: int
    """Number of training processes, one for each GPU."""
    images: int
    """Images of one process in one forward pass."""
    precision: str
    """One of ``trainer.PRECISIONS``."""
    hours: float | None = None
    """The user's limit in hours, if any."""
    seconds: float | None = None
    """Seconds per iteration; None if unknown."""
    peak: float | None = None
    """Bytes on the fullest GPU; None if unknown."""
    peak_source: str = "measured"
    """Source of the peak: ``measured`` on the GPU, or ``counted`` on the CPU."""
    dataset_images: int | None = None
    """Number of training images; None if unknown."""
    iterations_done: int = 0
    """Iterations of the newest checkpoint; 0 for a new run."""
    dataset: str = ""
    """Folder of the data as in the record; empty in a preview."""
    classes: Sequence[str] = ()
    """Names of the data's classes, in the order of the model's indices; empty in a preview."""
    category_ids: Sequence[Any] = ()
    """Ids of the classes in the data, in the same order."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Files and folders that the record hashes, by name; empty in a preview."""
    seen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """``records.identities`` of the inputs before any of them was read."""
    seed: int = 0
    """Seed of the heads, the sampling and the data order."""

    def __post_init__(self) -> None:
        self.cfg.freeze()
        self.uncompressed.freeze()

    @property
    def iterations(self) -> int:
        """Optimiser steps of the whole schedule."""
        return int(self.cfg.SOLVER.MAX_ITER)

    @property
    def batch(self) -> int:
        """Images of an optimiser step, over all processes."""
        return int(self.cfg.SOLVER.IMS_PER_BATCH)

    @property
    def passes(self) -> int:
        """Forward passes of an optimiser step; their gradients are accumulated."""
        return self.batch // self.processes // self.images

    @property
    def bn_images(self) -> int:
        """Number of images over which the backbone's BN takes its statistics; 0 if BN is frozen."""
        return budget.bn_images(self.cfg, self.processes, self.images)

    @property
    def record(self) -> dict[str, Any]:
        """Return the config for the record: everything that the result depends on, besides the inputs."""
        return record_config(
            self.dataset, self.settings, self.seed, self.precision, self.bn_images, self.hours
        )

    def lines(self, runs: Sequence[curves.LocalResult] = ()) -> Iterator[str]:
        """Describe the plan: batch, schedule, time and memory, and the expected AP.

        Args:
            runs: results of this machine, which inform the expected AP.

        Yields:
            One line for each of these.
        """
        yield from self.facts().values()
        yield from self._expected_lines(runs)

    def facts(self) -> dict[str, str]:
        """Return batch, schedule, and time and memory if known, by a word for each."""
        found = {"batch": self._batch_line(), "schedule": self._schedule_line()}
        return found | dict(zip(("time", "whole"), self._time_lines(), strict=False))

    def expected(self, runs: Sequence[curves.LocalResult]) -> curves.Expected | None:
        """Return the expected AP; None if none is published for this detector, data and method.

        Args:
            runs: results of this machine, which inform it.
        """
        kind = self.detector
        if not kind or self.dataset_images != curves.IMAGES:
            return None
        unlike = []
        if self.unlike[1]:
            unlike.append(f"another recipe than {self.unlike[0]}")
        if 0 < self.bn_images < curves.BATCH:
            unlike.append(f"BN over {self.bn_images} images")
        found = curves.expected(
            self.method,
            kind,
            self.iterations * self.batch / 16,
            runs,
            unlike,
            configs.recipe_of(self.settings),
        )
        if not found or not (cost := self._cost_of_bn()):
            return found
        return replace(found, box=found.box.lowered(cost[0]), mask=found.mask.lowered(cost[1]))

    def _cost_of_bn(self) -> tuple[float, float] | None:
        """Return the most box and mask AP that so small a BN pool has cost; None for a larger one."""
        box, mask, _ = effects.size("bn-batch")
        return (box[1], mask[1]) if 0 < self.bn_images < curves.POOL and box and mask else None

    @property
    def detector(self) -> str | None:
        """c4, fpn, or None for a detector without a published curve."""
        return curves.detector(self.cfg)

    @functools.cached_property
    def unlike(self) -> tuple[str, list[str]]:
        """The released config with which the method's numbers were reached, for another method the nearest
        one, and this config's differences from it."""
        method = load_methods().get(self.method)
        return configs.nearest(self.settings, self.detector or "c4", method.recipe if method else "")

    def _batch_line(self) -> str:
        parts = f"{self.processes} x {self.images}" + (
            f" x {self.passes} passes" if self.passes > 1 else ""
        )
        full = self.batch if self.cfg.MODEL.RESNETS.NORM == "SyncBN" else self.bn_images
        bn = f"BN over {self.bn_images}" if self.bn_images else "BN frozen"
        if self.bn_images < full:
            bn += f", where the recipe has {full}"
        return f"{self.batch} images an iteration = {parts}, {self.precision}; {bn}"

    def _schedule_line(self) -> str:
        solver, images = self.cfg.SOLVER, self.dataset_images
        cosine = "Cosine" in solver.LR_SCHEDULER_NAME
        decay = "cosine to 0" if cosine else f"steps at {', '.join(map(str, solver.STEPS))}"
        epochs = ""
        if images:
            epochs = f" = {self.iterations * self.batch / images:.2f} epochs of {images} images"
        return (
            f"{self.iterations} iterations{epochs}, learning rate {solver.BASE_LR:g}, "
            f"warm-up {solver.WARMUP_ITERS}, {decay}"
        )

    def _time_lines(self) -> Iterator[str]:
        if not self.seconds:
            return
        remaining = budget.lasts(self.seconds, self.cfg, self.iterations_done)
        end = datetime.now().astimezone() + timedelta(seconds=remaining)
        memory = f", {amount(self.peak)} {self.peak_source} on the fullest GPU" if self.peak else ""
        left = f" for the {self.iterations - self.iterations_done} left" if self.iterations_done else ""
        yield (
            f"{self.seconds:.3g} s an iteration{memory}: {duration(remaining)}{left}, "
            f"until {end:%a %d %b %H:%M}"
        )
        whole = self.uncompressed.SOLVER.MAX_ITER
        if self.iterations < whole:
            takes = duration(budget.lasts(self.seconds, self.uncompressed))
            part = f"{self.iterations / whole:.1%}"
            yield f"all {whole} iterations would take {takes}; the schedule is compressed to {part}"

    def _expected_lines(self, runs: Sequence[curves.LocalResult]) -> Iterator[str]:
        expected = self.expected(runs)
        yield self.expectation(expected) + (f"; this rests on {expected.basis}" if expected else "")
        if not expected:
            return
        if costs := self.unknown_costs():
            yield costs

    def expectation(self, expected: curves.Expected | None) -> str:
        """Say which AP to expect."""
        if expected is None:
            return f"expected AP of {self.method}: none is published for this detector, data set and method"
        return f"expected AP of {self.method}: box {expected.box}, mask {expected.mask}"

    def unknown_costs(self) -> str:
        """Say which of the plan's differences from the published runs have an unknown cost; '' if none."""
        config, changes = self.unlike
        if 0 < self.bn_images < curves.BATCH:
            changes = [*changes, f"BN over {curves.BATCH} images -> {self.bn_images}"]
        if not changes:
            return ""
        text = f"the expected AP is for {config}; what these changes cost is unknown: {', '.join(changes)}"
        if cost := self._cost_of_bn():
            text += f"; trained from scratch, BN over 2 images cost {cost[0]} / {cost[1]} AP"
            text += ", and the lower ends of the ranges are lower by that much"
        return text


def record_config(
    dataset: str,
    settings: Mapping[str, Any],
    seed: int,
    precision: str,
    bn_images: int,
    hours: float | None,
) -> dict[str, Any]:
    """Return the config for the record of a finetuning."""
    return {
        "dataset": dataset,
        "seed": seed,
        "detectron2": settings,
        "precision": precision,
        "bn_images": bn_images,
        **({"hours": hours} if hours else {}),
    }
