"""Rotation prediction (Gidaris et al., arXiv 1803.07728) as in OpenSelfSup."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.models.networks import Encoder
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.common import Batch, Step, Traits, Work, accuracy

TRAITS = Traits(measures=("accuracy",), views=1)


def rotations(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate (n, 3, h, h) by 0, 90, 180 and 270 degrees to the left: (4n, 3, h, h), and (4n,) labels."""
    turned = torch.stack([torch.rot90(images, k, (2, 3)) for k in range(4)], dim=1).flatten(0, 1)
    return turned, torch.arange(4, device=images.device).repeat(len(images))


def build(config: Pretrain, images: int) -> nn.Module:
    """Build the backbone and a classifier of four rotations."""
    return nn.ModuleDict(
        {"online": Encoder(config.model.depth, config.model.width, lambda channels: nn.Linear(channels, 4))}
    )


def step(networks: Any, views: Sequence[Tensor], batch: Batch) -> Step:
    """Rotate one (n, 3, h, h) view four ways and classify the rotation."""
    turned, angle = rotations(views[0])
    logits = networks.online(turned.contiguous(memory_format=torch.channels_last))
    yield F.cross_entropy(logits, angle)
    return [accuracy(logits, angle)]


def work(config: Pretrain) -> Work:
    """Count one view, rotated four ways."""
    return Work.at(config.views.size, online=4)
