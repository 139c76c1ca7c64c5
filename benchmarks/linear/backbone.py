"""The backbone to evaluate, trained as a whole or frozen under a linear classifier."""

from pathlib import Path

import torch
from torch import Tensor, nn

from triplet.errors import KitError
from triplet.models.resnet import ResNet as Network
from triplet.pretrain.views import normalize
from triplet.progress import is_local_main, say
from triplet.weights.read import Backbone, read_backbone


def load_backbone(path: Path) -> tuple[Network, Backbone]:
    """Build the network with a file's weights; also return the content of the file.

    Raises:
        KitError: see ``read_backbone``; or the weights are for BGR images.
    """
    weights = read_backbone(path)
    if weights.caffe2:
        raise KitError(
            f"{path} is for BGR images and other strides, which no linear benchmark here uses; "
            "the supervised method's weights for them are supervised-torchvision"
        )
    if weights.choice and is_local_main():
        say(f"{path.name}: {weights.choice}")
    network = Network(weights.depth, weights.width)
    network.load_state_dict(weights.state)
    return network, weights


class Head(nn.Linear):
    """The classifier, initialised like OpenSelfSup's ClsHead; it stores the result of every epoch's
    evaluation.

    Args:
        channels: number of the features' channels.
        classes: number of classes.
        epochs: number of epochs of the run.
    """

    history: Tensor
    """(epochs, 2) float64: top-1 and top-5 after each epoch in percent, -1 for epochs not evaluated."""

    def __init__(self, channels: int, classes: int, epochs: int) -> None:
        super().__init__(channels, classes)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)
        self.register_buffer("history", torch.full((epochs, 2), -1, dtype=torch.float64))


class Classifier(nn.Module):
    """Backbone, global average pooling, classifier.

    Args:
        backbone: the network.
        head: classifier on top of it.
        frozen: whether the backbone stays fixed, in evaluation mode and without gradients.
        mixed: whether the backbone computes in bfloat16.
    """

    def __init__(self, backbone: Network, head: Head, *, frozen: bool, mixed: bool) -> None:
        super().__init__()
        self.backbone, self.head, self.frozen, self.mixed = backbone, head, frozen, mixed
        backbone.requires_grad_(not frozen)

    @property
    def learned(self) -> nn.Module:
        """The module that a checkpoint holds."""
        return self.head if self.frozen else self

    def train(self, mode: bool = True) -> "Classifier":
        """Keep a frozen backbone in evaluation mode, as OpenSelfSup's ``frozen_stages=4`` does."""
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        """Map (n, 3, h, w) uint8 RGB to (n, classes) logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = pooled(self.backbone, pixels, mixed=self.mixed)
        logits: Tensor = self.head(features)
        return logits


def pooled(backbone: Network, pixels: Tensor, *, mixed: bool) -> Tensor:
    """Map (n, 3, h, w) uint8 RGB to (n, channels) features in the weights' precision."""
    dtype = backbone.conv1.weight.dtype
    images = normalize(pixels, dtype).contiguous(memory_format=torch.channels_last)
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=mixed):
        maps = backbone(images)
    result: Tensor = maps.to(dtype).mean((2, 3))
    return result
