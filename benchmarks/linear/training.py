"""Train a classifier on images as OpenSelfSup does: frozen backbone (linear) or all of it (semi)."""

import contextlib
from collections.abc import Generator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from benchmarks.linear.backbone import Classifier
from benchmarks.linear.config import Common, Training
from benchmarks.linear.data import Centres, Crops, Labelled, Order, collate, share
from benchmarks.linear.stage import Task
from triplet.errors import KitError
from triplet.progress import Bar, say
from triplet.records import Job
from triplet.signals import Stop, graceful
from triplet.training import checkpoint
from triplet.training.distributed import Processes, pool_batch_norm
from triplet.training.loading import stream
from triplet.training.metrics import MetricLogger, ThroughputMeter
from triplet.training.schedule import learning_rate

LOG_EVERY = 50
"""Steps, as mmcv's log_config there."""
EVALUATED = 128
"""Images at a time."""


def rate(step: int, config: Training, per_epoch: int) -> float:
    """The learning rate of an optimiser step (from 0), by mmcv's CosineAnnealing or Step policy.

    Both change once an epoch. Under the cosine a linear warm-up changes each step.
    """
    if config.steps:
        return config.learning_rate * config.gamma ** sum(step // per_epoch >= at for at in config.steps)
    return learning_rate(
        step, peak=config.learning_rate, iterations_per_epoch=per_epoch, epochs=config.epochs,
        warmup_epochs=config.warmup_epochs, warmup_ratio=config.warmup_ratio,
    )  # fmt: skip


def fit(model: Classifier, config: Common, training: Training, task: Task) -> None:
    """Train from the last checkpoint in the job's folder, or from the start, to the end.

    Leaves ``checkpoint.pth`` and ``metrics.jsonl``; the results have the best and the last epoch.

    Args:
        model: on the CPU.
        config: of the images.
        training: of the optimiser.
        task: images to learn from and to be evaluated on, the processes that train as one.

    Raises:
        KitError: a number of processes that does not share the batch equally, an unreadable image, a loss
            that is not finite, a step that does not fit the GPU.
        Interrupted: stopped by a signal, after saving.
    """
    train, test, job, processes = task.train, task.test, task.job, task.processes
    if training.num_replicas % processes.size:
        raise KitError(
            f"{processes.size} processes do not share training.num_replicas={training.num_replicas} "
            "equally; take a divisor of it, or set training.num_replicas"
        )
    title, order, device = (
        job.folder.parent.name,
        Order(len(train), training, config.seed),
        processes.device,
    )
    model.to(device).train()
    if not model.frozen:
        pool_batch_norm(model.backbone, processes, processes.size)
    torch.backends.cudnn.benchmark = True  # images have one size
    nn.utils.convert_conv2d_weight_memory_format(model.backbone, torch.channels_last)
    optimizer = make_optimizer(model, training)
    start = checkpoint.resume(job.folder, model.learned, optimizer, processes)
    wrapped: nn.Module = (
        DistributedDataParallel(model, broadcast_buffers=False) if processes.size > 1 else model
    )
    labels, history = torch.from_numpy(train.labels).to(device), model.head.history
    pace = ThroughputMeter(training.batch, order.steps, start)
    if processes.is_main_process:
        say(
            f"{title}: {len(train)} images of {len(train.classes)} classes, {order.per_epoch} steps of "
            f"{training.batch} an epoch, {training.epochs} epochs; {len(test)} test images"
        )
    with (
        graceful() as stop,
        MetricLogger(job.folder, start, 1, is_main_process=processes.is_main_process) as log,
        Bar(title, order.steps, start, quiet=not processes.is_main_process) as bar,
        contextlib.closing(
            stream(
                Crops(train, config.images, config.seed),
                order.batches(start, processes.rank, processes.size), collate, config.loaders, device, stop,
            )
        ) as batches,
    ):  # fmt: skip

        def save_and_stop(step: int) -> NoReturn:
            if processes.is_main_process:
                _save(job, model, optimizer, step, order)
            # A barrier: torchrun kills the other ranks when one exits.
            processes.broadcast_object()
            raise stop.interrupted(f"{step} of {order.steps} steps")

        for step in range(start, order.steps + 1):
            epoch, within = divmod(step, order.per_epoch)
            due = epoch == training.epochs or epoch % training.evaluate_every == 0
            if epoch and not within and due and history[epoch - 1, 0] < 0:
                found = evaluate(model, test, config, processes, stop)
                if found is None:
                    save_and_stop(step)
                history[epoch - 1] = torch.tensor(found, dtype=history.dtype)
                log.write(step, {"iteration": step, "epoch": epoch, "top1": found[0], "top5": found[1]})
                pace.pause()
            if step == order.steps:
                break
            if step > start and step % training.checkpoint_every == 0 and processes.is_main_process:
                _save(job, model, optimizer, step, order)
            lr = rate(step, training, order.per_epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_mult"]
            pixels, places = next(batches)
            loss = _step(wrapped, optimizer, pixels, labels[places.to(device)])
            shared = torch.stack([loss, torch.tensor(float(bool(stop)), dtype=loss.dtype, device=device)])
            mean, stopping = processes.mean(shared).tolist()
            if not mean < float("inf"):
                raise KitError(f"loss is {mean} at step {step + 1}; lower training.learning_rate")
            paced = pace.step(0.0)["images_per_second"]
            if (step + 1) % LOG_EVERY == 0:
                values = {"iteration": step + 1, "epoch": epoch, "loss": mean, "learning_rate": lr}
                log.write(step + 1, {**values, "images_per_second": paced})
            if stopping:
                save_and_stop(step + 1)
            bar.step(f"loss {mean:.3f}")

    if processes.is_main_process:
        _finish(job, model, training, order)
        job.results |= {"images": len(train), "test_images": len(test), "classes": len(train.classes)}
        job.images_per_second = pace.average()


def make_optimizer(model: Classifier, config: Training) -> SGD:
    """SGD for what is learned; each group's ``lr_mult`` multiplies the learning rate."""
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr_mult": config.head}]
    if not model.frozen:
        groups.append({"params": list(model.backbone.parameters()), "lr_mult": 1.0})
    return SGD(groups, config.learning_rate, config.momentum, weight_decay=config.weight_decay)


def _step(model: nn.Module, optimizer: SGD, pixels: Tensor, labels: Tensor) -> Tensor:
    """One optimiser step on this process's share of a batch; its loss."""
    try:
        loss = F.cross_entropy(model(pixels), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    except torch.OutOfMemoryError:
        raise KitError(
            f"{len(pixels)} images at once do not fit this GPU; share the batch among more (GPUS=..), or "
            "set precision=bfloat16"
        ) from None
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def evaluate(
    model: Classifier, test: Labelled, config: Common, processes: Processes, stop: Stop
) -> tuple[float, float] | None:
    """Top-1 and top-5 in percent over all images, None when a process was told to stop meanwhile."""
    labels = torch.from_numpy(test.labels).to(processes.device)
    right = torch.zeros(2, dtype=torch.int64, device=processes.device)
    model.eval()
    with contextlib.closing(centres(test, config, processes, stop)) as batches:
        for pixels, places in batches:
            if stop:
                break
            right += correct(model(pixels), labels[places.to(processes.device)])
    model.train()
    counts = processes.gather((bool(stop), *right.tolist()))
    if any(stopped for stopped, *_ in counts):
        return None
    one, five = (100 * sum(count) / len(test) for count in list(zip(*counts, strict=True))[1:])
    return one, five


def centres(
    test: Labelled, config: Common, processes: Processes, stop: Stop
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The pixels and places of a process's share of the images, see ``stream``."""
    mine = share(len(test), processes.rank, processes.size, EVALUATED)
    return stream(Centres(test, config.images), mine, collate, config.loaders, processes.device, stop)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """(n, classes), (n,) -> (2,) int64: how many are right by the first, and by one of the first five."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].sum(), best.sum()])


def _save(job: Job, model: Classifier, optimizer: SGD, step: int, order: Order) -> None:
    path = job.folder / f"step_{step:07d}.pth"
    checkpoint.save(path, model.learned, optimizer, step, step // order.per_epoch)
    checkpoint.keep(job.folder, 2)


def _finish(job: Job, model: Classifier, training: Training, order: Order) -> None:
    final = job.folder / "checkpoint.pth"
    checkpoint.save(final, model.learned, None, order.steps, training.epochs)
    job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
    history = model.head.history.tolist()
    best = max(range(len(history)), key=lambda epoch: history[epoch][0])
    for name, epoch in (("last", len(history) - 1), ("best", best)):
        job.results[name] = {"epoch": epoch + 1, "top1": history[epoch][0], "top5": history[epoch][1]}
    say(
        f"{job.folder.parent.name}: top-1 {history[-1][0]:.2f} after the last epoch, "
        f"{history[best][0]:.2f} after the best one ({best + 1})"
    )
