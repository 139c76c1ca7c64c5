"""The truncated triplet loss (Wang et al., ICCV 2021, arXiv 2104.08760, section 3)."""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    """Pull each prediction to its own target, push it from a deputy of its hard negatives.

    Row i of both inputs comes from image i. The distance is ``d(i, j) = -2 cos(p_i, z_j)``, the
    positive is ``d(i, i)``, and the negative deputy is the mean distance of the negatives ranked
    ``skip + 1 .. nearest`` (the very nearest are likely false negatives and are skipped)::

        loss = mean_i relu(gamma * d(i, i) - deputy(i) + margin)

    The released margin of 100 never lets the hinge switch off (distances lie in [-2, 2]).

    Args:
        prediction: (n, d) predictor outputs of the online network, any floating dtype.
        target: (n, d) projector outputs of the target network for the other view.
        gamma: weight of the positive.
        margin: of the hinge.
        nearest: how many of the most similar negatives are looked at.
        skip: how many of those are left out of the deputy, most similar first.
        group_size: the negatives of a row come from its own group of this many consecutive rows;
            None takes all n rows as one group. The authors never gather across GPUs, so theirs is
            the micro-batch of one GPU (196).

    Returns:
        Scalar loss, computed in float32, or float64 where an input is (fp16 has steps of 0.0625
        near 100).

    Raises:
        ValueError: shapes differ, n is not a multiple of the group, the group holds fewer than
            nearest + 1 rows, or skip leaves no negative.
    """
    if prediction.ndim != 2 or prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must both be (n, d): found {tuple(prediction.shape)} "
            f"and {tuple(target.shape)}"
        )
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
    """(n,) distances to the positive and to the negative deputy; arguments as of the loss."""
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
