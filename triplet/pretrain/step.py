"""One forward pass of the method: two views, two networks, the symmetric loss."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from triplet.models.networks import Networks


@dataclass(frozen=True)
class Sizes:
    """Side in pixels to which each network sees each view in this step, the same on every rank."""

    online_1: int
    online_2: int
    target_1: int
    target_2: int


def resize(view: Tensor, side: int) -> Tensor:
    """(n, 3, h, w) -> (n, 3, side, side), bilinear without antialiasing, as released."""
    return F.interpolate(view, size=(side, side), mode="bilinear", align_corners=False)


def triplet_step(
    networks: Networks,
    view_1: Tensor,
    view_2: Tensor,
    sizes: Sizes,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict each view's target projection from the other view, and average nothing.

    Args:
        networks: online encoder, predictor, target encoder.
        view_1: (n, 3, h, w) normalised images.
        view_2: (n, 3, h, w), the other view of the same images.
        sizes: see Sizes.
        loss: of (n, d) predictions and (n, d) targets.

    Returns:
        The sum of both directions' losses (a scalar; the authors do not halve it), and the
        predictions and targets of both directions, (2n, d) each, for logging.
    """
    prediction_1 = networks.predictor(networks.online(resize(view_1, sizes.online_1)))
    prediction_2 = networks.predictor(networks.online(resize(view_2, sizes.online_2)))
    with torch.no_grad():
        target_2 = networks.target(resize(view_2, sizes.target_2))
        target_1 = networks.target(resize(view_1, sizes.target_1))
    total = loss(prediction_1, target_2) + loss(prediction_2, target_1)
    return total, torch.cat([prediction_1, prediction_2]), torch.cat([target_2, target_1])
