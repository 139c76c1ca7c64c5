"""The fast protocol: classifiers for a grid of settings, trained in parallel on stored features."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.linear.config import Linear, Sweep
from benchmarks.linear.features import Features, extract
from benchmarks.linear.stage import Task
from benchmarks.linear.training import correct
from triplet.errors import KitError
from triplet.pretrain.layout import permutation
from triplet.progress import Bar, say
from triplet.signals import graceful
from triplet.training.schedule import learning_rate

FeatureRows = Callable[[NDArray[Any]], Tensor]
"""A function from (k,) places to (k, channels) features."""


class Heads:
    """Linear classifiers for the same features, computed as one matrix product, with torch's SGD.

    Args:
        channels: number of the features' channels.
        classes: number of classes.
        rates: (h,) peak learning rate of each head.
        decays: (h,) L2 penalty of each head's weights; its bias has none.
        momentum: momentum of all heads.
        seed: seed of the initial weights, which all heads share.
        device: device of the heads.
        dtype: dtype of weights and computation.

    Attributes:
        weight: (channels, h * classes).
        bias: (h * classes,).
    """

    def __init__(  # noqa: PLR0913 - the shapes, the optimiser and the device of a layer
        self,
        channels: int,
        classes: int,
        rates: Tensor,
        decays: Tensor,
        momentum: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.classes, self.momentum = classes, momentum
        self.rates, self.decays = (
            values.to(device, dtype).repeat_interleave(classes) for values in (rates, decays)
        )
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(channels, classes, generator=generator, dtype=torch.float64) * 0.01
        self.weight = drawn.to(device, dtype).repeat(1, len(rates))
        self.bias = torch.zeros_like(self.rates)
        self._momenta = torch.zeros_like(self.weight), torch.zeros_like(self.bias)

    def logits(self, features: Tensor) -> Tensor:
        """Map (n, channels) features to (n, h, classes) logits."""
        found = torch.addmm(self.bias, features.to(self.weight.dtype), self.weight)
        return found.view(len(features), -1, self.classes)

    def step(self, features: Tensor, labels: Tensor, factor: float) -> None:
        """Take one step on the mean cross-entropy of (n, channels) features and (n,) labels at ``factor``
        times the rates."""
        x = features.to(self.weight.dtype)
        gradient = self.logits(x).softmax(2)
        gradient.scatter_add_(
            2,
            labels[:, None, None].expand(-1, gradient.shape[1], 1),
            gradient.new_full((1, 1, 1), -1.0).expand(len(x), gradient.shape[1], 1),
        )
        flat = gradient.view(len(x), -1) / len(x)
        gradients = torch.addcmul(x.T @ flat, self.weight, self.decays), flat.sum(0)
        for value, buffer, new in zip((self.weight, self.bias), self._momenta, gradients, strict=True):
            buffer.mul_(self.momentum).add_(new)
            value.sub_(buffer * (self.rates * factor))


def hold_out(labels: NDArray[Any], share: float, seed: int) -> NDArray[Any]:
    """Return the (n,) bool mask of the held-out training images, which choose the head: a share of each
    class, at least one.

    Raises:
        KitError: a class has fewer than two images.
    """
    chosen = np.zeros(len(labels), dtype=bool)
    order = np.random.default_rng((seed, 0x40D)).permutation(len(labels))
    ordered = labels[order]
    for label in np.unique(labels):
        of_class = order[ordered == label]
        if len(of_class) < 2:
            raise KitError(
                "a class with one training image has none to hold out; leave it out (CLASSES=file)"
            )
        chosen[of_class[: max(1, round(share * len(of_class)))]] = True
    return chosen


def train(
    views: list[FeatureRows],
    labels: Tensor,
    kept: NDArray[Any],
    heads: Heads,
    config: Sweep,
    seed: int,
    *,
    quiet: bool,
) -> None:
    """Train heads on the kept images; each epoch uses one view of each image.

    Args:
        views: views of all training images.
        labels: (n,) int64 labels of all training images, on the heads' device.
        kept: (k,) places of the images to train on.
        heads: the heads, trained in place.
        config: settings of the sweep.
        seed: seed of the order and of the choice of views.
        quiet: whether to show no progress.

    Raises:
        Interrupted: a signal stopped the training; nothing is kept.
    """
    per_epoch = max(1, len(kept) // config.batch)
    with graceful() as stop, Bar("linear: sweep", config.epochs * per_epoch, quiet=quiet) as bar:
        for epoch in range(config.epochs):
            order = kept[permutation(len(kept), seed, epoch)]
            taken = np.random.default_rng((seed, epoch, 0x71E5)).integers(0, len(views), len(labels))
            for batch in range(per_epoch):
                if stop:
                    raise stop.interrupted(f"the features are kept, the sweep was in epoch {epoch + 1}")
                places = order[batch * config.batch :][: config.batch]
                grouped = places[np.argsort(taken[places], kind="stable")]
                parts = [views[v](grouped[taken[grouped] == v]) for v in np.unique(taken[places])]
                factor = learning_rate(
                    epoch * per_epoch + batch,
                    peak=1.0,
                    iterations_per_epoch=per_epoch,
                    epochs=config.epochs,
                    warmup_epochs=config.warmup_epochs,
                )
                heads.step(torch.cat(parts).to(labels.device), labels[torch.from_numpy(grouped)], factor)
                bar.step()


def score(source: FeatureRows, places: NDArray[Any], labels: Tensor, heads: Heads) -> Tensor:
    """Return the (h, 2) top-1 and top-5 of each head in percent, over the images at some places."""
    right = torch.zeros(len(heads.rates) // heads.classes, 2, dtype=torch.int64)
    for part in np.array_split(places, max(1, len(places) // 1024)):
        logits = heads.logits(source(part).to(labels.device))
        for number in range(len(right)):
            right[number] += correct(logits[:, number], labels[torch.from_numpy(part)]).cpu()
    return 100 * right.double() / len(places)


def _rows(rows: Tensor, places: NDArray[Any]) -> Tensor:
    return rows[torch.from_numpy(places).to(rows.device)]


def _sources(features: list[Features], device: torch.device) -> list[FeatureRows]:
    """Return the features on the GPU if all of them fit, else from the disk's cache."""
    if device.type == "cuda" and sum(f.bytes for f in features) < 0.7 * torch.cuda.mem_get_info(device)[0]:
        whole = [f.on(device) for f in features]
        return [partial(_rows, rows) for rows in whole]
    return [f.rows for f in features]


