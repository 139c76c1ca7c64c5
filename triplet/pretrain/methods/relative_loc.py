"""Relative patch location (Doersch et al., arXiv 1505.05192) as in OpenSelfSup."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from triplet.models.networks import Encoder
from triplet.pretrain.config import Patches, Pretrain, Views
from triplet.pretrain.methods.common import Batch, Step, Traits, Work, accuracy

CENTRE = 4


def draw_patches(image: Image.Image, config: Patches, rng: np.random.Generator) -> np.ndarray:
    """Cut an RGB image into a 3 x 3 grid of patches, each at a random place in its cell: (9, side, side, 3)
    uint8, by rows."""
    image = TF.resize(image, config.resize)
    left, top = (int(rng.integers(0, side - config.crop + 1)) for side in image.size)
    image = image.crop((left, top, left + config.crop, top + config.crop))
    if rng.random() < config.grayscale:
        image = TF.rgb_to_grayscale(image, num_output_channels=3)
    pixels, cell, side = np.asarray(image), config.crop // 3, config.side
    found = []
    for row in range(3):
        for column in range(3):
            y, x = (cell * place + int(rng.integers(0, config.jitter + 1)) for place in (row, column))
            found.append(pixels[y : y + side, x : x + side])
    return np.stack(found)


def sample_patches(
    image: Image.Image, config: Views, rng: Callable[[int], np.random.Generator], count: int
) -> np.ndarray:
    """Render the (9, side, side, 3) patches of an image, all from the first view's generator."""
    return draw_patches(image, config.patches, rng(0))


def side_of_patches(config: Views) -> int:
    """Return the side of a patch in pixels."""
    return config.patches.side


TRAITS = Traits(measures=("accuracy",), views=9, sample_views=sample_patches, view_side=side_of_patches)


class RelativeLoc(nn.Module):
    """The backbone, a hidden layer on the features of two patches, and a classifier of eight positions.

    BN's running statistics have a momentum of 0.003, as in the released code.
    """

    def __init__(self, config: Pretrain) -> None:
        super().__init__()
        self.online = Encoder(config.model.depth, config.model.width, lambda channels: nn.Identity())
        hidden, self.dropout = config.model.hidden, 0.5
        fc = nn.Linear(2 * self.online.backbone.channels, hidden)
        bn = nn.BatchNorm1d(hidden, momentum=0.003)
        self.neck = nn.Sequential(OrderedDict(fc=fc, bn=bn, relu=nn.ReLU(inplace=True)))
        self.head = nn.Linear(hidden, 8)
        for layer, bias in ((fc, 0.1), (self.head, 0.0)):
            nn.init.normal_(layer.weight, std=0.005)
            nn.init.constant_(layer.bias, bias)


def build(config: Pretrain, images: int) -> RelativeLoc:
    """Build the networks; see RelativeLoc."""
    return RelativeLoc(config)


def dropped(share: float, width: int, batch: Batch) -> Tensor:
    """Draw the (8n, width) mask of the values that dropout zeroes."""
    shape, device = (8 * batch.config.loss.group, width), batch.indices.device
    return torch.cat(
        [torch.rand(shape, generator=each, device=device) < share for each in batch.generators()]
    )


def step(networks: RelativeLoc, views: Sequence[Tensor], batch: Batch) -> Step:
    """Classify the position of each of eight outer patches relative to the centre, (n, 3, side, side) each.

    As in the released code, the centre is computed once for each outer patch; BN counts it eight times.
    """
    around = torch.stack([view for i, view in enumerate(views) if i != CENTRE], dim=1).flatten(0, 1)
    centre = views[CENTRE].repeat_interleave(8, dim=0)
    pair = [
        networks.online(patches.contiguous(memory_format=torch.channels_last))
        for patches in (around, centre)
    ]
    hidden = networks.neck(torch.cat(pair, dim=1))
    if networks.dropout:
        mask = dropped(networks.dropout, hidden.shape[1], batch)
        hidden = hidden.masked_fill(mask, 0) / (1 - networks.dropout)
    place = torch.arange(8, device=hidden.device).repeat(len(views[0]))
    logits = networks.head(hidden)
    yield F.cross_entropy(logits, place)
    return [accuracy(logits, place)]


def work(config: Pretrain) -> Work:
    """Count the eight outer patches, and the centre once for each of them."""
    return Work.at(config.views.patches.side, online=16)
