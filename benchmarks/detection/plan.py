"""Before a finetuning: what fits these GPUs and hours, how long it takes, and what AP to expect."""

import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import budget, quiet, synthetic, trainer
from benchmarks.detection.budget import Memory
from triplet import records
from triplet.errors import KitError
from triplet.pretrain.distributed import Processes, perform
from triplet.progress import Bar
from triplet.signals import graceful

from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

WARM, TIMED = 3, 12
"""Iterations of a calibration; the first ones choose kernels and start the loader."""


@dataclass(frozen=True)
class Plan:
    """How a config is trained."""

    processes: int
    images: int
    """Of a process in a pass."""
    precision: str
    seconds: float | None = None
    """Of an iteration, as measured; None if it was not."""
    peak: float | None = None
    """Bytes on the fullest GPU, likewise."""


@dataclass(frozen=True)
class Wish:
    """What the user asks for; None: what is best."""

    hours: float | None = None
    schedule: str | None = None
    """See budget.part."""
    images: int | None = None
    precision: str | None = None


def choose(
    run: str, settings: dict, cfg: CfgNode, processes: Processes, wish: Wish, *, force: bool
) -> tuple[CfgNode, Plan]:
    """Decide how to train a config, and say what that means.

    What was measured is kept in the run's ``plan`` record, so that a resumed run has the same schedule.

    Args:
        run: whose plan it is.
        settings: the config before any compression, as plain values, for the record.
        cfg: the same, with its data and weights.
        processes: all of them; each must call this.
        wish: what the user asks for.
        force: measure anew.

    Returns:
        The config with its final schedule, and the plan.

    Raises:
        KitError: no such schedule, or one that does not fit.
    """
    if wish.schedule and wish.hours:
        raise KitError("--hours and --schedule both say how long to train: give one of them")
    precision = wish.precision or trainer.best_precision()
    share = budget.per_process(cfg, processes.size)
    if wish.schedule:
        cfg = budget.compress(cfg, budget.part(wish.schedule, cfg))
    gpu = processes.device.type == "cuda"
    if not wish.hours and (not gpu or wish.images):
        images = wish.images or share
        _divides(share, images)
        return cfg, Plan(processes.size, images, precision)

    def work(job: records.Job) -> None:
        log = job.folder / "log.txt" if processes.first else Path(os.devnull)
        found = measure(cfg, processes, precision, wish.images, log=log)
        job.results.update(asdict(found))

    folder = records.stage_folder(run, "plan")
    perform(
        processes, "plan", folder, work,
        config={"detectron2": settings, "gpu": _gpu(), "precision": precision, "processes": processes.size,
                "images": wish.images},
        inputs={},
        force=force,
    )  # fmt: skip
    found = Plan(**processes.tell(record.results if (record := records.read(folder)) else None))
    if wish.hours:
        assert found.seconds
        cfg = budget.compress(cfg, budget.part_in(wish.hours, found.seconds, cfg))
    return cfg, found


def _gpu() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _divides(share: int, images: int) -> None:
    if share % images:
        raise KitError(
            f"{share} images for each process do not divide into passes of {images}; "
            f"--images-per-gpu may be {', '.join(map(str, budget.divisors(share)))}"
        )


def measure(cfg: CfgNode, processes: Processes, precision: str, images: int | None, *, log: Path) -> Plan:
    """Train for some iterations from random weights.

    Args:
        cfg: names the data (DATASETS.TRAIN) where loading is to count; else the images are synthetic.
        processes: all of them; each must call this.
        precision: one of trainer.PRECISIONS.
        images: of a process in a pass; by default the most that fit its GPU.
        log: of Detectron2.

    Raises:
        KitError: not even one image fits a GPU.
        Interrupted: stopped by a signal.
    """
    share = budget.per_process(cfg, processes.size)
    gpu = processes.device.type == "cuda"
    with quiet.log_to(log):
        network = trainer.build(cfg, processes, precision)
    optimizer = build_optimizer(cfg, network)

    def run(steps: trainer.Steps, count: int) -> float:
        with EventStorage() as steps.storage:
            for steps.iter in range(count):
                if steps.iter == WARM:
                    began = _now(processes)
                steps.run_step()
                bar.step()
                if steps.stopping:
                    raise stop.interrupted("nothing was trained yet")
            return (_now(processes) - began) / (count - WARM) if count > WARM else 0.0

    def peak(size: int) -> float:
        torch.cuda.reset_peak_memory_stats()
        repeated = itertools.repeat(synthetic.images(cfg, size, seed=0, largest=True))
        run(steps(repeated, size), 2)
        return max(processes.gather(torch.cuda.max_memory_reserved()))

    def steps(loader: Any, size: int) -> trainer.Steps:
        made = trainer.Steps(network, loader, optimizer, processes, size, precision)
        made.stop = stop
        return made

    measuring = gpu and images is None and share > 1
    total = WARM + TIMED + 4 * measuring
    with graceful() as stop, Bar("calibrate", total, quiet=not processes.first) as bar:
        try:
            if measuring:
                memory = Memory.through(peak(1), peak(2))
                images = budget.images_in_a_pass(share, memory, processes.memory or 0)
            images = images or share
            _divides(share, images)
            torch.cuda.empty_cache()
            with quiet.log_to(log):
                loader = trainer.batches(cfg, processes) if cfg.DATASETS.TRAIN else _endless(cfg, processes)
                seconds = run(steps(loader, images), WARM + TIMED)
        except torch.OutOfMemoryError:
            raise KitError(
                f"the GPU is full with {images or 'two'} images in a pass; lower --images-per-gpu"
            ) from None
    full = max(processes.gather(torch.cuda.max_memory_reserved())) if gpu else None
    return Plan(processes.size, images, precision, round(max(processes.gather(seconds)), 4), full)


def _endless(cfg: CfgNode, processes: Processes) -> Iterator[list[dict[str, Any]]]:
    share = budget.per_process(cfg, processes.size)
    made = [synthetic.images(cfg, share, seed=8 * processes.rank + number) for number in range(4)]
    return itertools.cycle(made)


def _now(processes: Processes) -> float:
    if processes.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()
