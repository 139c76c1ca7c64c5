"""What several baselines need: the batch that a step sees, an encoder, the contrastive loss."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triplet.models.resnet import Backbone
from triplet.pretrain.config import Pretrain


@dataclass(frozen=True)
class Batch:
    """One pass of one process."""

    config: Pretrain
    iteration: int
    """Of the micro-batch, from 0."""
    indices: Tensor
    """(n,) int64 numbers of the images, on the device."""
    first: int
    """Place of the first of them in the micro-batch."""
    gather: Callable[[Tensor], Tensor]
    """(n, ...) of each process -> (N, ...) of all, in order; the gradient goes to the own part alone."""
    processes: int

    @property
    def own(self) -> slice:
        """Where this pass's rows are in what is gathered."""
        return slice(self.first, self.first + len(self.indices))

    def generators(self) -> Iterator[torch.Generator]:
        """For each group of images one on the device: draws depend on seed, iteration and place in the
        micro-batch, not on the process (but on a GPU they are other ones than on the CPU)."""
        end = self.first + len(self.indices)
        for first in range(self.first, end, self.config.loss.group):
            sequence = np.random.SeedSequence((self.config.seed, self.iteration, first))
            seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
            yield torch.Generator(self.indices.device).manual_seed(seed)


class Encoder(nn.Module):
    """Backbone, global average pooling, projector.

    Args:
        config: of the run; for depth and width.
        projector: of the number of the backbone's channels; its linear layers are initialised as
            OpenSelfSup's: kaiming normal by fan-in, bias 0.
    """

    def __init__(self, config: Pretrain, projector: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.backbone = Backbone(config.model.depth, config.model.width)
        self.projector = projector(self.backbone.channels)
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, d)."""
        return self.projector(self.backbone(images).mean((2, 3)))


def unit(features: Tensor) -> Tensor:
    """(n, d) rows of length 1, in float32 or wider."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def contrastive_loss(positive: Tensor, negative: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) as OpenSelfSup's ContrastiveHead computes it.

    Args:
        positive: (n,) similarity of each row to its positive.
        negative: (n, k) to its negatives.
        temperature: divides both.

    Returns:
        Mean cross-entropy of picking the positive among all; and the share of rows
        whose positive is the most similar.
    """
    logits = torch.cat([positive[:, None], negative], dim=1) / temperature
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, first), accuracy(logits, first)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of (n, k) rows whose largest entry is at the (n,) label."""
    return (logits.detach().argmax(1) == labels).float().mean()
