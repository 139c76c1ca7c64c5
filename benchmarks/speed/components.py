"""Parts of a training step: the loss head, the update, the data pipeline."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import reference
from benchmarks.speed.timing import Budget, Case, Variant, interleave
from triplet.images import open_images
from triplet.models.networks import Networks
from triplet.pretrain import data, trainer
from triplet.pretrain.config import Pretrain
from triplet.pretrain.layout import Order, make_layout
from triplet.pretrain.methods.triplet import truncated_triplet_loss
from triplet.signals import Stop
from triplet.training.optim import ema_update

BLOCK = 0.02
"""Seconds that the calls of a short function fill in a repetition."""


def head(images: int, config: Pretrain, budget: Budget) -> Case:
    """Measure the loss of one direction and its gradient, from the predictor's output on.

    Calls follow each other for 20 ms, as with timeit. In training, a network fills the caches before each
    call; the kit's call is so short that this matters, so it is measured once per round as well.

    Args:
        images: images of the micro-batch, which is one negative group.
        config: config with the size of the embedding.
        budget: budget of time.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (images, config.model.outputs)
    prediction, target = (
        torch.randn(shape, generator=generator).to(budget.device).requires_grad_(needed)
        for needed in (True, False)
    )

    def ours() -> None:
        prediction.grad = None
        truncated_triplet_loss(prediction, target).backward()

    def theirs() -> None:
        prediction.grad = None
        reference.head(prediction, target).backward()

    variants = [
        Variant("kit", ours, ours=True, block=BLOCK),
        Variant("released", theirs, block=BLOCK),
        Variant("kit, called once", ours, ours=True),
    ]
    sizes = {"images": images, "outputs": config.model.outputs}
    name = f"loss head, forward and backward, n = {images}"
    return Case("head", name, budget.device, sizes, interleave(variants, budget))


def update(config: Pretrain, budget: Budget) -> Case:
    """Measure LARS over the online network and the predictor, then EMA of the target network; float32.

    Resetting the gradients is not measured: the released code zeroes them, the kit drops them.
    """
    torch.manual_seed(0)
    networks = Networks(**config.model.model_dump()).to(budget.device)
    for parameter in networks.parameters():
        if parameter.requires_grad:
            parameter.grad = 0.01 * torch.randn_like(parameter)
    theirs = copy.deepcopy(networks)
    for mine, other in zip(networks.parameters(), theirs.parameters(), strict=True):
        other.grad = None if mine.grad is None else mine.grad.clone()
    # With the recipe's rate, repeated steps along one gradient would make the weights grow without bound.
    slow = config.model_copy(
        update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-3})}
    )
    optimizer = trainer.make_optimizer(networks, slow)
    their_optimizer = reference.make_optimizer(theirs, slow)
    momentum = config.schedule.ema_base

    def run_ours() -> None:
        optimizer.step()
        ema_update(networks.target, networks.online, momentum)

    def run_theirs() -> None:
        their_optimizer.step()
        reference.ema_update(theirs.target, theirs.online, momentum)

    tensors = [p for p in networks.parameters() if p.requires_grad]
    sizes = {
        **config.model.model_dump(),
        "tensors": len(tensors),
        "parameters": sum(p.numel() for p in tensors),
    }
    variants = [Variant("kit", run_ours, ours=True), Variant("released", run_theirs)]
    name = f"LARS and EMA, {sizes['parameters'] / 1e6:.1f} M parameters in {len(tensors)} tensors"
    return Case("update", name, budget.device, sizes, interleave(variants, budget))


def pipeline(config: Pretrain, folder: Path, budget: Budget) -> Case:
    """Measure the way from files to batches of two views per image, in images/s of one core.

    The released pipeline ends with normalised float32, the kit's with uint8, which the training step
    normalises on the device.
    """
    images = open_images(folder)
    # One process, and more epochs than can be measured.
    here = config.model_copy(
        update={"workers": 0, "schedule": config.schedule.model_copy(update={"epochs": 10**6})}
    )

    def kit(backend: str) -> Iterator[Any]:
        views = here.views.model_copy(update={"backend": backend})
        layout = make_layout(here.model_copy(update={"views": views}), 1)
        return data.load(images, layout, Order(len(images), here), 0, 0, budget.device, Stop())

    batches: dict[str, Iterator[Any]] = {
        "kit, opencv": kit("opencv"),
        "kit, pil": kit("pil"),
        "released": reference.load(images, here),
    }

    def variant(name: str) -> Variant:
        return Variant(name, lambda: next(batches[name]), config.micro_batch, ours=name != "released")

    some = range(min(64, len(images)))
    sizes = {
        "files": len(images),
        "mean_bytes": sum(len(images.read(i)) for i in some) / len(some),
        "batch": config.micro_batch,
        "view": config.views.size,
    }
    timings = interleave([variant(name) for name in batches], budget)
    name = f"two views of {config.views.size} px of a JPEG, one core"
    return Case("data", name, budget.device, sizes, timings)
