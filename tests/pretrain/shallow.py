"""The kit's command line with one convolution a stage in its ResNet-18, so that less is to be compiled."""

import sys
from typing import Any

from torch import nn

from triplet import cli
from triplet.models.resnet import BLOCKS


class Convolution(nn.Sequential):
    """What stands for a block of two convolutions and their shortcut."""

    expansion = 1

    def __init__(self, inputs: int, outputs: int, stride: int, *_: Any) -> None:
        convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


if __name__ == "__main__":
    BLOCKS[18] = (Convolution, [1, 1, 1, 1])
    sys.exit(cli.main())
