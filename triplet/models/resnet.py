"""The ResNet backbone of every network here."""

from torch import Tensor, nn
from torchvision.models import resnet

BLOCKS: dict[int, tuple[type[resnet.BasicBlock] | type[resnet.Bottleneck], list[int]]] = {
    18: (resnet.BasicBlock, [2, 2, 2, 2]),
    50: (resnet.Bottleneck, [3, 4, 6, 3]),
}


class ResNet(resnet.ResNet):
    """torchvision's ResNet without its pooling and classifier, at any base width.

    torchvision's own ``width_per_group`` widens only the inside of the blocks; here every number of
    channels scales with ``width`` (64 is the ResNet of the paper, 16 the quarter-width one). The
    initialisation is the authors': kaiming normal by fan-in (torchvision uses fan-out), and BN weights at
    one, including the last BN of a block.

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
        """Map (n, 3, h, w) normalised RGB to (n, channels, h / 32, w / 32)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        result: Tensor = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return result
