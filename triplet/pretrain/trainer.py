"""The training loop: data, step, optimiser, EMA, logs, checkpoints."""

import contextlib
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from triplet import files
from triplet.errors import KitError
from triplet.images import Images
from triplet.pretrain import data
from triplet.pretrain.config import Pretrain
from triplet.pretrain.estimate import estimate
from triplet.pretrain.layout import Layout, MicroBatch, Order, make_layout
from triplet.pretrain.methods import METHODS
from triplet.pretrain.monitor import KnnMonitor
from triplet.pretrain.objective import Objective, backward, make_objective
from triplet.pretrain.unreadable import Unreadable
from triplet.progress import Bar, say
from triplet.records import Job
from triplet.signals import Stop, graceful
from triplet.training import checkpoint
from triplet.training.batch_norm import group_batch_norm, pool_batch_norm
from triplet.training.compilation import compile_networks
from triplet.training.distributed import Processes
from triplet.training.metrics import MetricLogger, ThroughputMeter, memory
from triplet.training.optim import LARS, ema_update, parameter_groups
from triplet.training.schedule import ema_momentum, learning_rate
from triplet.weights.initial import load_initial

Batches = Generator[tuple[Tensor, list[int]], None, None]


def make_optimizer(networks: nn.Module, config: Pretrain) -> Optimizer:
    """Build LARS, with the recipe's two groups, or SGD over all networks but the target."""
    settings = config.optimizer
    trained = [(n, p) for n, p in networks.named_parameters() if not n.startswith("target.")]
    if settings.name == "lars":
        groups = parameter_groups(trained, settings.weight_decay)
        return LARS(groups, settings.learning_rate, settings.momentum, eta=settings.eta)
    decay = settings.head_weight_decay
    parts = {True: settings.weight_decay, False: settings.weight_decay if decay is None else decay}
    return torch.optim.SGD(
        [
            {
                "params": [p for n, p in trained if n.startswith("online.backbone.") == backbone],
                "weight_decay": value,
            }
            for backbone, value in parts.items()
        ],
        settings.learning_rate,
        settings.momentum,
    )


@dataclass
class TrainState:
    """The state that the training loop works with."""

    config: Pretrain
    images: Images
    job: Job
    processes: Processes
    layout: Layout
    order: Order
    objective: Objective
    model: nn.Module
    """The objective, wrapped in DistributedDataParallel if there are several processes."""
    optimizer: Optimizer
    origin: str
    """Origin of the initial weights, for the record."""
    start: int
    """Optimiser steps done in earlier sessions."""

    @property
    def networks(self) -> Any:
        """The method's networks, as they are saved."""
        return self.objective.networks


def pretrain(
    config: Pretrain, images: Images, job: Job, processes: Processes, weights: Path | None = None
) -> None:
    """Train from the last checkpoint in the job's folder, or from the start, to the end.

    Write ``checkpoint.pth`` (without optimiser), ``metrics.jsonl`` (a line for each optimiser step) and
    ``tensorboard/``.

    Args:
        config: the run's config.
        images: the images to train on.
        job: the stage's record, to fill in.
        processes: the processes that train together.
        weights: initial weights, instead of those drawn from the seed.

    Raises:
        KitError: a loss that is not finite, too many unreadable images, a checkpoint that cannot be
            written, a batch that does not divide among the processes, weights that do not fit.
        Interrupted: a signal stopped the training, after saving.
    """
    cores = processes.use_cores(config.loaders)
    run = prepare(config, images, job, processes, weights)
    knn = KnnMonitor(config, images, processes) if config.monitor.every else None
    if processes.is_main_process:
        say(f"pretrain: {run.layout.describe()}; {run.order.describe()}")
        say(f"pretrain: {estimate(config, run.layout).describe()}; weights: {run.origin}")
        say(f"pretrain: {cores}")
    unreadable = Unreadable(job.folder, images, config, processes)
    pace = ThroughputMeter(config.batch, run.order.steps, run.start)
    last = train(run, pace, unreadable, knn)
    if processes.is_main_process:
        _finish(run, last)
        job.results["unreadable"] = unreadable.names
        job.results["weights"] = run.origin
        job.images_per_second = pace.average()


