"""The training loop: data, step, optimiser, EMA, logs, checkpoints."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.errors import KitError
from triplet.pretrain import checkpoint
from triplet.pretrain.config import Pretrain
from triplet.pretrain.data import Batches, list_images, load
from triplet.pretrain.loss import truncated_triplet_loss
from triplet.pretrain.networks import Networks
from triplet.pretrain.optim import LARS, ema_update, parameter_groups
from triplet.pretrain.schedule import ema_momentum, learning_rate
from triplet.pretrain.step import triplet_step
from triplet.pretrain.views import draw_sizes, normalize
from triplet.progress import Bar
from triplet.records import Job
from triplet.signals import graceful


def pretrain(config: Pretrain, images_folder: Path, job: Job) -> None:
    """Train from the last checkpoint in the job's folder, or from the seed, to the end.

    Leaves ``checkpoint.pth`` (without optimiser) and ``metrics.jsonl``: one line per optimiser step.

    Raises:
        KitError: no images, an unreadable image, a loss that is not finite.
        Interrupted: stopped by a signal, after saving.
    """
    images = list_images(images_folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(config.seed)
    networks = Networks(**config.model.model_dump()).to(device).train()
    nn.utils.convert_conv2d_weight_memory_format(networks, torch.channels_last)
    settings = config.optimizer
    trained = [
        *((f"online.{name}", p) for name, p in networks.online.named_parameters()),
        *((f"predictor.{name}", p) for name, p in networks.predictor.named_parameters()),
    ]
    optimizer = LARS(
        parameter_groups(trained, settings.weight_decay),
        lr=settings.learning_rate, momentum=settings.momentum, eta=settings.eta,
    )  # fmt: skip

    latest, final = job.folder / "latest.pth", job.folder / "checkpoint.pth"
    start = checkpoint.load(latest, networks, optimizer) if latest.exists() else 0
    batches = Batches(len(images), config, start)
    loss = partial(
        truncated_triplet_loss, gamma=config.loss.gamma, margin=config.loss.margin,
        nearest=config.loss.nearest, skip=config.loss.skip, group_size=config.loss.group,
    )  # fmt: skip

    metrics_path = job.folder / "metrics.jsonl"
    last = _truncate(metrics_path, start)
    began = time.monotonic()
    with (
        graceful() as stop,
        metrics_path.open("a") as metrics,
        Bar("pretrain", batches.total, start) as bar,
    ):
        for iteration, pairs in enumerate(load(images, config, start), start):
            views = normalize(pairs.to(device, non_blocking=True))
            view_1, view_2 = (views[:, i].contiguous(memory_format=torch.channels_last) for i in (0, 1))
            sizes = draw_sizes(config.views, config.seed, iteration)
            value, predictions, targets = triplet_step(networks, view_1, view_2, sizes, loss)
            (value / settings.accumulate).backward()
            if (iteration + 1) % settings.accumulate == 0:
                rate = learning_rate(
                    iteration, peak=settings.learning_rate,
                    iterations_per_epoch=batches.per_epoch, epochs=config.schedule.epochs,
                    warmup_epochs=config.schedule.warmup_epochs,
                    warmup_ratio=config.schedule.warmup_ratio,
                )  # fmt: skip
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                momentum = ema_momentum(iteration, iterations=batches.total, base=config.schedule.ema_base)
                ema_update(networks.target, networks.online, momentum)
                last = {"iteration": iteration + 1, **_measure(value, predictions, targets),
                        "learning_rate": rate, "ema_momentum": momentum}  # fmt: skip
                if not torch.isfinite(torch.tensor(last["loss"])):
                    raise KitError(
                        f"loss is {last['loss']} at iteration {iteration + 1}; the last good "
                        f"checkpoint is {latest if latest.exists() else 'none'}: "
                        "lower optimizer.learning_rate"
                    )
                _log(metrics, last)
                steps = (iteration + 1) // settings.accumulate
                if stop or steps % config.checkpoint_every == 0:
                    epoch = (iteration + 1) // batches.per_epoch
                    checkpoint.save(latest, networks, optimizer, iteration + 1, epoch)
                    if stop and iteration + 1 < batches.total:
                        raise stop.interrupted(f"{iteration + 1} of {batches.total} iterations")
            bar.step(f"loss {value.item():.3f}")

    seconds = time.monotonic() - began
    checkpoint.save(final, networks, None, batches.total, config.schedule.epochs)
    latest.unlink(missing_ok=True)
    job.outputs.update(checkpoint=final, metrics=metrics_path)
    job.results.update(images=len(images), batch=config.batch, epochs=config.schedule.epochs, final=last)
    if len(batches):
        job.images_per_second = round(len(batches) * config.micro_batch / seconds, 2)


def _measure(loss: Tensor, predictions: Tensor, targets: Tensor) -> dict[str, float]:
    """Loss, mean cosine of the positives, and the deviation of normalised target features.

    The deviation is 1 for features spread evenly over the sphere and 0 after a collapse.
    """
    with torch.no_grad():
        p = F.normalize(predictions.float(), dim=1)
        z = F.normalize(targets.float(), dim=1)
        spread = z.std(0).mean() * z.shape[1] ** 0.5
        values = torch.stack([loss.detach().float(), (p * z).sum(1).mean(), spread])
    return dict(zip(("loss", "positive_cosine", "feature_std"), values.tolist(), strict=True))


def _log(metrics: TextIO, values: dict[str, Any]) -> None:
    metrics.write(json.dumps(values) + "\n")
    metrics.flush()


def _truncate(path: Path, start: int) -> dict[str, Any]:
    """Drop the lines after the checkpoint that the run goes on from; returns the last one kept."""
    kept: list[str] = []
    if start and path.exists():
        kept = [line for line in path.read_text().splitlines() if json.loads(line)["iteration"] <= start]
    path.write_text("".join(line + "\n" for line in kept))
    return json.loads(kept[-1]) if kept else {}
