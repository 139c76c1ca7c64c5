"""The online and the target network: ResNet backbone, projector and predictor."""

import copy
from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from triplet.models.resnet import ResNet


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Build a projector or predictor: linear, BN, ReLU, linear. Its names are those of the authors'
    checkpoints."""
    return nn.Sequential(
        OrderedDict(
            fc0=nn.Linear(inputs, hidden),
            bn0=nn.BatchNorm1d(hidden),
            relu=nn.ReLU(inplace=True),
            fc1=nn.Linear(hidden, outputs),
        )
    )


class Encoder(nn.Module):
    """Backbone, global average pooling and projector, as every method of pretraining trains them.

    Args:
        depth: depth of the ResNet, 18 or 50.
        width: number of channels after its stem.
        projector: builds the projector for a number of backbone channels. Its linear layers are
            initialised as OpenSelfSup's: kaiming normal by fan-in, bias 0.
    """

    def __init__(self, depth: int, width: int, projector: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.backbone = ResNet(depth, width)
        self.projector = projector(self.backbone.channels)
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, 3, h, w) images to (n, d) projections."""
        result: Tensor = self.projector(self.backbone(images).mean((2, 3)))
        return result


class Networks(nn.Module):
    """All networks that are trained or averaged: online encoder, predictor, target encoder.

    The target starts as a copy of the online encoder, gets no gradient, and stays in train mode: its
    BN normalises by the batch and keeps its own running statistics.

    Args:
        depth: depth of the ResNet, 18 or 50.
        width: number of channels after its stem.
        hidden: width of the hidden layer of projector and predictor.
        outputs: size of the embedding.
    """

    def __init__(self, depth: int = 50, width: int = 64, hidden: int = 4096, outputs: int = 256) -> None:
        super().__init__()
        self.online = Encoder(depth, width, lambda channels: mlp(channels, hidden, outputs))
        self.predictor = mlp(outputs, hidden, outputs)
        for module in self.predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
