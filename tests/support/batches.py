"""Batches as the steps of methods see them."""

import torch

from triplet.config import parse
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods.common import Batch


def triplet_batch(resolutions, **loss):
    """Twelve images for the Triplet method, at these resolutions and with these settings of the loss."""
    config = {"loss": loss, "optimizer": {"groups": 1, "accumulate": 1}, "schedule": {"epochs": 10}}
    indices = torch.arange(12)
    return Batch(parse(config, Pretrain, "test"), 0, indices, 0, lambda rows: rows, 1, resolutions)