def evaluate(config: Linear, sweep: Sweep, task: Task) -> None:
    """Extract missing features, train every head, choose one on held-out training images, and test it.

    The results are those of the last epoch, not of the best one.

    Args:
        config: settings of the evaluation.
        sweep: settings of the sweep.
        task: the images; each of its processes trains a share of the heads.

    Raises:
        KitError: several machines, or an error of ``extract`` or ``hold_out``.
        Interrupted: a signal stopped the stage; finished features are kept.
    """
    ours, theirs, job, processes = task.train, task.test, task.job, task.processes
    device, mine = processes.device, slice(processes.rank, None, processes.size)
    sets = extract(config, task, {"train": ours, "test": theirs})
    crops = extract(config, task, {"train": ours}, crops=sweep.crops) if sweep.crops else {}
    held = hold_out(ours.labels, sweep.held_out, config.seed)
    grid = list(itertools.product(sweep.learning_rates, sweep.weight_decays))
    if processes.size > len(grid):
        raise KitError(f"{processes.size} processes for {len(grid)} heads; lower GPUS")
    rates, decays = torch.tensor(grid[mine]).unbind(1)
    views, tested = _sources([sets["train"], *crops.values()], device), _sources([sets["test"]], device)[0]
    labels, answers = (torch.from_numpy(data.labels).to(device) for data in (ours, theirs))
    torch.backends.cuda.matmul.allow_tf32 = True  # the features are float16 anyway
    heads = Heads(
        sets["train"].shards[0].shape[1],
        len(ours.classes),
        rates,
        decays,
        sweep.momentum,
        config.seed,
        device,
    )
    train(
        views, labels, np.flatnonzero(~held), heads, sweep, config.seed, quiet=not processes.is_main_process
    )
    chosen_by = score(views[0], np.flatnonzero(held), labels, heads)[:, 0].tolist()
    top = score(tested, np.arange(len(theirs)), answers, heads).tolist()
    shares = processes.gather(list(zip(grid[mine], chosen_by, top, strict=True)))
    found = sorted((entry for share in shares for entry in share), key=lambda entry: grid.index(entry[0]))
    (rate, decay), held_out, (top1, top5) = max(found, key=lambda entry: entry[1])
    job.results["last"] = {"epoch": sweep.epochs, "top1": top1, "top5": top5}
    job.results["chosen"] = {"learning_rate": rate, "weight_decay": decay, "held_out_top1": held_out}
    # At the edge, a better rate may lie outside the grid.
    job.results["at_the_edge"] = rate in (min(sweep.learning_rates), max(sweep.learning_rates))
    job.results["heads"] = [
        {"learning_rate": a, "weight_decay": b, "held_out_top1": c} for (a, b), c, _ in found
    ]
    job.results |= {"images": int((~held).sum()), "test_images": len(theirs), "classes": len(ours.classes)}
    job.results["views"] = len(views)
    if processes.is_main_process:
        say(
            f"linear: top-1 {top1:.2f} (fast protocol: learning rate {rate} and decay {decay}, "
            f"the best of {len(grid)} heads on held-out images)"
        )