def prepare(
    config: Pretrain, images: Images, job: Job, processes: Processes, weights: Path | None
) -> TrainState:
    """Build networks and optimiser on the processes' devices, and load the last checkpoint; see
    ``pretrain``."""
    layout, order = make_layout(config, processes.size), Order(len(images), config)
    torch.manual_seed(config.seed)
    objective = make_objective(config, len(images), layout, processes).train()
    networks: Any = objective.networks
    origin = load_initial(weights, networks) if weights else "drawn from the seed"
    job.check_inputs()
    objective.to(processes.device)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    if config.batch_norm == "group":
        group_batch_norm(objective, layout.images // config.loss.group)
    else:
        pool_batch_norm(objective, processes, layout.ranks)
    # Tuning kernels for each resolution pays off if there are few.
    few = config.views.few_resolutions or not objective.method.TRAITS.draws_resolutions
    torch.backends.cudnn.benchmark = few
    if config.compile:
        compile_networks(networks.children(), dynamic=not few)
    model: nn.Module = objective
    if processes.size > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = make_optimizer(networks, config)
    final = job.folder / "checkpoint.pth" if job.lost_record else None
    start = checkpoint.resume(
        job.folder, networks, optimizer, processes, order.steps, final=final, plan=job.plan
    )
    return TrainState(
        config, images, job, processes, layout, order, objective, model, optimizer, origin, start
    )


def train(
    run: TrainState, pace: ThroughputMeter, unreadable: Unreadable, knn: KnnMonitor | None
) -> dict[str, float]:
    """Take the remaining optimiser steps, with logs and checkpoints.

    Returns:
        The log line of the last step.
    """
    config, processes, order, layout = run.config, run.processes, run.order, run.layout
    rank, folder = processes.rank, run.job.folder
    load = _loader(config)
    with (
        graceful() as stop,
        MetricLogger(
            folder, run.start, config.optimizer.accumulate, is_main_process=processes.is_main_process
        ) as log,
        Bar("pretrain", order.steps, run.start, quiet=not processes.is_main_process) as bar,
        contextlib.closing(
            load(run.images, layout, order, rank, run.start, processes.device, stop)
        ) as batches,
    ):
        for step, passes in enumerate(layout.steps(order, rank, run.start), run.start):
            done = step + 1
            values, stopping = _take_step(run, step, passes, batches, unreadable, pace, stop)
            evaluating = knn is not None and order.ends_epoch(done, config.monitor.every)
            saving = stopping or done % config.checkpoint_every == 0 or done == order.steps
            if (evaluating or saving) and layout.teams > 1:
                average_statistics(run.networks, processes)
            if knn and evaluating:
                values["knn"] = knn(run.networks, stop)
                pace.pause()
            log.write(done, values)
            if saving:
                if processes.is_main_process:
                    _save(run, done)
                if stopping and done < order.steps:
                    # A barrier: torchrun kills the other ranks when one exits.
                    processes.broadcast_object()
                    raise stop.interrupted(f"{done} of {order.steps} steps")
            if processes.is_main_process and (forecast := pace.forecast(done)):
                say(f"pretrain: {forecast}")
            bar.step(f"loss {values['loss']:.3f}")
        return log.last


def _take_step(
    run: TrainState,
    step: int,
    passes: list[MicroBatch],
    batches: Batches,
    unreadable: Unreadable,
    pace: ThroughputMeter,
    stop: Stop,
) -> tuple[dict[str, Any], bool]:
    """Take one optimiser step; return its log line, and whether any process was asked to stop."""
    config, processes, order, done = run.config, run.processes, run.order, step + 1
    seen, waited, bad = accumulate(run.objective, run.model, passes, batches)
    rate, momentum = advance(run.networks, run.optimizer, config, order, step)
    own = torch.tensor([float(bool(stop)), unreadable.news(bad), waited], dtype=seen.dtype)
    # The only place where the host waits for the device.
    *measured, stopping, news, waited = processes.mean(torch.cat([seen, own.to(processes.device)])).tolist()
    _refuse_not_finite(measured[0], done, run)
    if news:
        unreadable.add(bad)
    values = {
        "iteration": done * config.optimizer.accumulate,
        "epoch": order.epoch(done),
        **dict(zip(run.objective.measures, measured, strict=True)),
        "learning_rate": rate,
        **({} if momentum is None else {"ema_momentum": momentum}),
        **pace.step(waited),
        "memory": memory(processes.device),
    }
    return values, bool(stopping)


def _loader(config: Pretrain) -> Callable[..., Batches]:
    if config.views.backend != "dali":
        return data.load
    from triplet.pretrain import dali

    return dali.load


def accumulate(
    objective: Objective, model: nn.Module, passes: list[MicroBatch], batches: Batches
) -> tuple[Tensor, float, set[int]]:
    """Run the forward and backward passes of one optimiser step; gradients are reduced in the last one.

    Args:
        objective: the run's objective.
        model: the objective, or DistributedDataParallel around it.
        passes: this process's passes in this step.
        batches: one item for each pass, see ``data.load``.

    Returns:
        The mean of each of ``measures``, on the device; the seconds spent waiting for data; the indices of
        unreadable images.

    Raises:
        KitError: a pass does not fit the GPU.
    """
    waited, seen, unreadable, config = 0.0, None, set[int](), objective.config
    for number, each in enumerate(passes, 1):
        asked = time.monotonic()
        pairs, bad = next(batches)
        waited += time.monotonic() - asked
        unreadable |= {*bad}
        step, last = objective.begin(pairs, each), number == len(passes)
        try:
            values = backward(objective, step, len(passes), model, reduce=last).float()
        except torch.OutOfMemoryError:
            way = "take a larger one"
            if not METHODS[config.method].TRAITS.needs_whole_batch and len(pairs) > config.loss.group:
                way = f"limit them with images_per_gpu={config.loss.group} (or a multiple of that)"
            raise KitError(f"{len(pairs)} images at once do not fit this GPU; {way}") from None
        seen = values / len(passes) if seen is None else seen + values / len(passes)
    assert seen is not None
    return seen, waited, unreadable


def average_statistics(networks: nn.Module, processes: Processes) -> None:
    """Average BN's running statistics over the teams, which see different micro-batches."""
    for buffer in networks.buffers():
        if buffer.is_floating_point():
            processes.mean(buffer)


def advance(
    networks: Any, optimizer: Optimizer, config: Pretrain, order: Order, step: int
) -> tuple[float, float | None]:
    """Finish an optimiser step: learning rate, optimiser, then EMA. Both schedules count micro-batches.

    Returns:
        The learning rate, and the EMA momentum or None if the method's target is not updated here.
    """
    iteration = (step + 1) * config.optimizer.accumulate - 1
    rate = learning_rate(
        iteration,
        peak=config.optimizer.learning_rate,
        iterations_per_epoch=order.per_epoch,
        epochs=config.schedule.epochs,
        warmup_epochs=config.schedule.warmup_epochs,
        warmup_ratio=config.schedule.warmup_ratio,
        steps=config.schedule.steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if not METHODS[config.method].TRAITS.ema_target:
        return rate, None
    momentum = ema_momentum(iteration, iterations=order.iterations, base=config.schedule.ema_base)
    ema_update(networks.target, networks.online, momentum)
    return rate, momentum


def _save(run: TrainState, step: int) -> None:
    folder = run.job.folder
    path = folder / f"step_{step:07d}.pth"
    checkpoint.save(path, run.networks, run.optimizer, step, run.order.epoch(step), run.job.plan)
    checkpoint.keep(folder, run.config.max_to_keep)


def _finish(run: TrainState, last: dict[str, float]) -> None:
    config, order, job = run.config, run.order, run.job
    final = job.folder / "checkpoint.pth"
    checkpoint.save(final, run.networks, None, order.steps, config.schedule.epochs, job.plan)
    job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
    job.results.update(
        images=order.images,
        batch=config.batch,
        epochs=config.schedule.epochs,
        steps=order.steps,
        bn_images=run.layout.bn_images,
        layout=run.layout.describe(),
        final=last,
    )


def _refuse_not_finite(loss: float, step: int, run: TrainState) -> None:
    """Raise KitError naming step, images and last good checkpoint if the loss is not finite."""
    if math.isfinite(loss):
        return
    accumulate = run.config.optimizer.accumulate
    names = [
        run.images.name(index)
        for iteration in range((step - 1) * accumulate, step * accumulate)
        for _, index in run.order.micro_batch(iteration)
    ]
    listed = run.job.folder / "not_finite.txt"
    files.write_text(listed, "\n".join(names) + "\n")
    good = next((path.name for path in checkpoint.checkpoints(run.job.folder)), "none")
    raise KitError(
        f"loss is {loss} at step {step}; its images are listed in {listed}; last good checkpoint: {good}; "
        "lower optimizer.learning_rate, or look at those images"
    )
