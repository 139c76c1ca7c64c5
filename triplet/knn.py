"""Weighted k-nearest-neighbour classification of frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 2**27
"""Number of similarities held at a time: 0.5 GB."""


@torch.no_grad()
def nearest(bank: Tensor, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the most similar features of a bank, exactly.

    Args:
        bank: (m, d) features in any precision and on any device; they are moved in parts.
        queries: (n, d) features on the device that computes.
        count: number of neighbours; at most the size of the bank.

    Returns:
        (n, count) float32 cosines in descending order, and their (n, count) int64 places in the bank.
    """
    rows = max(1, MOST // 1024)
    found = []
    for part in F.normalize(queries.float(), dim=1).split(1024):
        cosines = part.new_empty(len(part), 0)
        places = torch.empty(len(part), 0, dtype=torch.int64, device=part.device)
        for first in range(0, len(bank), rows):
            block = F.normalize(bank[first : first + rows].to(part.device).float(), dim=1)
            best, index = (part @ block.T).topk(min(count, len(block)), dim=1)
            cosines, places = torch.cat([cosines, best], 1), torch.cat([places, index + first], 1)
            cosines, kept = cosines.topk(min(count, cosines.shape[1]), dim=1)
            places = places.gather(1, kept)
        found.append((cosines, places))
    cosines, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    return cosines, places


def vote(cosines: Tensor, labels: Tensor, classes: int, temperature: float) -> Tensor:
    """Predict classes as InstDisc does (Wu et al., CVPR 2018, arXiv 1805.01978, section 3.4).

    Each neighbour votes for its class with weight exp(cosine / temperature).

    Args:
        cosines: (n, k) cosines of the neighbours, the largest first.
        labels: (n, k) int64 classes of the neighbours.
        classes: number of classes.
        temperature: temperature of the weights.

    Returns:
        (n,) int64 predicted classes.
    """
    votes = torch.zeros(len(cosines), classes, device=cosines.device)
    # Weights relative to the nearest neighbour's give the same prediction without overflow.
    weight = ((cosines - cosines[:, :1]) / temperature).exp()
    return votes.scatter_add_(1, labels, weight).argmax(1)


def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, *, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Predict the (n,) int64 classes of (n, d) queries from (m, d) features with (m,) int64 labels."""
    cosines, places = nearest(bank, queries, neighbours)
    return vote(cosines, labels[places], int(labels.max()) + 1, temperature)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the percentage of correct predictions."""
    return 100 * (predicted == labels).double().mean().item()
