"""The Triplet method and the kit's images for OpenSelfSup, loaded by its configs' ``custom_imports``.

It is written from the recipe around the kit's own functions. The parts that the method shares with BYOL
(networks, EMA, two pipelines of views) are OpenSelfSup's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from openselfsup.datasets.byol import BYOLDataset
from openselfsup.datasets.registry import DATASETS, DATASOURCES
from openselfsup.hooks import HOOKS, BYOLHook
from openselfsup.models.byol import BYOL
from openselfsup.models.heads import LatentPredictHead
from openselfsup.models.registry import HEADS, MODELS
from PIL import Image
from torch import Tensor

from triplet.errors import KitError, message_of
from triplet.images import decode, open_images
from triplet.pretrain.config import ResolutionRange, Views
from triplet.pretrain.methods.triplet import resize, truncated_triplet_loss
from triplet.pretrain.views import draw_resolutions


@DATASOURCES.register_module
class KitImages:
    """Data source of the images of a folder, a list or shards; see ``triplet.images.open_images``.

    Args:
        source: path of a folder, a list or shards.
        return_label: set by OpenSelfSup; labels are never returned.
    """

    has_labels = False

    def __init__(self, source: str, return_label: bool = False) -> None:
        self.images = open_images(Path(source))

    def get_length(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def get_sample(self, index: int) -> Image.Image:
        """Return an RGB image; KitError when it cannot be read."""
        try:
            return decode(self.images.read(index))
        except KitError as error:  # unsupported pixels
            raise KitError(f"{self.images.name(index)} {error}") from None
        except Exception as error:
            reason = message_of(error, 100)
            raise KitError(
                f"{self.images.name(index)} cannot be read ({reason}); this engine replaces none: "
                "mend it or take it out"
            ) from None


@DATASETS.register_module
class TripletDataset(BYOLDataset):
    """Data set that runs two pipelines on one image, like BYOL's; items include their index, so that
    batches can be compared."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "index": index}


@HEADS.register_module
class TripletHead(LatentPredictHead):
    """Head with BYOL's predictor under the truncated triplet loss.

    Args:
        predictor: config of the neck.
        gamma: see ``truncated_triplet_loss``, also for the next three.
        margin: margin of the hinge.
        nearest: number of most similar negatives to consider.
        skip: number of those to leave out.
        size_average: inherited from the config of BYOL's head; the loss is always a mean.
    """

    def __init__(
        self,
        predictor: dict[str, Any],
        *,
        gamma: float = 2.0,
        margin: float = 100.0,
        nearest: int = 10,
        skip: int = 1,
        size_average: bool = True,
    ) -> None:
        super().__init__(predictor)
        self.options: dict[str, Any] = dict(gamma=gamma, margin=margin, nearest=nearest, skip=skip)

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Return the loss of (n, d) online projections and (n, d) targets, with negatives from this
        batch."""
        prediction = self.predictor([input])[0]
        return dict(loss=truncated_triplet_loss(prediction, target, **self.options))


@MODELS.register_module
class Triplet(BYOL):
    """BYOL's networks on views whose resolutions are drawn in each step; section 3 of the recipe.

    The kit's trainer draws the same sides for the same seed and iteration.

    Args:
        online: smallest, largest and step of the sides for the online network.
        target: the same for the target network.
        seed: seed of the draws, the same in all processes.
        rest: arguments of BYOL.
    """

    iteration = 0
    """Number of the iteration, set by TripletHook."""

    def __init__(
        self,
        *,
        online: Sequence[int] = (96, 224, 1),
        target: Sequence[int] = (128, 224, 1),
        seed: int = 0,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        names = ("smallest", "largest", "step")
        self.sides = Views(
            online=ResolutionRange(**dict(zip(names, online, strict=True))),
            target=ResolutionRange(**dict(zip(names, target, strict=True))),
        )
        self.seed = seed

    def forward_train(self, img: Tensor, **_: Any) -> dict[str, Tensor]:
        """Return the sum of both directions' losses of (n, 2, 3, h, w) normalised views."""
        sizes = draw_resolutions(self.sides, self.seed, self.iteration)
        view_1, view_2 = img[:, 0], img[:, 1]
        online_1 = self.online_net(resize(view_1, sizes.online_1))[0]
        online_2 = self.online_net(resize(view_2, sizes.online_2))[0]
        with torch.no_grad():
            target_2 = self.target_net(resize(view_2, sizes.target_2))[0]
            target_1 = self.target_net(resize(view_1, sizes.target_1))[0]
        return dict(loss=self.head(online_1, target_2)["loss"] + self.head(online_2, target_1)["loss"])


@HOOKS.register_module
class TripletHook(BYOLHook):
    """Hook for BYOL's EMA that also sets the iteration on which the drawn resolutions depend, even after a
    resumption."""

    def before_train_iter(self, runner: Any) -> None:
        """Set the model's iteration."""
        super().before_train_iter(runner)
        runner.model.module.iteration = runner.iter
