"""BYOL (Grill et al., arXiv 2006.07733) as in OpenSelfSup: the Triplet method's networks, without
negatives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triplet.models.networks import Networks
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.common import Batch, Step, Traits, Work, predictor_flop, unit

TRAITS = Traits(measures=("positive_cosine",), terms=2, ema_target=True)


def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return ``-2 * mean cosine`` of (n, d) predictions and targets.

    The paper's loss is larger by the constant 2.
    """
    return -2 * (unit(prediction) * unit(target)).sum(1).mean()


def build(config: Pretrain, images: int) -> Networks:
    """Build the online encoder, the predictor and the target encoder."""
    return Networks(**config.model.model_dump())


def step(networks: Networks, views: Sequence[Tensor], batch: Batch) -> Step:
    """Predict the target projection of each of two (n, 3, h, w) views from the other, and sum both
    losses."""
    with torch.no_grad():
        target_1, target_2 = networks.target(views[0]), networks.target(views[1])
    loss_1 = byol_loss(networks.predictor(networks.online(views[0])), target_2)
    yield loss_1
    loss_2 = byol_loss(networks.predictor(networks.online(views[1])), target_1)
    yield loss_2
    return [(loss_1 + loss_2).detach() / -4]


def work(config: Pretrain) -> Work:
    """Count the passes of both views through both networks."""
    return Work.at(config.views.size, online=2, target=2, more_flop=2 * predictor_flop(config.model))
