"""The schema of configs/pretrain/*.yaml. Where a default stands, it is the authors' value."""

import os
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from triplet.config import Settings

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Pixels = Annotated[int, Field(ge=32, le=1024)]


def share_of_cores() -> int:
    """Processes that may load images for this one: its share of the cores, less one."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1)


class SideRange(Settings):
    """Sides in pixels from which a network's input resolution is drawn, uniformly."""

    smallest: Pixels
    largest: Pixels
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest or (self.largest - self.smallest) % self.step:
            raise ValueError("largest must be smallest plus a multiple of step")
        return self


class Model(Settings):
    depth: Literal[18, 50] = 50
    width: Annotated[int, Field(ge=4, le=256)] = 64
    hidden: Annotated[int, Field(ge=1)] = 4096
    outputs: Annotated[int, Field(ge=1)] = 256


class Views(Settings):
    """Section 3 of the recipe. Pairs are (view 1, view 2)."""

    size: Pixels = 224
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale: Probability = 0.2
    blur: tuple[Probability, Probability] = (1.0, 0.1)
    blur_radius: tuple[Positive, Positive] = (0.1, 2.0)
    solarize: tuple[Probability, Probability] = (0.0, 0.2)
    backend: Literal["pil", "opencv", "dali"] = "pil"
    """What makes the pixels, from the same draws: pil and opencv on the CPU (see views.py), dali on the GPU
    (see dali.py)."""
    online: SideRange = SideRange(smallest=96, largest=224)
    target: SideRange = SideRange(smallest=128, largest=224)

    @property
    def few(self) -> bool:
        """Whether the resolutions are few, so that tuning kernels for each pays."""
        return self.online.step > 1 and self.target.step > 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("scale", "ratio", "blur_radius"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be (low, high): found ({low}, {high})")
        if self.scale[1] > 1:
            raise ValueError("scale is a share of the image's area and ends at 1")
        return self


class Loss(Settings):
    gamma: Positive = 2.0
    margin: float = 100.0
    nearest: Annotated[int, Field(ge=1)] = 10
    skip: Annotated[int, Field(ge=0)] = 1
    group: Annotated[int, Field(ge=2)]
    """Images among which negatives are looked for."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.skip >= self.nearest:
            raise ValueError("skip must be smaller than nearest")
        if self.group < self.nearest + 1:
            raise ValueError(f"group must hold at least nearest + 1 = {self.nearest + 1} images")
        return self


class Optimizer(Settings):
    learning_rate: Positive = 4.8
    momentum: Probability = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    eta: Positive = 0.001
    groups: Annotated[int, Field(ge=1)]
    """Negative groups in a micro-batch, which shares its BN statistics (one a GPU in the paper)."""
    accumulate: Annotated[int, Field(ge=1)]
    """Micro-batches in an optimiser step."""


class Schedule(Settings):
    epochs: Annotated[int, Field(ge=0)]
    """0 keeps the initial weights: the table's random row."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 1e-4
    ema_base: Probability = 0.99

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        if 0 < self.epochs < self.warmup_epochs:
            raise ValueError(f"warmup_epochs must not exceed epochs ({self.epochs})")
        return self


class Monitor(Settings):
    """Online k-NN classification of the online network's backbone features, where labels exist."""

    every: Annotated[int, Field(ge=0)] = 0
    """Epochs between evaluations; 0 for none."""
    images: Annotated[int, Field(ge=2)] = 10_000
    """Drawn once from the training images; half of them are the bank, the others are classified."""
    neighbours: Annotated[int, Field(ge=1)] = 20
    temperature: Positive = 0.07


class Pretrain(Settings):
    """One pretraining run: what the optimiser sees, whatever machine it runs on."""

    model: Model = Model()
    views: Views = Views()
    loss: Loss
    optimizer: Optimizer
    schedule: Schedule
    monitor: Monitor = Monitor()
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that load images for each that trains; 0 loads in that one. None: ``share_of_cores``."""
    images_per_gpu: Annotated[int, Field(ge=1)] | None = None
    """Most images that a GPU can take at once; less than its share means BN over fewer images. None: what
    fits by ``estimate``."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass (autocast); the loss and the weights are float32."""
    compile: bool = False
    """torch.compile the networks, once for each resolution: for configs whose ``step`` leaves few."""
    unreadable: Probability = 0.001
    """Share of images that may be unreadable before the run stops."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Optimiser steps between checkpoints."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints that are kept."""

    @property
    def loaders(self) -> int:
        """Processes that load images."""
        return share_of_cores() if self.workers is None else self.workers

    @property
    def micro_batch(self) -> int:
        """Images in one forward pass."""
        return self.loss.group * self.optimizer.groups

    @property
    def batch(self) -> int:
        """Images in an optimiser step."""
        return self.micro_batch * self.optimizer.accumulate
