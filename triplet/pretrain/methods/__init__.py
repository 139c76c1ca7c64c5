"""The methods of the table, one file each. The rest of the package is the same for all of them."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods import byol, moco, npid, relative_loc, rotation_pred, simclr, triplet
from triplet.pretrain.methods.common import Batch, Step, Traits, Work


class PretrainMethod(Protocol):
    """Interface of a method's module."""

    TRAITS: Traits
    """The method's needs from views, trainer and layout."""

    def build(self, config: Pretrain, images: int) -> nn.Module:
        """Build the networks on the default device, initialised from torch's global generator.

        ``networks.online.backbone`` is finetuned later. If ``TRAITS.ema_target`` is set,
        ``networks.target`` starts with the parameters of ``networks.online``.

        Args:
            config: the run's config.
            images: number of images in the data set.
        """

    def step(self, networks: Any, views: Sequence[Tensor], batch: Batch) -> Step:
        """Run the forward passes of one micro-batch, under autocast if the config asks for bfloat16.

        Args:
            networks: made by ``build``, in train mode.
            views: ``TRAITS.views`` tensors (n, 3, h, w), normalised and channels-last.
            batch: the images' numbers, their place in the micro-batch, and the run's config.

        Returns:
            A generator that yields the ``TRAITS.terms`` terms of the loss, then returns the measures.
        """

    def work(self, config: Pretrain) -> Work:
        """Describe the work of a step for one image, for the estimate of FLOP and memory."""


METHODS: dict[str, PretrainMethod] = {
    "triplet": triplet,
    "byol": byol,
    "moco": moco,
    "npid": npid,
    "relative-loc": relative_loc,
    "rotation-pred": rotation_pred,
    "simclr": simclr,
}


def check(config: Pretrain) -> None:
    """Raise KitError for a config whose parts are valid on their own but do not fit its method."""
    traits = METHODS[config.method].TRAITS
    traits.check(config)
    if traits.needs_whole_batch and config.optimizer.accumulate > 1:
        raise KitError(f"optimizer.accumulate must be 1 for {config.method}: its batch is seen whole")
    if config.views.backend == "dali" and traits.views != 2:
        raise KitError("views.backend=dali makes two views of an image; take opencv")
