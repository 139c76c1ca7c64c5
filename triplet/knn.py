"""Weighted k-nearest-neighbour classification of frozen features."""

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def knn_predict(
    bank: Tensor, labels: Tensor, queries: Tensor, *, neighbours: int = 20, temperature: float = 0.07
) -> Tensor:
    """Predict classes as InstDisc does (Wu et al., CVPR 2018, arXiv 1805.01978, section 3.4).

    Each of the most similar bank features votes for its class with weight exp(cosine / temperature).

    Args:
        bank: (m, d) features.
        labels: (m,) int64 classes of the bank.
        queries: (n, d) features.
        neighbours: how many vote; all of the bank if that is smaller.
        temperature: of the weights.

    Returns:
        (n,) int64 predicted classes.
    """
    bank, queries = F.normalize(bank.float(), dim=1), F.normalize(queries.float(), dim=1)
    predicted = []
    for part in queries.split(1024):  # a similarity matrix of bounded size
        similarity, index = (part @ bank.T).topk(min(neighbours, len(bank)), dim=1)
        votes = torch.zeros(len(part), int(labels.max()) + 1, device=part.device)
        # Relative to the nearest one: the same prediction, and no overflow at small temperatures.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        predicted.append(votes.scatter_add_(1, labels[index], weight).argmax(1))
    return torch.cat(predicted)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of predictions that are right, in percent."""
    return 100 * (predicted == labels).double().mean().item()
