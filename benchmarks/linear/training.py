"""Train a classifier on images as OpenSelfSup does, on a frozen backbone (linear) or with it (semi)."""

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from benchmarks.linear.backbone import Classifier
from benchmarks.linear.config import Common, Training
from benchmarks.linear.data import CenterCrops, Crops, EpochOrder, Labelled, collate, share
from benchmarks.linear.stage import Task
from triplet.errors import KitError
from triplet.progress import Bar, say
from triplet.signals import Stop, graceful
from triplet.training import checkpoint
from triplet.training.batch_norm import pool_batch_norm
from triplet.training.distributed import Processes
from triplet.training.loading import stream
from triplet.training.metrics import MetricLogger, ThroughputMeter
from triplet.training.schedule import learning_rate

LOG_EVERY = 50
"""Steps between log lines, as in OpenSelfSup's log_config."""
EVALUATED = 128
"""Images to evaluate at a time."""


def rate(step: int, config: Training, per_epoch: int) -> float:
    """Return the learning rate of an optimiser step (from 0), by mmcv's CosineAnnealing or Step policy.

    Both change the rate once per epoch. With the cosine, a linear warm-up changes it in each step.
    """
    if config.steps:
        return config.learning_rate * config.gamma ** sum(step // per_epoch >= at for at in config.steps)
    return learning_rate(
        step,
        peak=config.learning_rate,
        iterations_per_epoch=per_epoch,
        epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_ratio=config.warmup_ratio,
    )


def fit(model: Classifier, config: Common, training: Training, task: Task) -> None:
    """Train from the last checkpoint in the job's folder, or from the start, to the end.

    Write ``checkpoint.pth`` and ``metrics.jsonl``; the results have the best and the last epoch.

    Args:
        model: the model, on the CPU.
        config: settings of the images.
        training: settings of the optimiser.
        task: training and test images, and the processes that train together.

    Raises:
        KitError: processes that cannot share the batch equally, an unreadable image, a loss that is not
            finite, a step that does not fit the GPU.
        Interrupted: a signal stopped the training, after saving.
    """
    if training.num_replicas % task.processes.size:
        raise KitError(
            f"{task.processes.size} processes do not share training.num_replicas={training.num_replicas} "
            "equally; take a divisor of it, or set training.num_replicas"
        )
    fitting = _Fitting.prepare(model, config, training, task)
    fitting.announce()
    start, steps, first = fitting.start, fitting.order.steps, task.processes.is_main_process
    with (
        graceful() as stop,
        MetricLogger(task.job.folder, start, 1, is_main_process=first) as log,
        Bar(task.title, steps, start, quiet=not first) as bar,
        contextlib.closing(fitting.batches(stop)) as batches,
    ):
        for step in range(start, steps + 1):
            fitting.evaluate_if_due(step, log, stop)
            if step == steps:
                break
            if step > start and step % training.checkpoint_every == 0:
                fitting.save(step)
            loss = fitting.step(step, batches, log, stop)
            bar.step(f"loss {loss:.3f}")
    if first:
        fitting.finish()


@dataclass
class _Fitting:
    """The state that the steps of one session of ``fit`` share."""

    model: Classifier
    wrapped: nn.Module
    """The model, wrapped in DistributedDataParallel if there are several processes."""
    optimizer: SGD
    config: Common
    training: Training
    task: Task
    order: EpochOrder
    labels: Tensor
    """(images,) int64 labels, on the device."""
    start: int
    """Number of steps done in earlier sessions."""
    pace: ThroughputMeter

    @classmethod
    def prepare(cls, model: Classifier, config: Common, training: Training, task: Task) -> Self:
        """Move the model to its device and load the last checkpoint."""
        processes = task.processes
        model.to(processes.device).train()
        if not model.frozen:
            pool_batch_norm(model.backbone, processes, processes.size)
        torch.backends.cudnn.benchmark = True  # all images have the same size
        nn.utils.convert_conv2d_weight_memory_format(model.backbone, torch.channels_last)
        optimizer = make_optimizer(model, training)
        order, folder = EpochOrder(len(task.train), training, config.seed), task.job.folder
        task.job.check_inputs()
        final = folder / "checkpoint.pth" if task.job.lost_record else None
        start = checkpoint.resume(
            folder,
            model.learned,
            optimizer,
            processes,
            order.steps,
            final=final,
            plan=task.job.plan,
        )
        wrapped = DistributedDataParallel(model, broadcast_buffers=False) if processes.size > 1 else model
        labels = torch.from_numpy(task.train.labels).to(processes.device)
        pace = ThroughputMeter(training.batch, order.steps, start)
        return cls(model, wrapped, optimizer, config, training, task, order, labels, start, pace)

    def announce(self) -> None:
        """Say what is trained."""
        train, training = self.task.train, self.training
        if self.task.processes.is_main_process:
            say(
                f"{self.task.title}: {len(train)} images of {len(train.classes)} classes, "
                f"{self.order.per_epoch} steps of {training.batch} an epoch, {training.epochs} epochs; "
                f"{len(self.task.test)} test images"
            )

    def batches(self, stop: Stop) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield this process's share of each batch from the first step on; see ``stream``."""
        processes, config = self.task.processes, self.config
        crops = Crops(self.task.train, config.images, config.seed)
        order = self.order.batches(self.start, processes.rank, processes.size)
        return stream(crops, order, collate, config.loaders, processes.device, stop)

    def evaluate_if_due(self, step: int, log: MetricLogger, stop: Stop) -> None:
        """Evaluate if a step begins a new epoch, as often as the config says, and after the last epoch."""
        epoch, within = divmod(step, self.order.per_epoch)
        history = self.model.head.history
        due = epoch == self.training.epochs or epoch % self.training.evaluate_every == 0
        if within or not epoch or not due or history[epoch - 1, 0] >= 0:
            return
        found = evaluate(self.model, self.task.test, self.config, self.task.processes, stop)
        if found is None:
            self.save_and_stop(step, stop)
        history[epoch - 1] = torch.tensor(found, dtype=history.dtype)
        log.write(step, {"iteration": step, "epoch": epoch, "top1": found[0], "top5": found[1]})
        self.pace.pause()

    def step(
        self, step: int, batches: Iterator[tuple[Tensor, Tensor]], log: MetricLogger, stop: Stop
    ) -> float:
        """Take one optimiser step, counted from 0; return the mean loss of all processes."""
        processes = self.task.processes
        lr = rate(step, self.training, self.order.per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_mult"]
        pixels, places = next(batches)
        loss = _step(self.wrapped, self.optimizer, pixels, self.labels[places.to(processes.device)])
        stopped = torch.tensor(float(bool(stop)), dtype=loss.dtype, device=processes.device)
        mean, stopping = processes.mean(torch.stack([loss, stopped])).tolist()
        if not mean < float("inf"):
            raise KitError(f"loss is {mean} at step {step + 1}; lower training.learning_rate")
        paced = self.pace.step(0.0)["images_per_second"]
        if (step + 1) % LOG_EVERY == 0:
            epoch = step // self.order.per_epoch
            values = {"iteration": step + 1, "epoch": epoch, "loss": mean, "learning_rate": lr}
            log.write(step + 1, {**values, "images_per_second": paced})
        if stopping:
            self.save_and_stop(step + 1, stop)
        return float(mean)

    def save(self, step: int) -> None:
        """Write a checkpoint after ``step`` steps, on the main process."""
        if not self.task.processes.is_main_process:
            return
        folder = self.task.job.folder
        path = folder / f"step_{step:07d}.pth"
        epoch, plan = step // self.order.per_epoch, self.task.job.plan
        checkpoint.save(path, self.model.learned, self.optimizer, step, epoch, plan)
        checkpoint.keep(folder, 2)

    def save_and_stop(self, step: int, stop: Stop) -> NoReturn:
        """Save, wait until the main process has saved, and raise Interrupted."""
        self.save(step)
        # A barrier: torchrun kills the other ranks when one exits.
        self.task.processes.broadcast_object()
        raise stop.interrupted(f"{step} of {self.order.steps} steps")

    def finish(self) -> None:
        """Write the final checkpoint, and the best and the last epoch as results."""
        job, train = self.task.job, self.task.train
        final = job.folder / "checkpoint.pth"
        checkpoint.save(final, self.model.learned, None, self.order.steps, self.training.epochs, job.plan)
        job.outputs.update(checkpoint=final, metrics=job.folder / "metrics.jsonl")
        history = self.model.head.history.tolist()
        best = max(range(len(history)), key=lambda epoch: history[epoch][0])
        for name, epoch in (("last", len(history) - 1), ("best", best)):
            job.results[name] = {"epoch": epoch + 1, "top1": history[epoch][0], "top5": history[epoch][1]}
        say(
            f"{self.task.title}: top-1 {history[-1][0]:.2f} after the last epoch, "
            f"{history[best][0]:.2f} after the best one ({best + 1})"
        )
        job.results |= {"images": len(train), "test_images": len(self.task.test)}
        job.results["classes"] = len(train.classes)
        job.images_per_second = self.pace.average()


def make_optimizer(model: Classifier, config: Training) -> SGD:
    """Build the optimiser of the trained parameters; each group's ``times`` multiplies the learning
    rate."""
    groups: list[dict[str, Any]] = [{"params": list(model.head.parameters()), "lr_mult": config.head}]
    if not model.frozen:
        groups.append({"params": list(model.backbone.parameters()), "lr_mult": 1.0})
    return SGD(groups, config.learning_rate, config.momentum, weight_decay=config.weight_decay)


def _step(model: nn.Module, optimizer: SGD, pixels: Tensor, labels: Tensor) -> Tensor:
    """Take one optimiser step on this process's share of a batch; return its loss."""
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
    """Return top-1 and top-5 in percent over all images; None if a process was told to stop meanwhile."""
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
    """Yield the pixels and places of a process's share of the images; see ``stream``."""
    mine = share(len(test), processes.rank, processes.size, EVALUATED)
    return stream(CenterCrops(test, config.images), mine, collate, config.loaders, processes.device, stop)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the correct top-1 and top-5 predictions of (n, classes) logits against (n,) labels: (2,)
    int64."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
    return torch.stack([best[:, 0].sum(), best.sum()])
