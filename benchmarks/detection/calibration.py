"""Measure the speed and the memory of a detector's training on the GPUs at hand."""

import contextlib
import gc
import itertools
import math
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import budget, loading, log_capture, model, proof, synthetic, trainer
from benchmarks.detection.budget import Memory
from benchmarks.detection.trainer import GradAccumTrainer
from triplet.errors import KitError, message_of, out_of_memory
from triplet.progress import Bar
from triplet.signals import Stop, graceful
from triplet.training.distributed import Processes
from triplet.training.memory import NoiseForConvolutions, kept_for_backward

from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage

WARM, TIMED = 3, 12
"""Iterations of a calibration. The warm ones choose kernels and start the loaders, and are not timed."""


@dataclass(frozen=True)
class Calibration:
    """Time and memory of training on these GPUs."""

    processes: int
    """Number of training processes, one for each GPU."""
    images: int
    """Images of one process in one forward pass."""
    precision: str
    """One of ``trainer.PRECISIONS``."""
    seconds: float | None = None
    """Seconds per iteration; None if unknown."""
    peak: float | None = None
    """Bytes on the fullest GPU; None if unknown."""


def measure(
    cfg: CfgNode,
    processes: Processes,
    precision: str,
    images: int | None,
    *,
    log: Path,
    inherited: bool = False,
) -> Calibration:
    """Train for some iterations at a learning rate of 0.

    Args:
        cfg: config. If it names data (DATASETS.TRAIN), loading counts and its weights are used; otherwise
            the images are synthetic and the weights random.
        processes: all processes; each must call this.
        precision: one of ``trainer.PRECISIONS``.
        images: images of one process in one pass; by default the most that fit its GPU.
        log: file for Detectron2's log.
        inherited: whether the run being resumed needs exactly this number of images, so that fewer are no
            remedy.

    Raises:
        KitError: not even one image fits a GPU, or the loss is not finite.
        Interrupted: a signal stopped the measurement.
    """
    share = budget.per_process(cfg, processes.size)
    budget.check_passes(share, images or share)
    gpu = processes.device.type == "cuda"
    with graceful() as stop, Bar("calibrate", WARM + TIMED, quiet=not processes.is_main_process) as bar:
        try:
            if gpu and images is None and share > 1:
                with log_capture.log_to(log):
                    images = _most_images(cfg, processes, precision, share)
            images = images or share
            free_memory(processes)
            with log_capture.log_to(log):
                seconds = _time_iteration(cfg, processes, precision, images, stop, bar)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise KitError(budget.full(images or share, kept=inherited)) from None
        except FloatingPointError as error:
            reason = message_of(error, 120)
            raise KitError(f"calibrating in {precision}: {reason}; add --precision float32") from None
    peak = max(processes.gather(torch.cuda.max_memory_reserved())) if gpu else None
    slowest = round(max(processes.gather(seconds)), 4)
    return Calibration(processes.size, images, precision, slowest, peak)


def count_memory(cfg: CfgNode, precision: str) -> Memory:
    """Estimate a process's memory without a GPU, by a forward pass of one image of the largest size.

    It runs on the CPU, and its convolutions are not computed. In half precision, activations count half. A
    gigabyte is added for CUDA, and a fifth to each image for tensors that are not kept for the backward
    pass.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    with log_capture.log_to(Path(os.devnull)):
        network = model.build(cfg)
        parameters = sum(p.numel() * p.element_size() for p in network.parameters())
        with (
            EventStorage(),
            kept_for_backward(network, lambda tensor: tensor.untyped_storage().nbytes()) as kept,
            NoiseForConvolutions(),  # type: ignore[no-untyped-call]
        ):
            network.train()(synthetic.images(cfg, 1, seed=0, largest=True))
    half = 0.5 if trainer.PRECISIONS[precision] else 1.0
    image = 1.2 * half * sum(kept.values())
    return Memory(one=1e9 + 3.5 * parameters + image, more=image)


def gpu_name() -> str:
    """Return the name of this process's GPU, or ``none``."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _most_images(cfg: CfgNode, processes: Processes, precision: str, share: int) -> int:
    """Find the most images in one pass that fit every process's GPU."""
    limit = processes.free or 0.0

    def peak(images: int) -> float:
        return max(processes.gather(_peak(cfg, processes, precision, images)))

    images = budget.images_in_a_pass(share, Memory.through(peak(1), peak(2)), limit)
    while images > 2 and peak(images) > budget.MARGIN * limit:
        images = max(n for n in budget.divisors(share) if n < images)
    return images


