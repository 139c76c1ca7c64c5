"""The schema of configs/pretrain/*.yaml. Every default is the authors' value."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from triplet.config import InOrder, PositiveShare, Probability, Resolution, Settings
from triplet.environment import share_of_cores

WIDEST = 65_536
"""Largest width of a head's layers. SwAV's and VICReg's widest have 8192; no machine holds more than some 2
million."""
MANY = 10**8
"""Largest number of images, keys or steps. ImageNet-22k has 1.4 * 10^7 images."""
LARGEST_BATCH = 2**20
"""Largest number of images in an optimiser step, 32 times the largest batch in the literature."""
Many = Annotated[int, Field(ge=1, le=MANY)]


class ResolutionRange(Settings):
    """Range of sides in pixels from which a network's input resolution is drawn uniformly."""

    smallest: Resolution
    largest: Resolution
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.smallest > self.largest or (self.largest - self.smallest) % self.step:
            raise ValueError("largest must be smallest plus a multiple of step")
        return self


class Model(Settings):
    depth: Literal[18, 50] = 50
    # With fewer than 8 input channels, torch 2.11's oneDNN writes out of bounds on AVX2 in the backward
    # pass of channels-last 1x1 convolutions.
    width: Annotated[int, Field(ge=8, le=256, multiple_of=8)] = 64
    hidden: Annotated[int, Field(ge=0, le=WIDEST)] = 4096
    """Width of the projector's hidden layer; 0 for a linear projector (MoCo)."""
    outputs: Annotated[int, Field(ge=1, le=WIDEST)] = 256


class Patches(Settings):
    """The 3 x 3 grid of relative location, as in section `data` of OpenSelfSup's relative_loc/r50.py."""

    resize: Resolution = 292
    """Shorter side to which an image is resized."""
    crop: Resolution = 255
    grayscale: Probability = 0.66
    jitter: Annotated[int, Field(ge=0)] = 21
    """Pixels by which a patch may move within its cell."""

    @property
    def side(self) -> int:
        """Side of a patch in pixels."""
        return self.crop // 3 - self.jitter

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.side < 1 or self.crop > self.resize:
            raise ValueError("crop must not exceed resize, and a third of it must exceed jitter")
        return self


class Views(Settings):
    """Augmentation of the two views, section 3 of the recipe. Pairs are (view 1, view 2)."""

    size: Resolution = 224
    scale: Annotated[tuple[PositiveShare, PositiveShare], InOrder] = (0.08, 1.0)
    ratio: Annotated[tuple[PositiveFloat, PositiveFloat], InOrder] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale: Probability = 0.2
    grayscale_first: bool = False
    """Whether grayscale comes before the colour jitter instead of after it."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    blur: tuple[Probability, Probability] = (1.0, 0.1)
    blur_radius: Annotated[tuple[PositiveFloat, PositiveFloat], InOrder] = (0.1, 2.0)
    solarize: tuple[Probability, Probability] = (0.0, 0.2)
    backend: Literal["pil", "opencv", "dali"] = "pil"
    """Library that renders the views: pil and opencv on the CPU (see views.py), dali on the GPU (see
    dali.py). The random draws are the same for all three."""
    jpeg_engine: Probability = 0.0
    """Share of the JPEGs that DALI gives to a card's own decoder (A100 and later have one). Its pixels
    differ from those of the other decoders, and which images it gets depends on their place in a batch."""
    online: ResolutionRange = ResolutionRange(smallest=96, largest=224)
    target: ResolutionRange = ResolutionRange(smallest=128, largest=224)
    patches: Patches = Patches()
    """Grid of the relative location method, which uses no other setting of this section."""

    @property
    def few_resolutions(self) -> bool:
        """Whether there are so few resolutions that tuning kernels for each pays off."""
        return self.online.step > 1 and self.target.step > 1


class Loss(Settings):
    gamma: PositiveFloat = 2.0
    margin: float = 100.0
    nearest: Many = 10
    skip: Annotated[int, Field(ge=0, le=MANY)] = 1
    group: Annotated[int, Field(ge=2, le=LARGEST_BATCH)]
    """Number of images in a negative group: an image's negatives come from its own group."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.skip >= self.nearest:
            raise ValueError("skip must be smaller than nearest")
        if self.group < self.nearest + 1:
            raise ValueError(f"group must hold at least nearest + 1 = {self.nearest + 1} images")
        return self


class Contrastive(Settings):
    """Temperature of SimCLR, MoCo and NPID."""

    temperature: PositiveFloat = 0.07
    queue: Many = 65536
    """Length of MoCo's queue of keys."""
    negatives: Many = 65536
    """Number of NPID's negatives for each image."""
    momentum: Probability = 0.999
    """EMA momentum of MoCo's key encoder; for NPID the share of the new feature in the memory (0.5)."""


