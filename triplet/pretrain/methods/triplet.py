"""Triplet (Wang et al., ICCV 2021, arXiv 2104.08760, section 3): two networks, two views, a truncated loss.

The online network predicts the target network's projection of one view of an image from the other view.
The loss pulls each prediction to its target and pushes it away from the targets of similar other images.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from triplet.models.networks import Networks
from triplet.pretrain.config import Loss, Pretrain
from triplet.pretrain.methods.common import Batch, Step, Traits, Work, predictor_flop, spread_and_rank

TRAITS = Traits(
    measures=("positive_cosine", "negative_cosine", "feature_std", "feature_rank"),
    terms=2,
    ema_target=True,
    draws_resolutions=True,
    negatives_in_group=True,
)


def build(config: Pretrain, images: int) -> Networks:
    """Build the online encoder, the predictor and the target encoder."""
    return Networks(**config.model.model_dump())


def step(networks: Networks, views: Sequence[Tensor], batch: Batch) -> Step:
    """Predict the target projection of each of two (n, 3, h, w) views from the other.

    Each network sees each view at a resolution of its own, drawn anew in each iteration. The loss is the
    sum of both directions, not their mean, as in the authors' code.
    """
    (view_1, view_2), sides, config = views, batch.resolutions, batch.config.loss
    assert sides is not None
    with torch.no_grad():
        target_2 = networks.target(resize(view_2, sides.target_2))
        target_1 = networks.target(resize(view_1, sides.target_1))

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        return truncated_triplet_loss(
            prediction,
            target,
            gamma=config.gamma,
            margin=config.margin,
            nearest=config.nearest,
            skip=config.skip,
            group_size=config.group,
        )

    prediction_1 = networks.predictor(networks.online(resize(view_1, sides.online_1)))
    yield loss(prediction_1, target_2)
    prediction_2 = networks.predictor(networks.online(resize(view_2, sides.online_2)))
    yield loss(prediction_2, target_1)
    predictions, targets = torch.cat([prediction_1, prediction_2]), torch.cat([target_2, target_1])
    return measure(predictions, targets, config)


def resize(view: Tensor, side: int) -> Tensor:
    """Resize (n, 3, h, w) to (n, 3, side, side), bilinearly and without antialiasing, as the released code
    does."""
    if view.shape[-2:] == (side, side):
        return view
    return F.interpolate(view, size=(side, side), mode="bilinear", align_corners=False)


def truncated_triplet_loss(
    prediction: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    margin: float = 100.0,
    nearest: int = 10,
    skip: int = 1,
    group_size: int | None = None,
) -> Tensor:
    """Pull each prediction to its own target and push it away from a deputy of its hard negatives.

    Row i of both inputs comes from image i. The distance is ``d(i, j) = -2 cos(p_i, z_j)``, the
    positive is ``d(i, i)``, and the negative deputy is the mean distance of the negatives ranked
    ``skip + 1 .. nearest`` (the very nearest are skipped as likely false negatives)::

        loss = mean_i relu(gamma * d(i, i) - deputy(i) + margin)

    Args:
        prediction: (n, d) predictor outputs of the online network, any floating dtype.
        target: (n, d) projector outputs of the target network for the other view.
        gamma: weight of the positive.
        margin: margin of the hinge. Distances lie in [-2, 2], so at the released 100 it is always active.
        nearest: number of most similar negatives to consider.
        skip: how many of those are left out of the deputy, most similar first.
        group_size: the negatives of a row come from its own group of this many consecutive rows; None
            takes all n rows as one group. The authors' group is the micro-batch of one GPU (196).

    Returns:
        Scalar loss, computed in float32, or float64 where an input is (fp16 has steps of 0.0625 near 100).

    Raises:
        ValueError: shapes differ, n is not a multiple of the group, the group holds fewer than
            nearest + 1 rows, or skip leaves no negative.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        found = f"{tuple(prediction.shape)} and {tuple(target.shape)}"
        raise ValueError(f"prediction and target must both be (n, d): found {found}")
    if not 0 <= skip < nearest:
        raise ValueError(f"skip must lie in 0..nearest-1: found skip={skip}, nearest={nearest}")
    n = len(prediction)
    group = n if group_size is None else group_size
    if group < nearest + 1:
        raise ValueError(f"{nearest} negatives need groups of at least {nearest + 1} images: found {group}")
    if n % group:
        raise ValueError(f"{n} images do not divide into groups of {group}")
    positive, deputy = distances(prediction, target, nearest, skip, group)
    return F.relu(gamma * positive - deputy + margin).mean()


def distances(
    prediction: Tensor, target: Tensor, nearest: int, skip: int, group: int
) -> tuple[Tensor, Tensor]:
    """Return the (n,) distances to the positive and to the negative deputy; the arguments are those of the
    loss."""
    d = prediction.shape[1]
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    with torch.autocast(prediction.device.type, enabled=False):
        p = F.normalize(prediction.to(dtype), dim=1).view(-1, group, d)
        z = F.normalize(target.to(dtype), dim=1).view(-1, group, d)
        distance = -2 * p @ z.transpose(1, 2)
        itself = torch.eye(group, dtype=torch.bool, device=distance.device)
        negatives = distance.masked_fill(itself, torch.inf)
        deputy = negatives.topk(nearest, largest=False).values[..., skip:].mean(-1)
        return distance.diagonal(dim1=1, dim2=2).flatten(), deputy.flatten()


@torch.no_grad()
def measure(predictions: Tensor, targets: Tensor, config: Loss) -> list[Tensor]:
    """Return scalars of (n, d) predictions and targets: each prediction's mean cosine with its own target
    and with the hard negatives of the loss, then those of ``spread_and_rank``."""
    positive, deputy = distances(predictions, targets, config.nearest, config.skip, config.group)
    return [-positive.mean() / 2, -deputy.mean() / 2, *spread_and_rank(targets)]


def work(config: Pretrain) -> Work:
    """Count the passes of both views through both networks."""
    views = config.views
    return Work(2, 2, views.online, views.target, more_flop=2 * predictor_flop(config.model))
