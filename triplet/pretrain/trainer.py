"""The training loop: data, step, optimiser, EMA, logs, checkpoints."""

import contextlib
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from triplet import files, paths, toolchain
from triplet.errors import KitError
from triplet.images import Images
from triplet.models.networks import Networks
from triplet.pretrain import data
from triplet.pretrain.config import TOGETHER, Pretrain
from triplet.pretrain.estimate import estimate
from triplet.pretrain.layout import Layout, Order, Pass, plan
from triplet.pretrain.loss import truncated_triplet_loss
from triplet.pretrain.methods import METHODS
from triplet.pretrain.methods.common import Batch
from triplet.pretrain.monitor import MEASURES, Knn, measure
from triplet.pretrain.recolor import send
from triplet.pretrain.step import Sizes, triplet_step
from triplet.pretrain.views import draw_sizes, normalize
from triplet.progress import Bar, say
from triplet.records import Job
from triplet.signals import graceful
from triplet.training import checkpoint
from triplet.training.distributed import Processes, group_batch_norm, pool_batch_norm
from triplet.training.metrics import Log, Pace, memory
from triplet.training.optim import LARS, ema_update, parameter_groups
from triplet.training.schedule import ema_momentum, learning_rate
from triplet.weights.initial import load_initial

Batches = Generator[tuple[Tensor, list[int]], None, None]


class Objective(nn.Module):
    """Networks and loss as one module, so that DistributedDataParallel sees every gradient."""

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.networks = Networks(**config.model.model_dump())
        self.config = config.loss
        self.loss = partial(
            truncated_triplet_loss, gamma=config.loss.gamma, margin=config.loss.margin,
            nearest=config.loss.nearest, skip=config.loss.skip, group_size=config.loss.group,
        )  # fmt: skip
        self.mixed = config.precision == "bfloat16"

    def forward(self, pairs: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor]:
        """(n, 2, 3, h, w) uint8 views -> the loss, and what ``measure`` says of the features."""
        dtype = next(self.networks.parameters()).dtype
        view_1, view_2 = (
            normalize(pairs[:, i], dtype).contiguous(memory_format=torch.channels_last) for i in (0, 1)
        )
        with torch.autocast(pairs.device.type, torch.bfloat16, enabled=self.mixed):
            loss, predictions, targets = triplet_step(self.networks, view_1, view_2, sizes, self.loss)
        return loss, measure(loss, predictions, targets, self.config)


class Baseline(nn.Module):
    """The same for another method.

    Args:
        config: of the run.
        images: in the data set.
        processes: that train as one.
    """

    def __init__(self, config: Pretrain, images: int, processes: Processes) -> None:
        super().__init__()
        self.config, self.processes = config, processes
        self.method = METHODS[config.method]
        self.networks: nn.Module = self.method.build(config, images)
        self.mixed = config.precision == "bfloat16"

    def forward(self, pixels: Tensor, each: Pass) -> tuple[Tensor, Tensor]:
        """(n, k, 3, h, w) uint8 views -> the loss, and it again with the method's measures."""
        dtype = next(self.networks.parameters()).dtype
        views = [
            normalize(view, dtype).contiguous(memory_format=torch.channels_last)
            for view in pixels.unbind(1)
        ]
        batch = Batch(
            config=self.config, iteration=each.iteration,
            indices=send(torch.tensor([index for _, index in each.items]), pixels.device),
            first=each.first, gather=self.processes.rows, processes=self.processes.size,
        )  # fmt: skip
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.mixed):
            loss, measures = self.method.step(self.networks, views, batch)
        return loss, torch.stack([loss.detach(), *measures]).float()


