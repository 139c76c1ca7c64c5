"""The schemas of configs/linear/*.yaml."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from triplet.config import InOrder, PositiveShare, Probability, Resolution, Settings
from triplet.environment import share_of_cores

Count = Annotated[int, Field(ge=1, le=10**8)]
"""A number of items; ImageNet-22k has 1.4 * 10^7 images."""
# Settings that do not change the result.
NEUTRAL: Any = {"workers": True, "training": {"checkpoint_every": True}}


class ImageSettings(Settings):
    """Input of the backbone: torchvision's RandomResizedCrop and flip, or the centre."""

    size: Resolution = 224
    shorter: Resolution = 256
    """Length to which the shorter side is resized before cropping the centre."""
    scale: Annotated[tuple[PositiveShare, PositiveShare], InOrder] = (0.08, 1.0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.shorter < self.size:
            raise ValueError(f"shorter must be at least size ({self.size})")
        return self


class Common(Settings):
    """Settings of every evaluation."""

    images: ImageSettings = ImageSettings()
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone's forward pass (autocast); all else is float32."""
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Loader processes for each computing process, None for ``share_of_cores``; also the processes that fit
    SVMs, None for all cores."""

    @property
    def loaders(self) -> int:
        """Processes that load images."""
        return share_of_cores(self.workers)


class Training(Settings):
    """SGD as OpenSelfSup's linear and semi-supervised benchmarks configure it."""

    batch: Count = 256
    """Images in a step, over all processes."""
    num_replicas: Count
    """Number of GPUs of the original training. An epoch is padded with its first images to a multiple of
    it, as in OpenSelfSup's DistributedSampler, so that any divisor of it can share each batch."""
    learning_rate: PositiveFloat
    head: PositiveFloat = 1.0
    """Factor of the learning rate for the classifier."""
    momentum: Probability = 0.9
    weight_decay: NonNegativeFloat = 0.0
    epochs: Count
    warmup_epochs: NonNegativeFloat = 0
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 1e-4
    steps: tuple[Count, ...] = ()
    """Epochs at which the learning rate is multiplied by gamma; empty for a cosine to zero."""
    gamma: PositiveFloat = 0.1
    evaluate_every: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_every: Count = 1000
    """Optimiser steps between checkpoints."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.batch % self.num_replicas:
            raise ValueError(f"batch must be a multiple of num_replicas ({self.num_replicas})")
        if self.steps and self.warmup_epochs:
            raise ValueError("steps have no warm-up")
        return self


class Sweep(Settings):
    """The fast protocol: a head for every pair of learning rate and decay, trained in parallel."""

    crops: Annotated[int, Field(ge=0, le=1000)]
    """Number of random crops per training image whose features are kept, besides the centre's."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of each class's training images, at least one, that is held out to choose the head."""
    learning_rates: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    weight_decays: Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
    """Weight decay of the weights; the bias has none."""
    batch: Count
    momentum: Probability = 0.9
    epochs: Count
    warmup_epochs: NonNegativeFloat = 0


class Linear(Common):
    """A linear classifier on the frozen backbone, trained as published or by the fast protocol."""

    training: Training | None = None
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.training is None) == (self.sweep is None):
            raise ValueError("give either training (the published protocol) or sweep (the fast one)")
        return self


class KnnConfig(Common):
    """Weighted k-nearest neighbours among the training images' features."""

    neighbours: Annotated[tuple[Count, ...], Field(min_length=1)] = (20, 200)
    temperature: PositiveFloat = 0.07


class Semi(Common):
    """The whole network finetuned on a part of the training images."""

    percent: Annotated[float, Field(gt=0, le=100)]
    training: Training


class Svm(Common):
    """Support vector machines for VOC07 on pooled features, one for each class."""

    layers: Annotated[tuple[Annotated[int, Field(ge=1, le=5)], ...], Field(min_length=1)] = (5,)
    """Layers to evaluate: 1 is the stem, 2 to 5 are the residual stages."""
    costs: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    folds: Annotated[int, Field(ge=2, le=1000)] = 3
    shots: tuple[Count, ...] = (1, 2, 4, 8, 16, 32, 64, 96)
    samples: Annotated[int, Field(ge=0, le=1000)] = 5
    """Number of independent draws for each number of shots."""
