"""The plan of a finetuning: what the user asks for, what it resolves to, and what that means in words."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.detection import budget
from triplet.progress import amount, duration
from triplet.published import configs, curves, effects

from detectron2.config import CfgNode


@dataclass(frozen=True)
class FinetuneOptions:
    """The user's wishes for a finetuning, besides its run, config and data; None means the best choice."""

    hours: float | None = None
    """Hours that all of it may take; the schedule is compressed to them."""
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
    """Start over, replacing what is there."""


@dataclass(frozen=True)
class FinetunePlan:
    """Everything about a finetuning, decided: ``resolve`` makes it, and nothing is asked again."""

    method: str
    """Method of the table that the weights are of; what is to be expected is published by method."""
    cfg: CfgNode
    """Detectron2's config, frozen, with the schedule to train. That of a run also names its data
    (DATASETS.TRAIN), weights, folder and seed; a preview's does not."""
    settings: Mapping[str, Any]
    """The same as plain values for the record, without this machine's places."""
    uncompressed: CfgNode
    """The config, frozen, with its own schedule: what neither hours nor ``--schedule`` have shortened."""
    processes: int
    """Number of training processes, one for each GPU."""
    images: int
    """Images of one process in one forward pass."""
    precision: str
    """One of ``trainer.PRECISIONS``."""
    hours: float | None = None
    """Hours that the user gives it; None where he gives no limit."""
    seconds: float | None = None
    """Seconds of an iteration; None where nobody knows them."""
    peak: float | None = None
    """Bytes on the fullest GPU; None where nobody knows them."""
    peak_source: str = "measured"
    """How the peak is known: ``measured`` on the GPU, or ``counted`` on the CPU."""
    dataset_images: int | None = None
    """Images that are trained on; None where that is not known."""
    iterations_done: int = 0
    """Iterations of the newest checkpoint; 0 for a run that begins."""
    dataset: str = ""
    """Folder of the data as the record names it; empty in a preview."""
    classes: Sequence[str] = ()
    """Names of the data's classes, in the order of the model's indices; empty in a preview."""
    category_ids: Sequence[Any] = ()
    """Their ids in the data, in the same order."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Files and folders that the record hashes, by name; empty in a preview."""
    seen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Their ``records.identities`` before any of them was read."""
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
        """Forward passes of an optimiser step, whose gradients are accumulated."""
        return self.batch // self.processes // self.images

    @property
    def bn_images(self) -> int:
        """Images over which a BN layer of the backbone takes its statistics; 0 where BN is frozen."""
        return budget.bn_images(self.cfg, self.processes, self.images)

    @property
    def record(self) -> dict[str, Any]:
        """The config of the finetuning's record: whatever its result depends on, besides its inputs."""
        return record_config(
            self.dataset, self.settings, self.seed, self.precision, self.bn_images, self.hours
        )

    def lines(self, runs: Sequence[curves.LocalResult] = ()) -> Iterator[str]:
        """Say what the plan means: batch, schedule, time and memory, and the AP to expect.

        Args:
            runs: results of this machine, which inform the AP to expect.

        Yields:
            One line for each of these.
        """
        yield from self.facts().values()
        yield from self._expected_lines(runs)

    def facts(self) -> dict[str, str]:
        """Batch, schedule, and time and memory where they are known, by a word for each."""
        found = {"batch": self._batch_line(), "schedule": self._schedule_line()}
        return found | dict(zip(("time", "whole"), self._time_lines(), strict=False))

    def expected(self, runs: Sequence[curves.LocalResult]) -> curves.Expected | None:
        """The AP to expect; None where nothing is published for this detector, data and method.

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
        found = curves.expected(self.method, kind, self.iterations * self.batch / 16, runs, unlike)
        if not found or not 0 < self.bn_images < curves.POOL:
            return found
        box, mask, _ = effects.size("bn-batch")
        assert box
        assert mask
        return replace(found, box=found.box.lowered(box[1]), mask=found.mask.lowered(mask[1]))

    @property
    def detector(self) -> str | None:
        """c4, fpn, or None for one of which no curve is published."""
        return curves.detector(self.cfg)

    @functools.cached_property
    def unlike(self) -> tuple[str, list[str]]:
        """The nearest released config, and what this one does otherwise."""
        return configs.nearest(self.settings, self.detector or "c4")

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
        if not expected:
            yield f"to expect of {self.method}: nothing is published for this detector, data and method"
            return
        ap = f"box AP {expected.box}, mask AP {expected.mask}"
        yield f"to expect of {self.method}: {ap}; from {expected.basis}"
        if costs := self.unknown_costs():
            yield costs

    def unknown_costs(self) -> str:
        """Say what the plan does unlike the published runs, at a cost that nobody knows; '' for nothing."""
        config, changes = self.unlike
        if 0 < self.bn_images < curves.BATCH:
            changes = [*changes, f"BN over {curves.BATCH} images -> {self.bn_images}"]
        if not changes:
            return ""
        text = f"that is for {config}; not known is what this costs: {', '.join(changes)}"
        if 0 < self.bn_images < curves.POOL:
            box, mask, _ = effects.size("bn-batch")
            assert box
            assert mask
            text += f"; BN over 2 images cost {box[1]} / {mask[1]} AP from scratch"
            text += ", by which the lower ends are lower"
        return text


def record_config(
    dataset: str,
    settings: Mapping[str, Any],
    seed: int,
    precision: str,
    bn_images: int,
    hours: float | None,
) -> dict[str, Any]:
    """Return what a finetuning's record says of its training."""
    return {
        "dataset": dataset,
        "seed": seed,
        "detectron2": settings,
        "precision": precision,
        "bn_images": bn_images,
        **({"hours": hours} if hours else {}),
    }
