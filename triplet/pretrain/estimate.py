"""Estimate of a config's arithmetic and memory before it runs, counted on the meta device."""

import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.pretrain.config import Model, Pretrain, ResolutionRange
from triplet.pretrain.layout import Layout, make_layout
from triplet.pretrain.methods import METHODS
from triplet.training.memory import kept_for_backward

ROOM = 0.75
"""Share of a GPU's memory available to tensors kept for the backward pass. Gradients, cuDNN's workspaces,
fragmentation and CUDA itself need the rest."""


@dataclass(frozen=True)
class StepEstimate:
    """Cost of one run on one layout."""

    flop: float
    """FLOP per image: all passes through all networks, and the backward pass of the online one. A
    multiply-add counts 2."""
    memory: float
    """Bytes on a GPU: weights, optimiser, and the tensors that the largest pass keeps for its backward
    pass."""

    def describe(self) -> str:
        """Describe the cost in one line for the log."""
        return f"{self.flop / 1e9:.1f} GFLOP an image, about {self.memory / 2**30:.1f} GiB a process"


def estimate(config: Pretrain, layout: Layout) -> StepEstimate:
    """Count the expected arithmetic over the drawn resolutions, and the memory at the largest one.

    The arithmetic counts convolutions and matrix products, as is usual. The memory counts tensors; the
    framework needs one to three GiB more (CUDA context, cuDNN's workspace, fragmentation).
    """
    method = METHODS[config.method]
    work = method.work(config)
    model = config.model.model_copy(update={"hidden": config.model.hidden or 1})
    online, target = (_mean_flop(model, sides) for sides in (work.online_sides, work.target_sides))
    flop = work.online * 3 * online + work.target * target + work.more_flop

    with torch.device("meta"):
        networks = method.build(config, 1)
    # Trained tensors have a gradient and a momentum buffer; the target network has neither.
    tensors = sum(p.numel() * (12 if p.requires_grad else 4) for p in networks.parameters())
    tensors += 4 * sum(b.numel() for b in networks.buffers())
    traits = method.TRAITS
    passes = work.online / traits.terms  # forward passes behind one backward pass
    kept = passes * _kept(model, work.online_sides.largest, config.precision) + work.more_kept
    pixels = traits.views * 3 * traits.view_side(config.views) ** 2 * 5  # in uint8 and float32
    return StepEstimate(float(flop), float(tensors + layout.images * (kept + pixels)))


def fit(config: Pretrain, processes: int, memory: float) -> Pretrain:
    """Return the config, with ``images_per_gpu`` set where a GPU could not hold its share of a micro-batch.

    Args:
        config: the run's config; unchanged if it sets ``images_per_gpu`` itself.
        processes: number of processes that share the step.
        memory: bytes of the smallest GPU.

    Raises:
        KitError: not even one group fits; or not the whole share, for a method that needs it at once.
    """
    if config.images_per_gpu:
        return config
    layout, traits = make_layout(config, processes), METHODS[config.method].TRAITS
    whole, in_group = traits.needs_whole_batch, traits.negatives_in_group
    groups = layout.images // config.loss.group
    for held in (n for n in range(groups, groups - 1 if whole else 0, -1) if groups % n == 0):
        limited = config.model_copy(update={"images_per_gpu": held * config.loss.group})
        needed = estimate(config, make_layout(limited, processes)).memory
        if needed <= memory * ROOM:
            return config if held == groups else limited
    negative = "negative " if in_group else ""
    what = f"which {config.method} looks at at once" if whole else f"a {negative}group"
    ways = {
        "more GPUs": whole and layout.ranks < config.optimizer.groups,
        "precision=bfloat16": config.precision == "float32",
        "a recipe of smaller groups (8x104x6)": in_group and config.loss.group > 104,
        "a smaller loss.group with more optimizer.groups": not in_group and not whole,
    }
    advice = ", or ".join([*(way for way, open_ in ways.items() if open_), "a larger GPU"])
    raise KitError(
        f"{held * config.loss.group} images, {what}, need about {needed / 2**30:.0f} GiB, a GPU here "
        f"has {memory / 2**30:.0f}; take {advice}"
    )


@cache
def _networks(model: Model) -> Networks:
    with torch.device("meta"):
        return Networks(**model.model_dump())


@cache
def _products(model: Model) -> nn.Module:
    """Return an encoder without BN, which is not counted and is slow on the meta device."""
    encoder = copy.deepcopy(_networks(model).target)
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    return encoder


@cache
def encoder_flop(model: Model, side: int) -> float:
    """Count the FLOP of an encoder's forward pass for one image of side x side pixels; a multiply-add
    counts 2."""
    encoder = _products(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.empty(2, 3, side, side, device="meta"))
    return float(counter.get_total_flops() / 2)


@cache
def _mean_flop(model: Model, sides: ResolutionRange) -> float:
    """Return the FLOP of an encoder's forward pass for one image, averaged over the drawn sides."""
    every = range(sides.smallest, sides.largest + 1, sides.step)
    # 7 shares no factor with the strides, so sides that round up occur as often as among all sides.
    thinned = every[(len(every) - 1) % 7 // 2 :: 7] if len(every) > 32 else every
    return sum(encoder_flop(model, side) for side in thinned) / len(thinned)


@cache
def _kept(model: Model, side: int, precision: str) -> int:
    """Count the bytes that one forward pass of one view keeps for the backward pass."""
    networks = _networks(model)
    dtype = getattr(torch, precision)

    def size(tensor: Tensor) -> int:
        return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())

    images = 8
    with kept_for_backward(networks, size) as kept:
        networks.predictor(networks.online(torch.empty(images, 3, side, side, device="meta")))
    return sum(kept.values()) // images
