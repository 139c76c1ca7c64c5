"""The online and the target network: ResNet backbone, projector and predictor."""

import copy
from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models import resnet

BLOCKS: dict[int, tuple[type[resnet.BasicBlock] | type[resnet.Bottleneck], list[int]]] = {
    18: (resnet.BasicBlock, [2, 2, 2, 2]),
    50: (resnet.Bottleneck, [3, 4, 6, 3]),
}


class Backbone(resnet.ResNet):
    """torchvision's ResNet without its pooling and classifier, at any base width.

    torchvision's own ``width_per_group`` widens the inside of the blocks alone; here every channel
    count scales with ``width`` (64 is the ResNet of the paper, 16 the quarter-width one).
    Initialised as the authors' is: kaiming normal by fan-in (torchvision takes fan-out), BN at one,
    the last BN of a block as well.

    Args:
        depth: 18 or 50.
        width: channels after the stem.
    """

    def __init__(self, depth: int = 50, width: int = 64) -> None:
        nn.Module.__init__(self)
        block, blocks = BLOCKS[depth]
        self._norm_layer = nn.BatchNorm2d
        self.inplanes, self.dilation, self.groups, self.base_width = width, 1, 1, 64
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, width, blocks[0])
        self.layer2 = self._make_layer(block, width * 2, blocks[1], stride=2)
        self.layer3 = self._make_layer(block, width * 4, blocks[2], stride=2)
        self.layer4 = self._make_layer(block, width * 8, blocks[3], stride=2)
        self.channels = width * 8 * block.expansion
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) normalised RGB -> (n, channels, h / 32, w / 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, BN, ReLU, linear: projector and predictor. The names are the authors' checkpoints'."""
    return nn.Sequential(
        OrderedDict(
            fc0=nn.Linear(inputs, hidden),
            bn0=nn.BatchNorm1d(hidden),
            relu=nn.ReLU(inplace=True),
            fc1=nn.Linear(hidden, outputs),
        )
    )


class Encoder(nn.Module):
    """Backbone, global average pooling and projector: what online and target network share."""

    def __init__(self, depth: int, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.backbone = Backbone(depth, width)
        self.projector = mlp(self.backbone.channels, hidden, outputs)
        for module in self.projector.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, h, w) -> (n, outputs) projections."""
        return self.projector(self.backbone(images).mean((2, 3)))


class Networks(nn.Module):
    """Everything that is trained or averaged: online encoder, predictor, target encoder.

    The target starts as a copy of the online encoder, gets no gradient, and stays in train mode: its
    BN normalises by the batch and keeps running statistics of its own.

    Args:
        depth: of the ResNet, 18 or 50.
        width: channels after its stem.
        hidden: width of the hidden layer of projector and predictor.
        outputs: size of the embedding.
    """

    def __init__(self, depth: int = 50, width: int = 64, hidden: int = 4096, outputs: int = 256) -> None:
        super().__init__()
        self.online = Encoder(depth, width, hidden, outputs)
        self.predictor = mlp(outputs, hidden, outputs)
        for module in self.predictor.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        self.target = copy.deepcopy(self.online).requires_grad_(False)
