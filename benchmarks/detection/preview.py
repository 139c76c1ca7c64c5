"""``triplet plan``: a finetuning's cost and expected AP, before there is a run, data or a GPU."""

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import budget, calibration, data, loading, model, own_data, trainer
from benchmarks.detection.calibration import Calibration
from benchmarks.detection.plan import FinetuneOptions, FinetunePlan
from benchmarks.detection.resolve import (
    ResolvedOptions,
    RunSources,
    known_size,
    make_plan,
    require_length,
    resolve_options,
)
from triplet.commands import spoken, typed
from triplet.datasets import source as datasets
from triplet.datasets.source import DataSource
from triplet.defaults import detection_config
from triplet.errors import KitError
from triplet.progress import duration, say
from triplet.published import curves, gpus
from triplet.runs import of_this_machine
from triplet.training.distributed import join

from detectron2.config import CfgNode

WIDTH = 10
"""Width in characters of the column with the facts' names."""


@dataclass(frozen=True)
class Hardware:
    """The GPUs to plan for, as far as the user describes them."""

    gpus: int | None = None
    """Number of GPUs; by default the preset's, or one."""
    memory: float | None = None
    """Memory of each GPU in GB (1e9 bytes); by default the card's, or measured on this machine's GPU."""
    seconds: float | None = None
    """Seconds per iteration, if the user knows them."""
    gpu: str | None = None
    """Name of a card in configs/gpus.yaml, in any case; by default the preset's."""
    preset: str | None = None
    """Name of a host in configs/gpus.yaml."""

    def completed(self) -> "Hardware":
        """Fill in the values of the preset and the card; KitError if one is unknown."""
        gpu, count, memory = self.gpu, self.gpus, self.memory
        if self.preset:
            host = gpus.find_preset(self.preset)
            gpu, count = gpu or host.gpu, count or host.gpus
        if gpu:
            gpu, card = gpus.find_card(gpu)
            memory = memory or card.memory
        return Hardware(count, memory, self.seconds, gpu, self.preset)

    @property
    def count(self) -> int:
        return self.gpus or 1

    @property
    def best_precision(self) -> str:
        """Fastest precision of these GPUs, which is a training's default."""
        if self.gpu:
            return gpus.cards().cards[self.gpu].precision
        return "bfloat16" if self.memory else trainer.best_precision()

    def __str__(self) -> str:
        return f"{self.count} x {self.gpu}" if self.gpu else f"{self.count} GPU{'s'[: self.count > 1]}"


