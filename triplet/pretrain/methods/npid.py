"""NPID (Wu et al., arXiv 1805.01978) as in OpenSelfSup: each image against a memory of all images'
features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.models.networks import Encoder
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.common import (
    Batch,
    Step,
    Traits,
    Work,
    contrastive_loss,
    unit,
)

TRAITS = Traits(measures=("accuracy",), views=1)


class Npid(nn.Module):
    """The encoder and the (images, d) memory of unit features."""

    bank: Tensor

    def __init__(self, config: Pretrain, images: int) -> None:
        super().__init__()
        outputs = config.model.outputs
        self.online = Encoder(
            config.model.depth, config.model.width, lambda channels: nn.Linear(channels, outputs)
        )
        self.register_buffer("bank", F.normalize(torch.randn(images, outputs)))


def build(config: Pretrain, images: int) -> Npid:
    """Build the encoder and the memory; see Npid."""
    return Npid(config, images)


def draw(images: int, batch: Batch) -> Tensor:
    """Draw (n, negatives) numbers of images as negatives. As in OpenSelfSup, they may repeat or be the
    image itself."""
    shape, device = (batch.config.loss.group, batch.config.contrastive.negatives), batch.indices.device
    return torch.cat(
        [torch.randint(images, shape, generator=each, device=device) for each in batch.generators()]
    )


def step(networks: Npid, views: Sequence[Tensor], batch: Batch) -> Step:
    """Tell the memory entry of each image of an (n, 3, h, w) view from drawn ones; then update the entries
    of all processes' images."""
    settings, bank = batch.config.contrastive, networks.bank
    feature, drawn = unit(networks.online(views[0])), draw(len(bank), batch)
    with torch.autocast(feature.device.type, enabled=False):
        positive = (bank[batch.indices] * feature).sum(1)
        negative = torch.stack([bank[row] @ own for row, own in zip(drawn, feature, strict=True)])
        loss, found = contrastive_loss(positive, negative, settings.temperature)
    with torch.no_grad():
        everyone, new = batch.gather(batch.indices), batch.gather(feature.detach())
        moved = (1 - settings.momentum) * bank[everyone] + settings.momentum * new
        bank[everyone] = F.normalize(moved)
    yield loss
    return [found]


def work(config: Pretrain) -> Work:
    """Count one view, and the negatives' float32 features that are kept for the backward pass."""
    negatives = 4 * config.contrastive.negatives * config.model.outputs
    return Work.at(config.views.size, online=1, more_kept=negatives)