class Optimizer(Settings):
    name: Literal["lars", "sgd"] = "lars"
    learning_rate: PositiveFloat = 4.8
    momentum: Probability = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    head_weight_decay: Annotated[float, Field(ge=0)] | None = None
    """Weight decay of SGD for all but the backbone; None for the same value."""
    eta: PositiveFloat = 0.001
    groups: Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
    """Negative groups in a micro-batch. The micro-batch shares its BN statistics. The paper has one group
    per GPU."""
    accumulate: Annotated[int, Field(ge=1, le=LARGEST_BATCH)]
    """Micro-batches in an optimiser step."""


class Schedule(Settings):
    epochs: Annotated[int, Field(ge=0, le=10**6)]
    """Epochs to train; 0 keeps the initial weights, as the table's random method does."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 10
    warmup_ratio: Annotated[float, Field(gt=0, le=1)] = 1e-4
    ema_base: Probability = 0.99
    steps: tuple[Many, ...] = ()
    """Epochs after which the learning rate falls to a tenth; empty for a cosine."""

    @model_validator(mode="after")
    def _warms_up(self) -> Self:
        if 0 < self.epochs < self.warmup_epochs:
            raise ValueError(f"warmup_epochs must not exceed epochs ({self.epochs})")
        return self


class Monitor(Settings):
    """Online k-NN classification of the online network's backbone features, where labels exist."""

    every: Annotated[int, Field(ge=0, le=MANY)] = 0
    """Epochs between evaluations; 0 for none."""
    images: Annotated[int, Field(ge=2, le=MANY)] = 10_000
    """Number of training images in the fixed sample: one half is the bank, the other is classified."""
    neighbours: Many = 20
    temperature: PositiveFloat = 0.07


class Pretrain(Settings):
    """One pretraining run as the optimiser sees it, whatever machine it runs on.

    ``methods.check`` checks that the parts fit the method.
    """

    method: Literal["triplet", "byol", "moco", "npid", "relative-loc", "rotation-pred", "simclr"] = (
        "triplet"
    )
    model: Model = Model()
    views: Views = Views()
    loss: Loss
    """Loss of the Triplet method. Other methods only use ``group``, the number of images on one GPU in the
    original."""
    contrastive: Contrastive = Contrastive()
    batch_norm: Literal["shared", "group"] = "shared"
    """Images that share BN statistics: the whole micro-batch, or each group as on a GPU of its own."""
    optimizer: Optimizer
    schedule: Schedule
    monitor: Monitor = Monitor()
    seed: Annotated[int, Field(ge=0)] = 0
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Loader processes for each training process; 0 loads in the training process, None takes
    ``share_of_cores``."""
    images_per_gpu: Many | None = None
    """Most images in a GPU's forward pass. Fewer than its share means BN over fewer images. None takes as
    many as fit by ``estimate``."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the forward pass (autocast); the loss and the weights are float32."""
    compile: bool = False
    """Whether to compile the networks with torch.compile."""
    unreadable: Probability = 0.001
    """Share of images that may be unreadable before the run stops."""
    checkpoint_every: Many = 500
    """Optimiser steps between checkpoints."""
    max_to_keep: Many = 2
    """Number of newest checkpoints to keep."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.views.backend == "dali" and (
            self.views.grayscale_first or self.views.interpolation != "bicubic"
        ):
            raise ValueError("views.backend=dali makes bicubic views, grey last; take opencv")
        side = min(self.views.size, max(self.views.online.largest, self.views.target.largest))
        # oneDNN again: on AVX-512 it crashes in the strided 1x1 convolution of this one network, which has
        # 8 input channels (wider and deeper networks have more). Without oneDNN it works; on smaller maps
        # no crash was seen.
        if (self.model.depth, self.model.width) == (18, 8) and side > 199:
            raise ValueError(
                f"model.width=8 with model.depth=18 on views of {side} px: torch's oneDNN crashes on CPUs "
                "with AVX-512; take model.width=16, or views of at most 199 px"
            )
        if self.batch > LARGEST_BATCH:
            raise ValueError(
                f"loss.group * optimizer.groups * optimizer.accumulate is {self.batch} images a step; "
                f"expected at most {LARGEST_BATCH}"
            )
        return self

    @property
    def loaders(self) -> int:
        """Processes that load images."""
        return share_of_cores(self.workers)

    @property
    def micro_batch(self) -> int:
        """Images in one forward pass."""
        return self.loss.group * self.optimizer.groups

    @property
    def batch(self) -> int:
        """Images in an optimiser step."""
        return self.micro_batch * self.optimizer.accumulate