@dataclass(frozen=True)
class Preview:
    """A plan with the origin of its numbers."""

    plan: FinetunePlan
    hardware: Hardware
    options: FinetuneOptions
    config: Path | None
    source: DataSource | None
    """The user's data; None for those that the config names."""
    timing: gpus.IterationTime | None
    """Range of the seconds, if they are published ones."""
    notes: dict[str, str]
    """Further facts, by name."""
    expected: curves.Expected | None

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest of the finetuning takes; None if unknown."""
        plan = self.plan
        return budget.lasts(plan.seconds, plan.cfg) if plan.seconds else None

    @property
    def sessions(self) -> int | None:
        """Number of sessions on the preset's host, each of which saves and stops before its end."""
        if not self.hardware.preset or self.remaining is None:
            return None
        host = gpus.find_preset(self.hardware.preset)
        return math.ceil(self.remaining / 3600 / host.training_hours)

    @property
    def next(self) -> str:
        """The command that runs the plan."""
        options = self.options
        words = ["--run", self.plan.method, *(self.source.words if self.source else ())]
        for option, value in (
            ("--config", self.config),
            ("--hours", options.hours and f"{options.hours:g}"),
            ("--schedule", options.schedule),
            ("--precision", options.precision),
            ("--images-per-gpu", options.images_per_gpu),
        ):
            words += [option, str(value)] if value else []
        return typed("finetune", *words, gpus=self.hardware.count)

    def lines(self) -> Iterator[str]:
        """Yield a headline with the answer, aligned facts, and the next command."""
        takes = f" in {duration(self.remaining)}" if self.remaining else ""
        where = f"{self.plan.iterations} iterations{takes} on {self.hardware}"
        yield f"plan: {where}; {self.plan.expectation(self.expected)}"
        yield from (_fact(word, text) for word, text in self.facts().items())

    def facts(self) -> dict[str, str]:
        """Return the facts behind the headline by name, and the next command."""
        found = self.plan.facts() | self.notes
        if self.timing:
            low, high = f"{self.timing.low:.3g}", f"{self.timing.high:.3g}"
            each = low if low == high else f"{low} to {high}"
            found["speed"] = f"{each} s an iteration, {self.timing.source}"
        if self.sessions:
            found["sessions"] = self._sessions()
        if self.expected:
            found["basis"] = self.expected.basis
            if costs := self.plan.unknown_costs():
                found["caveat"] = costs
        again = (
            " (again in each session: it continues where it stopped)" if (self.sessions or 1) > 1 else ""
        )
        return found | {"next": self.next + again}

    def _sessions(self) -> str:
        host = gpus.find_preset(self.hardware.preset or "")
        count = self.sessions or 1
        text = f"{count} of at most {host.training_hours:g} h, as the notebook stops before the host does"
        if count > 1:
            lost = duration(trainer.SAVE_EVERY)
            text += f"; each resumes from the last checkpoint, at most {lost} old, so keep checkpoints/"
        if host.week_hours and self.remaining and self.remaining > host.week_hours * 3600:
            weeks = math.ceil(self.remaining / 3600 / host.week_hours)
            text += f"; {weeks} weeks at {host.week_hours:g} h a week"
        return f"{text} ({host.source})"

    def values(self) -> dict[str, Any]:
        """Return the preview as plain values for programs."""
        plan, timing = self.plan, self.timing
        return {
            "method": plan.method,
            "iterations": plan.iterations,
            "batch": plan.batch,
            "gpus": plan.processes,
            "gpu": self.hardware.gpu,
            "images_per_gpu": plan.images,
            "passes": plan.passes,
            "precision": plan.precision,
            "bn_images": plan.bn_images,
            "seconds_per_iteration": plan.seconds,
            "published_seconds": asdict(timing) if timing else None,
            "hours": self.remaining and self.remaining / 3600,
            "peak_bytes": plan.peak,
            "sessions": self.sessions,
            "expected": asdict(self.expected) if self.expected else None,
            "facts": self.facts(),
            "next": self.next,
        }


def _fact(word: str, text: str) -> str:
    """Format an aligned fact; on a terminal its text is wrapped beside its name."""
    head = f"  {word:<{WIDTH}}"
    if not sys.stdout.isatty():
        return head + text
    width = max(60, shutil.get_terminal_size().columns)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * len(head))


def preview(
    method: str,
    config: Path | None,
    options: FinetuneOptions,
    hardware: Hardware | None = None,
    source: DataSource | None = None,
    *,
    as_json: bool = False,
) -> FinetunePlan:
    """Plan as ``resolve`` does, for any machine and before there is a run or data, and print the plan.

    Args:
        method: its name in the table.
        config: Detectron2's YAML; by default that of the method.
        options: the user's options.
        hardware: the GPUs to plan for; by default one GPU of this machine.
        source: the user's data; by default those that the config names, which need not be here.
        as_json: whether to print one JSON object instead of lines for people.

    Raises:
        KitError: options, GPUs or data that do not fit.
    """
    hardware = (hardware or Hardware()).completed()
    with contextlib.redirect_stdout(sys.stderr):  # progress messages are not part of the answer
        found = _preview(method, config, options, hardware, source)
    if as_json:
        say(json.dumps(found.values()))
    else:
        for line in found.lines():
            say(spoken("plan", line))
    return found.plan