def make_objective(
    config: Pretrain, images: int, layout: Layout, processes: Processes
) -> Objective | Baseline:
    """Networks and loss of the config's method, on the CPU.

    Raises:
        KitError: a method that looks at a micro-batch as a whole, whose share does not fit a GPU.
    """
    if config.method == "triplet":
        objective: Objective | Baseline = Objective(config)
    else:
        objective = Baseline(config, images, processes)
    if config.method in TOGETHER and layout.splits > 1:
        raise KitError(
            f"{config.method} looks at its {config.micro_batch} images at once, so "
            f"{layout.images * layout.splits} must fit a GPU: take more GPUs, or leave images_per_gpu out"
        )
    return objective


def make_optimizer(networks: nn.Module, config: Pretrain) -> Optimizer:
    """LARS over all but the target network, in the recipe's two groups; or SGD."""
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
        settings.learning_rate, settings.momentum,
    )  # fmt: skip


def measures(config: Pretrain) -> tuple[str, ...]:
    """Names of what the objective gives besides the loss that is stepped."""
    return MEASURES if config.method == "triplet" else ("loss", *METHODS[config.method].MEASURES)


def compile_networks(networks: nn.Module) -> None:
    """torch.compile each network in place, once for each resolution; names and tensors stay.

    Raises:
        KitError: no C compiler or no headers of Python, which torch.compile builds its launchers with.
    """
    if lacking := toolchain.missing(gpu=next(networks.parameters()).is_cuda):
        raise KitError(
            f"compile=true needs {' and '.join(lacking)}: install g++ and python3-dev (whatever the system "
            "calls them), or add compile=false"
        )
    toolchain.keep_compiled_code(paths.root("checkpoints") / ".compiled")
    torch._dynamo.config.optimize_ddp = False  # else graphs are split at DDP's buckets
    torch._dynamo.config.recompile_limit = 256  # the default, 8, is fewer than there are resolutions
    for network in networks.children():
        network.compile(dynamic=False)


