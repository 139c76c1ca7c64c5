"""The kit's command line with the first stage of ResNet-18 alone, of one block: less to compile."""

import sys
from typing import Any

from torch import nn

from triplet import cli
from triplet.models.resnet import BLOCKS, ResNet

if __name__ == "__main__":
    BLOCKS[18] = (BLOCKS[18][0], [1, 1, 1, 1])
    whole = ResNet.__init__

    def shallow(self: ResNet, *args: Any) -> None:
        """Leave out the other stages, each of which would double the channels."""
        whole(self, *args)
        self.layer2 = self.layer3 = self.layer4 = nn.Identity()
        self.channels //= 8

    ResNet.__init__ = shallow
    sys.exit(cli.main())