def _preview(
    method: str,
    config: Path | None,
    options: FinetuneOptions,
    hardware: Hardware,
    source: DataSource | None,
) -> Preview:
    cfg = model.load_config(detection_config(method, config), options.overrides)
    kind = curves.detector(cfg)  # before it is fitted: the number of classes hardly changes the speed
    images = known_size(cfg)
    if source:
        written_for = images
        cfg, images = _fit(cfg, source)
        require_length(cfg, options, images, written_for)
    resolved = resolve_options(cfg, hardware.count, options, hardware.best_precision)
    measured = hardware.memory is None and torch.cuda.is_available()
    timing, notes = None, {}
    if measured:
        found = _measure_share(resolved, hardware)
        name = calibration.gpu_name()
        notes["measured"] = f"on one {name} with synthetic images; loading and other GPUs may slow it"
    else:
        timing, notes = _published_timing(resolved, hardware, kind)
        if options.hours and hardware.gpu and not (timing or hardware.seconds):
            raise KitError(
                "--hours needs the seconds of an iteration, and none are published for this detector; "
                "give yours as --seconds"
            )
        found = _estimate(resolved, hardware, timing, notes, kind)
    plan = make_plan(method, RunSources(cfg, cfg), options, resolved, found, images=images)
    plan = replace(plan, peak_source="measured" if measured else "counted")
    expected = plan.expected(of_this_machine())
    return Preview(plan, hardware, options, config, source, timing, notes, expected)


def _fit(cfg: CfgNode, source: DataSource) -> tuple[CfgNode, int]:
    """Fit a config to the user's data as the finetuning does; also return the number of training images."""
    with tempfile.TemporaryDirectory() as place:
        folder = own_data.in_place(source) or Path(place)
        if folder == Path(place):
            datasets.write(datasets.read(source), folder)
        cfg = data.fit_masks(cfg, folder)
        names, classes = data.training(cfg, folder)
        cfg = data.fit_classes(cfg, folder, classes, ())
        data.validation(cfg, folder, classes)
        placed = cfg.clone()
        placed.DATASETS.TRAIN = names
        return cfg, loading.data_size(placed)


def _published_timing(
    resolved: ResolvedOptions, hardware: Hardware, kind: str | None
) -> tuple[gpus.IterationTime | None, dict[str, str]]:
    """Return published seconds for the user's cards, with a fact naming their source or why there are
    none."""
    if hardware.seconds:
        return None, {}
    if not kind:
        return None, {
            "speed": "none is published for this detector; give the seconds of an iteration as --seconds"
        }
    if hardware.gpu:
        return gpus.timing(hardware.gpu, kind, resolved.precision).on(hardware.count), {}
    return None, {
        "speed": "that of V100s in Detectron2's model zoo (float32, frozen BN); name your card as --gpu "
        "CARD, or give the seconds of an iteration as --seconds"
    }


def _share(resolved: ResolvedOptions, processes: int) -> CfgNode:
    """Return the config for one GPU's share of a batch with synthetic images."""
    alone = resolved.cfg.clone()
    alone.SOLVER.IMS_PER_BATCH, alone.DATASETS.TRAIN = budget.per_process(resolved.cfg, processes), ()
    return alone


def _measure_share(resolved: ResolvedOptions, hardware: Hardware) -> Calibration:
    """Measure one GPU's share of a batch on this machine."""
    share, log = _share(resolved, hardware.count), Path(os.devnull)
    with join() as processes:
        found = calibration.measure(share, processes, resolved.precision, resolved.images, log=log)
    return replace(found, processes=hardware.count, seconds=hardware.seconds or found.seconds)


def _estimate(
    resolved: ResolvedOptions,
    hardware: Hardware,
    timing: gpus.IterationTime | None,
    notes: dict[str, str],
    kind: str | None,
) -> Calibration:
    """Count the memory and take published times, for GPUs that this machine lacks."""
    alone, images, peak = _share(resolved, hardware.count), resolved.images, None
    share = alone.SOLVER.IMS_PER_BATCH
    if hardware.memory is not None:
        say("plan: counting on the CPU how much memory a step needs")
        need = calibration.count_memory(alone, resolved.precision)
        images = images or budget.images_in_a_pass(share, need, hardware.memory * 1e9)
        peak = need.peak(images)
        which = f"{peak / 1e9:.1f} of {hardware.memory:g} GB (counted) with {images} images in a pass"
        notes["memory"] = which
    elif images is None:
        notes["memory"] = (
            "not known, so neither is how many images fit in a pass; give each GPU's as --memory GB"
        )
    seconds = hardware.seconds or (timing.mid if timing else None)
    if seconds is None and kind and not hardware.gpu:
        seconds = curves.published().speed[kind].seconds * gpus.GPUS / hardware.count
    return Calibration(hardware.count, images or share, resolved.precision, seconds, peak)
