"""The tensors that a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def kept_for_backward(network: nn.Module, size: Callable[[Tensor], int]) -> Iterator[dict[int, int]]:
    """Collect the bytes that forward passes inside keep for the backward pass, by storage.

    The network's own parameters are left out, and a storage that several tensors share counts once.

    Args:
        network: whose passes are counted, on any device (``meta`` as well).
        size: bytes that a kept tensor is counted as.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}
    alive = []  # a freed storage's address may come again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage._cdata not in own:
            kept[storage._cdata] = size(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
