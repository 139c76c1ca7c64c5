"""The backbone whose files the tests write and read."""

import pytest
import torch

from tests.support.backbones import see_images
from triplet.models.resnet import ResNet


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return see_images(ResNet(50, 8).state_dict())
