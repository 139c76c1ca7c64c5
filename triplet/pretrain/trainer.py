"""The training loop: data, step, optimiser, EMA, logs, checkpoints."""

import contextlib
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from triplet import files
from triplet.errors import KitError
from triplet.pretrain import checkpoint
from triplet.pretrain.config import Pretrain
from triplet.pretrain.data import load
from triplet.pretrain.distributed import Processes, pool_batch_norm
from triplet.pretrain.layout import Layout, Order, plan
from triplet.pretrain.loss import truncated_triplet_loss
from triplet.pretrain.networks import Networks
from triplet.pretrain.optim import LARS, ema_update, parameter_groups
from triplet.pretrain.schedule import ema_momentum, learning_rate
from triplet.pretrain.step import Sizes, triplet_step
from triplet.pretrain.views import draw_sizes, normalize
from triplet.progress import Bar, say
from triplet.records import Job
from triplet.signals import graceful


class Objective(nn.Module):
    """Networks and loss as one module, so that DistributedDataParallel sees every gradient."""

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.networks = Networks(**config.model.model_dump())
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
        return loss, measure(loss, predictions, targets)


@torch.no_grad()
def measure(loss: Tensor, predictions: Tensor, targets: Tensor) -> Tensor:
    """(3,) loss, mean cosine of the positives, and the deviation of normalised target features.

    The deviation is 1 for features spread evenly over the sphere and 0 after a collapse.
    """
    p, z = F.normalize(predictions.float(), dim=1), F.normalize(targets.float(), dim=1)
    spread = z.std(0).mean() * z.shape[1] ** 0.5
    return torch.stack([loss.detach().float(), (p * z).sum(1).mean(), spread])


def make_optimizer(networks: Networks, config: Pretrain) -> LARS:
    """LARS over the online network and the predictor, in the recipe's two groups."""
    settings = config.optimizer
    groups = parameter_groups(
        ((n, p) for n, p in networks.named_parameters() if not n.startswith("target.")),
        settings.weight_decay,
    )
    return LARS(groups, settings.learning_rate, settings.momentum, eta=settings.eta)


def pretrain(config: Pretrain, images: list[Path], job: Job, processes: Processes) -> None:
    """Train from the last checkpoint in the job's folder, or from the seed, to the end.

    Leaves ``checkpoint.pth`` (without optimiser) and ``metrics.jsonl``: one line per optimiser step.

    Raises:
        KitError: a loss that is not finite, too many unreadable images, a checkpoint that cannot be
            written, a batch that does not divide among the processes.
        Interrupted: stopped by a signal, after saving.
    """
    layout, order = plan(config, processes.size), Order(len(images), config)
    torch.manual_seed(config.seed)
    objective = Objective(config).to(processes.device).train()
    nn.utils.convert_conv2d_weight_memory_format(objective, torch.channels_last)
    pool_batch_norm(objective, processes, layout.ranks)
    networks = objective.networks
    model: nn.Module = objective
    if processes.size > 1:
        model = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
    optimizer = make_optimizer(networks, config)
    start = processes.tell(checkpoint.restore(job.folder, networks, optimizer) if processes.first else None)
    if start and not processes.first:
        start = checkpoint.restore(job.folder, networks, optimizer)
    processes.same("checkpoint", start)
    if processes.first:
        say(f"pretrain: {layout.describe()}; {order.steps} steps")

    log = job.folder / "metrics.jsonl"
    last = {}
    if processes.first:
        last = files.cut_lines(log, "iteration", start * config.optimizer.accumulate)
    unreadable: set[int] = set()
    began = time.monotonic()
    with (
        graceful() as stop,
        log.open("a") if processes.first else contextlib.nullcontext() as metrics,
        Bar("pretrain", order.steps, start, quiet=not processes.first) as bar,
        contextlib.closing(load(images, layout, order, processes.rank, start)) as batches,
    ):
        for step, passes in enumerate(layout.steps(order, processes.rank, start), start):
            seen = torch.zeros(5, device=processes.device)
            for number, each in enumerate(passes, 1):
                pairs, bad = next(batches)
                unreadable |= {*bad}
                sizes = draw_sizes(config.views, config.seed, each.iteration)
                alone = isinstance(model, DistributedDataParallel) and number < len(passes)
                with model.no_sync() if alone else contextlib.nullcontext():  # type: ignore[operator]
                    try:
                        loss, values = model(pairs.to(processes.device, non_blocking=True), sizes)
                        (loss / len(passes)).backward()
                    except torch.OutOfMemoryError:
                        raise KitError(
                            f"{layout.images} images at once do not fit this GPU; limit them with "
                            f"images_per_gpu={config.loss.group} (or more, in multiples of that)"
                        ) from None
                seen[:3] += values / len(passes)
            rate, momentum = advance(networks, optimizer, config, order, step)

            seen[3], seen[4] = float(bool(stop)), len(unreadable)
            value, cosine, spread, stopping, bad_mean = processes.mean(seen).tolist()
            done = step + 1
            last = {"iteration": done * config.optimizer.accumulate, "loss": value,
                    "positive_cosine": cosine, "feature_std": spread,
                    "learning_rate": rate, "ema_momentum": momentum}  # fmt: skip
            _refuse(value, done, job.folder, images, order)
            _refuse_unreadable(unreadable, round(bad_mean * processes.size), images, config)
            if metrics:
                metrics.write(json.dumps(last) + "\n")
                metrics.flush()
            if (stopping or done % config.checkpoint_every == 0) and done < order.steps:
                if processes.first:
                    _save(job.folder, networks, optimizer, done, order)
                if stopping:
                    raise stop.interrupted(f"{done} of {order.steps} steps")
            bar.step(f"loss {value:.3f}")

    if processes.first:
        _finish(config, job, networks, layout, order, last)
        job.results["unreadable"] = sorted(str(images[i]) for i in unreadable)
        if start < order.steps:
            seconds = time.monotonic() - began
            job.images_per_second = round((order.steps - start) * config.batch / seconds, 2)