def pretrain(
    config: Pretrain, images: Images, job: Job, processes: Processes, weights: Path | None = None
) -> None:
    """Train from the last checkpoint in the job's folder, or from the start, to the end.

    Leaves ``checkpoint.pth`` (without optimiser), ``metrics.jsonl`` (a line for each optimiser step) and
    ``tensorboard/``.

    Args:
        config: of the run.
        images: to train on.
        job: to fill in.
        processes: that train as one.
        weights: initial ones, instead of those drawn from the seed.

    Raises:
        KitError: a loss that is not finite, too many unreadable images, a checkpoint that cannot be
            written, a batch that does not divide among the processes, weights that do not fit.
        Interrupted: stopped by a signal, after saving.
    """
    layout, order = plan(config, processes.size), Order(len(images), config)
    cores = processes.use_cores(config.loaders)
    torch.manual_seed(config.seed)
    objective = make_objective(config, len(images), layout, processes).train()
    networks: Any = objective.networks
    origin = load_initial(weights, networks) if weights else "drawn from the seed"
    objective.to(processes.device)
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    if config.batch_norm == "group":
        group_batch_norm(objective, layout.images // config.loss.group)
    else:
        pool_batch_norm(objective, processes, layout.ranks, compiled=config.compile)
    torch.backends.cudnn.benchmark = config.views.few or config.method != "triplet"
    if config.compile:
        compile_networks(networks)
    model: nn.Module = objective
    if processes.size > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = make_optimizer(networks, config)
    start = checkpoint.resume(job.folder, networks, optimizer, processes)
    knn = Knn(config, images, processes) if config.monitor.every else None
    if processes.first:
        say(f"pretrain: {layout.describe()}; {order.describe()}")
        say(f"pretrain: {estimate(config, layout).describe()}; weights: {origin}")
        say(f"pretrain: {cores}")

    unreadable = Unreadable(job.folder, images, config, processes)
    pace = Pace(config.batch, order.steps, start)
    with (
        graceful() as stop,
        Log(job.folder, start, config.optimizer.accumulate, first=processes.first) as log,
        Bar("pretrain", order.steps, start, quiet=not processes.first) as bar,
        contextlib.closing(
            _loader(config)(images, layout, order, processes.rank, start, processes.device, stop)
        ) as batches,
    ):
        for step, passes in enumerate(layout.steps(order, processes.rank, start), start):
            seen, waited, bad = accumulate(model, config, passes, batches)
            rate, momentum = advance(networks, optimizer, config, order, step)
            done = step + 1

            own = torch.tensor([float(bool(stop)), unreadable.news(bad), waited], dtype=seen.dtype)
            # The one place where the host waits for the device.
            *measured, stopping, news, waited = processes.mean(
                torch.cat([seen, own.to(processes.device)])
            ).tolist()
            _refuse(measured[0], done, job.folder, images, order)
            if news:
                unreadable.add(bad)
            values = {
                "iteration": done * config.optimizer.accumulate,
                "epoch": order.epoch(done),
                **dict(zip(measures(config), measured, strict=True)),
                "learning_rate": rate,
                **({} if momentum is None else {"ema_momentum": momentum}),
                **pace.step(waited),
                "memory": memory(processes.device),
            }
            evaluating = knn is not None and order.ends_epoch(done, config.monitor.every)
            saving = bool(stopping) or done % config.checkpoint_every == 0 or done == order.steps
            if (evaluating or saving) and layout.teams > 1:
                average_statistics(networks, processes)
            if knn and evaluating:
                values["knn"] = knn(networks, stop)
                pace.pause()
            log.write(done, values)
            if saving:
                if processes.first:
                    _save(job.folder, networks, optimizer, done, order)
                if stopping and done < order.steps:
                    processes.tell()  # whoever ends first takes the others along: not before it is saved
                    raise stop.interrupted(f"{done} of {order.steps} steps")
            if processes.first and (forecast := pace.forecast(done)):
                say(f"pretrain: {forecast}")
            bar.step(f"loss {measured[0]:.3f}")

    if processes.first:
        _finish(config, job, networks, layout, order, log.last)
        job.results["unreadable"] = unreadable.names
        job.results["weights"] = origin
        job.images_per_second = pace.average()


def _loader(config: Pretrain) -> Callable[..., Batches]:
    if config.views.backend != "dali":
        return data.load
    from triplet.pretrain import dali

    return dali.load


def accumulate(
    model: nn.Module, config: Pretrain, passes: list[Pass], batches: Batches
) -> tuple[Tensor, float, set[int]]:
    """Forward and backward of every pass of one optimiser step; gradients are reduced in the last one.

    Args:
        model: of ``make_objective``, or DistributedDataParallel around it.
        config: of the run.
        passes: of this process in this step.
        batches: one item for each pass, see ``data.load``.

    Returns:
        The mean of each of ``measures``, on the device; the seconds spent waiting for data; the indices of
        images that could not be read.

    Raises:
        KitError: a pass does not fit the GPU.
    """
    waited, seen, unreadable = 0.0, None, set[int]()
    for number, each in enumerate(passes, 1):
        asked = time.monotonic()
        pairs, bad = next(batches)
        waited += time.monotonic() - asked
        unreadable |= {*bad}
        triplet = config.method == "triplet"
        drawn = draw_sizes(config.views, config.seed, each.iteration) if triplet else each
        silent = isinstance(model, DistributedDataParallel) and number < len(passes)
        with model.no_sync() if silent else contextlib.nullcontext():  # type: ignore[operator]
            try:
                loss, values = model(pairs, drawn)
                (loss / len(passes)).backward()
            except torch.OutOfMemoryError:
                way = "take a larger one"
                if config.method not in TOGETHER and len(pairs) > config.loss.group:
                    way = f"limit them with images_per_gpu={config.loss.group} (or a multiple of that)"
                raise KitError(f"{len(pairs)} images at once do not fit this GPU; {way}") from None
        seen = values / len(passes) if seen is None else seen + values / len(passes)
    assert seen is not None
    return seen, waited, unreadable


def average_statistics(networks: nn.Module, processes: Processes) -> None:
    """Teams see different micro-batches: their BN's running statistics become the mean of all."""
    for buffer in networks.buffers():
        if buffer.is_floating_point():
            processes.mean(buffer)


def advance(
    networks: Any, optimizer: Optimizer, config: Pretrain, order: Order, step: int
) -> tuple[float, float | None]:
    """End an optimiser step: learning rate, optimiser, then EMA. Both schedules count micro-batches.

    Returns:
        The learning rate and the EMA momentum that were used; None for a method that has no EMA here.
    """
    iteration = (step + 1) * config.optimizer.accumulate - 1
    rate = learning_rate(
        iteration, peak=config.optimizer.learning_rate, iterations_per_epoch=order.per_epoch,
        epochs=config.schedule.epochs, warmup_epochs=config.schedule.warmup_epochs,
        warmup_ratio=config.schedule.warmup_ratio, steps=config.schedule.steps,
    )  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if config.method != "triplet" and not METHODS[config.method].EMA:
        return rate, None
    momentum = ema_momentum(iteration, iterations=order.iterations, base=config.schedule.ema_base)
    ema_update(networks.target, networks.online, momentum)
    return rate, momentum


def _save(folder: Path, networks: nn.Module, optimizer: Optimizer, step: int, order: Order) -> None:
    checkpoint.save(folder / f"step_{step:07d}.pth", networks, optimizer, step, order.epoch(step))
    checkpoint.keep(folder, order.config.keep)


def _finish(
    config: Pretrain, job: Job, networks: nn.Module, layout: Layout, order: Order, last: dict[str, float]
) -> None:
    final = job.folder / "checkpoint.pth"
    checkpoint.save(final, networks, None, order.steps, config.schedule.epochs)
    job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
    job.results.update(
        images=order.images, batch=config.batch, epochs=config.schedule.epochs, steps=order.steps,
        bn_images=layout.bn_images, layout=layout.describe(), final=last,
    )  # fmt: skip


def _refuse(loss: float, step: int, folder: Path, images: Images, order: Order) -> None:
    """KitError with step, images and last good checkpoint when the loss is not finite."""
    if torch.isfinite(torch.tensor(loss)):
        return
    accumulate = order.config.optimizer.accumulate
    names = [
        images.name(index)
        for iteration in range((step - 1) * accumulate, step * accumulate)
        for _, index in order.micro_batch(iteration)
    ]
    listed = folder / "not_finite.txt"
    files.write_text(listed, "\n".join(names) + "\n")
    good = next((path.name for path in checkpoint.checkpoints(folder)), "none")
    raise KitError(
        f"loss is {loss} at step {step}; its images are listed in {listed}; last good checkpoint: {good}; "
        "lower optimizer.learning_rate, or look at those images"
    )


class Unreadable:
    """Images that could not be read, of all processes and sessions: ``unreadable.txt`` names them."""

    def __init__(self, folder: Path, images: Images, config: Pretrain, processes: Processes) -> None:
        self._file, self._images, self._config, self._processes = (
            folder / "unreadable.txt", images, config, processes
        )  # fmt: skip
        known = self._file.read_text().splitlines() if processes.first and self._file.exists() else []
        self.names: list[str] = processes.tell(known)

    def news(self, indices: set[int]) -> int:
        """How many of these are not known yet."""
        return sum(self._images.name(index) not in self.names for index in indices)

    def add(self, indices: set[int]) -> None:
        """Take in what every process has found; KitError when all are more than the config allows."""
        found = set().union(*self._processes.gather(indices))
        new = sorted({self._images.name(index) for index in found} - {*self.names})
        self.names = sorted([*self.names, *new])
        if self._processes.first:
            files.write_text(self._file, "".join(f"{name}\n" for name in self.names))
            say(f"pretrain: cannot be read, replaced by another: {', '.join(new)}")
        if len(self.names) > self._config.unreadable * len(self._images):
            raise KitError(
                f"{len(self.names)} of {len(self._images)} images cannot be read, listed in {self._file}; "
                f"more than unreadable={self._config.unreadable} allows: mend the folder or raise it"
            )