def _peak(cfg: CfgNode, processes: Processes, precision: str, images: int) -> float:
    """Measure the bytes that training on ``images`` of the largest images takes; infinite if out of memory.

    Each process measures alone, so that none waits in a collective for one that is out of memory; BN over
    its own images takes as much memory as over all.
    """
    free_memory(processes)
    local = model.with_norm(cfg, "BN")
    alone = Processes(0, 1, processes.device)
    repeated = itertools.repeat(synthetic.images(cfg, images, seed=0, largest=True))
    try:
        _take_steps(_stepper(local, alone, precision, repeated, images), 2)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return math.inf
    return torch.cuda.max_memory_reserved()


def _time_iteration(
    cfg: CfgNode, processes: Processes, precision: str, images: int, stop: Stop, bar: Bar
) -> float:
    """Return the mean seconds of an iteration over ``TIMED`` iterations after ``WARM`` uncounted ones."""
    times: list[float] = []
    with contextlib.closing(_batches(cfg, processes, stop)) as loader:
        steps = _stepper(cfg, processes, precision, loader, images)
        steps.stop = stop

        def after_step(done: int) -> None:
            if done in (WARM, WARM + TIMED):
                times.append(_synchronized_time(processes))
            if steps.stopping:
                raise stop.interrupted("nothing was trained yet")
            bar.step()

        _take_steps(steps, WARM + TIMED, after_step)
    return (times[1] - times[0]) / TIMED


def _stepper(
    cfg: CfgNode, processes: Processes, precision: str, loader: Any, images: int
) -> GradAccumTrainer:
    """Build a trainer with learning rate 0, whose steps change no weight."""
    network = trainer.build(cfg, processes, precision)
    if cfg.DATASETS.TRAIN:
        proof.load_and_check(trainer.bare(network), Path(cfg.MODEL.WEIGHTS))
    optimizer = build_optimizer(cfg, network)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    steps = GradAccumTrainer(network, loader, optimizer, processes, images, precision)
    # At the usual scale the first steps may overflow and would be skipped.
    steps.scaler = torch.amp.GradScaler(
        processes.device.type, init_scale=1.0, enabled=precision == "float16"
    )
    return steps


def _take_steps(
    steps: GradAccumTrainer, count: int, after_step: Callable[[int], None] = lambda done: None
) -> None:
    """Take ``count`` steps; after each, call ``after_step`` with the number of steps done."""
    with EventStorage() as steps.storage:
        for steps.iter in range(count):
            steps.run_step()
            after_step(steps.iter + 1)


def _batches(cfg: CfgNode, processes: Processes, stop: Stop) -> Generator[list[dict[str, Any]], None, None]:
    """Yield batches of the config's data, or synthetic ones if it names none."""
    if cfg.DATASETS.TRAIN:
        yield from loading.batches(cfg, processes, stop)
    share = budget.per_process(cfg, processes.size)
    made = [synthetic.images(cfg, share, seed=8 * processes.rank + number) for number in range(4)]
    yield from itertools.cycle(made)


def free_memory(processes: Processes) -> None:
    """Return the memory of earlier models to the GPU, and reset its peak."""
    gc.collect()
    if processes.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _synchronized_time(processes: Processes) -> float:
    """Return the seconds of a monotonic clock after the GPU has finished its work."""
    if processes.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()