def advance(
    networks: Networks, optimizer: LARS, config: Pretrain, order: Order, step: int
) -> tuple[float, float]:
    """End an optimiser step: learning rate, LARS, then EMA. Both schedules count micro-batches.

    Returns:
        The learning rate and the EMA momentum that were used.
    """
    iteration = (step + 1) * config.optimizer.accumulate - 1
    rate = learning_rate(
        iteration, peak=config.optimizer.learning_rate, iterations_per_epoch=order.per_epoch,
        epochs=config.schedule.epochs, warmup_epochs=config.schedule.warmup_epochs,
        warmup_ratio=config.schedule.warmup_ratio,
    )  # fmt: skip
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    momentum = ema_momentum(iteration, iterations=order.iterations, base=config.schedule.ema_base)
    ema_update(networks.target, networks.online, momentum)
    return rate, momentum


def _save(folder: Path, networks: Networks, optimizer: LARS, step: int, order: Order) -> None:
    epoch = step * order.config.optimizer.accumulate // order.per_epoch
    checkpoint.save(folder / f"step_{step:07d}.pth", networks, optimizer, step, epoch)
    checkpoint.keep(folder, order.config.keep)


def _finish(
    config: Pretrain, job: Job, networks: Networks, layout: Layout, order: Order, last: dict[str, Any]
) -> None:
    final = job.folder / "checkpoint.pth"
    checkpoint.save(final, networks, None, order.steps, config.schedule.epochs)
    checkpoint.keep(job.folder, 0)
    job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
    job.results.update(
        images=order.images, batch=config.batch, epochs=config.schedule.epochs, steps=order.steps,
        bn_images=layout.bn_images, layout=layout.describe(), final=last,
    )  # fmt: skip


def _refuse(loss: float, step: int, folder: Path, images: list[Path], order: Order) -> None:
    """KitError with step, images and last good checkpoint when the loss is not finite."""
    if torch.isfinite(torch.tensor(loss)):
        return
    accumulate = order.config.optimizer.accumulate
    names = [
        str(images[index])
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


def _refuse_unreadable(mine: set[int], count: int, images: list[Path], config: Pretrain) -> None:
    if count > config.unreadable * len(images):
        first = f", for example {images[min(mine)]}" if mine else ""
        raise KitError(
            f"{count} of {len(images)} images cannot be read{first}; that is more than unreadable="
            f"{config.unreadable} allows: mend the folder or raise it"
        )
