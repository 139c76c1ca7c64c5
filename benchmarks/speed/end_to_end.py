"""The kit's step fed by the kit's loader, from files to updated weights."""

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.steps import Kit, host_batches
from benchmarks.speed.timing import Budget, spread
from triplet.images import open_images
from triplet.pretrain import data, trainer
from triplet.pretrain.layout import Order, make_layout
from triplet.pretrain.views import InputResolutions
from triplet.signals import Stop


def backends(device: torch.device) -> list[str]:
    """Return the installed backends of the views; DALI works only on the GPU."""
    found = ["opencv"]
    if device.type == "cuda":
        try:
            importlib.import_module("nvidia.dali")
            importlib.import_module("triplet.pretrain.dali")
            found.append("dali")
        except ImportError:
            pass
    return found


def end_to_end(kit: Kit, backend: str, folder: Path, workers: int, budget: Budget) -> dict[str, Any]:
    """Measure images/s of the loader alone and of training, and the share of time spent waiting for data.

    Args:
        kit: the kit's step.
        backend: backend of the views.
        folder: folder with at least a micro-batch of images.
        workers: number of loader processes.
        budget: a third of its seconds is for the loader alone, the rest for loader and step together.
    """
    views = kit.config.views.model_copy(update={"backend": backend})
    schedule = kit.config.schedule.model_copy(update={"epochs": 10**6})  # more than can be measured
    config = kit.config.model_copy(update={"views": views, "workers": workers, "schedule": schedule})
    images = open_images(folder)
    layout, order = make_layout(config, 1), Order(len(images), config)
    load: Any = data.load if backend != "dali" else importlib.import_module("triplet.pretrain.dali").load
    torch.backends.cudnn.benchmark = kit.cudnn_benchmark
    _meet_every_size(kit)

    batches = load(images, layout, order, 0, 0, budget.device, Stop())
    for _ in range(4 * workers + 2):  # as many as the loader prefetches
        next(batches)
    alone, taken = _repeat(budget.seconds / 3, budget.rounds, lambda: next(batches), budget.device)
    batches.close()

    batches = load(images, layout, order, 0, 0, budget.device, Stop())
    passes, shares = layout.steps(order, 0, 0), list[float]()

    def train() -> None:
        began = time.perf_counter()
        seen, waited, _ = trainer.accumulate(kit.objective, kit.objective, next(passes), batches)
        trainer.advance(kit.networks, kit.optimizer, config, kit.order, kit.order.steps // 2)
        seen.tolist()  # waits for the device, as the trainer does
        shares.append(waited / (time.perf_counter() - began))

    for _ in range(budget.warmup + 1):
        train()
    shares.clear()
    seconds, steps = _repeat(budget.seconds * 2 / 3, budget.rounds, train, budget.device)
    batches.close()
    return {
        "step": kit.name,
        "backend": backend,
        "workers": workers,
        "loader_images_per_second": taken * config.micro_batch / alone,
        "images_per_second": steps * config.batch / seconds,
        "waiting_share": spread(shares),
        "steps": steps,
    }


def _meet_every_size(kit: Kit) -> None:
    """Run each resolution once before the measurement, so that compiled networks are compiled for it."""
    if not kit.config.compile:
        return
    online, target = kit.config.views.online, kit.config.views.target
    batch = host_batches(kit.config, kit.device)[kit.wants]
    for side in range(online.smallest, online.largest + 1, online.step):
        kit.micro_batch(
            batch, InputResolutions(side, side, max(side, target.smallest), max(side, target.smallest))
        )
    kit.update()


def _repeat(
    seconds: float, rounds: int, run: Callable[[], object], device: torch.device
) -> tuple[float, int]:
    """Return seconds and number of repetitions, as loaders deliver in bursts and single times say
    little."""
    began, count = time.perf_counter(), 0
    while count < rounds or time.perf_counter() - began < seconds:
        run()
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, count
