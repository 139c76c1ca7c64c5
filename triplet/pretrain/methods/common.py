"""The description of a method, the input of its step, and parts that several methods share."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from triplet.errors import KitError
from triplet.pretrain.config import Model, Pretrain, ResolutionRange, Views
from triplet.pretrain.views import InputResolutions, Pixels, augmented_views

Step = Generator[Tensor, None, Sequence[Tensor]]
"""The forward passes of one micro-batch. A step yields each term of the loss, a scalar with its gradient.
It computes the next term only after the backward pass of the last one, so that the tensors of at most one
term are kept. It returns detached scalars, one for each of ``Traits.measures``."""


def needs_hidden_layer(config: Pretrain) -> None:
    """Raise KitError for a linear projector."""
    if config.model.hidden == 0:
        raise KitError("model.hidden must be at least 1: only MoCo has a linear projector")


def side_of_views(config: Views) -> int:
    """Return the side of a whole view in pixels."""
    return config.size


@dataclass(frozen=True)
class Traits:
    """The differences between methods that the rest of a training must know about."""

    measures: tuple[str, ...]
    """Names of the values that a step returns for the log, besides the loss."""
    views: int = 2
    """Number of views of each image in a step."""
    terms: int = 1
    """Number of terms of the loss that a step yields."""
    needs_whole_batch: bool = False
    """Whether the loss compares all images of a micro-batch, so that it cannot be cut into passes."""
    ema_target: bool = False
    """Whether the trainer updates ``networks.target`` by EMA after each optimiser step; False if the
    method's step does so itself."""
    draws_resolutions: bool = False
    """Whether each network sees each view at a resolution that is drawn for the iteration; see
    ``Batch``."""
    negatives_in_group: bool = False
    """Whether an image's negatives come from its group, so that ``loss.group`` is part of the method. For
    other methods it is only the number of images on a GPU."""
    check: Callable[[Pretrain], None] = needs_hidden_layer
    """Raise KitError for settings that do not fit the method."""
    sample_views: Callable[[Image.Image, Views, Callable[[int], np.random.Generator], int], Pixels] = (
        augmented_views
    )
    """Render the (views, side, side, 3) uint8 views of an RGB image; the arguments are the image, the
    config, a generator for each view and the number of views. Runs in the loader processes."""
    view_side: Callable[[Views], int] = side_of_views
    """Return the side of these views in pixels."""


@dataclass(frozen=True)
class Work:
    """The work of a step for one image, for the estimate of FLOP and memory."""

    online: int
    """Forward and backward passes of the online encoder."""
    target: int
    """Forward passes of the target encoder, which has no backward pass."""
    online_sides: ResolutionRange
    """Range of sides in pixels of the online encoder's input."""
    target_sides: ResolutionRange
    more_flop: float = 0.0
    """FLOP outside the encoders, forward and backward; a multiply-add counts 2."""
    more_kept: float = 0.0
    """Bytes kept for the backward pass besides the encoder's."""

    @classmethod
    def at(cls, side: int, online: int, target: int = 0, **more: float) -> Self:
        """Describe the work of a method whose encoders see a single resolution."""
        sides = ResolutionRange.model_construct(smallest=side, largest=side, step=1)
        return cls(online, target, sides, sides, **more)


def predictor_flop(model: Model) -> float:
    """Return the FLOP of one forward and backward pass of the predictor: two matrix products, three times
    each."""
    return 3 * 2 * 2 * model.outputs * model.hidden


@dataclass(frozen=True)
class Batch:
    """The input of a step: a process's part of a micro-batch."""

    config: Pretrain
    iteration: int
    """Number of the micro-batch in the run, from 0."""
    indices: Tensor
    """(n,) int64 numbers of the images, on the device."""
    first: int
    """Position of the first image in the micro-batch."""
    gather: Callable[[Tensor], Tensor]
    """Gather each process's (n, ...) into (N, ...), in order; the gradient flows into this process's part
    alone."""
    processes: int
    resolutions: InputResolutions | None = None
    """Input resolutions of the iteration, the same in all processes; None for a method that draws none."""

    @property
    def own(self) -> slice:
        """The rows of this pass in a gathered tensor."""
        return slice(self.first, self.first + len(self.indices))

    def generators(self) -> Iterator[torch.Generator]:
        """Yield one generator on the device for each group of images. Draws depend on seed, iteration and
        position in the micro-batch, not on the process; a GPU's differ from a CPU's."""
        end = self.first + len(self.indices)
        for first in range(self.first, end, self.config.loss.group):
            sequence = np.random.SeedSequence((self.config.seed, self.iteration, first))
            seed = int(sequence.generate_state(1, np.uint64)[0] >> 1)
            yield torch.Generator(self.indices.device).manual_seed(seed)


def unit(features: Tensor) -> Tensor:
    """Normalise (n, d) rows to length 1, in float32 or wider."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=1)


def contrastive_loss(positive: Tensor, negative: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Return InfoNCE (van den Oord et al., arXiv 1807.03748) as OpenSelfSup's ContrastiveHead computes it.

    Args:
        positive: (n,) similarity of each row to its positive.
        negative: (n, k) similarities of each row to its negatives.
        temperature: divides both.

    Returns:
        The mean cross-entropy of picking the positive among all, and the share of rows whose positive is
        the most similar.
    """
    logits = torch.cat([positive[:, None], negative], dim=1) / temperature
    first = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    return F.cross_entropy(logits, first), accuracy(logits, first)


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of (n, k) rows whose largest entry is at the (n,) label."""
    return (logits.detach().argmax(1) == labels).float().mean()


@torch.no_grad()
def spread_and_rank(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return scalars that show whether (n, d) features collapse, without waiting for the device.

    Returns:
        The standard deviation of the normalised features times sqrt(d): 1 when they spread evenly over the
        sphere, 0 after a collapse to a point. Then the participation ratio of their covariance, ``(sum of
        eigenvalues)^2 / sum of squared eigenvalues``, between 1 (collapsed to a line) and d.
    """
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(features.float(), dim=1)
        centred = z - z.mean(0)
        covariance = centred.T @ centred
        spread = z.std(0).mean() * z.shape[1] ** 0.5
        rank = covariance.diagonal().sum().square() / covariance.square().sum().clamp(min=1e-30)
        return spread, rank
