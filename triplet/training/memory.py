"""Measurement of the tensors that a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def kept_for_backward(network: nn.Module, size: Callable[[Tensor], int]) -> Iterator[dict[int, int]]:
    """Collect the bytes, by storage, that forward passes in the context keep for the backward pass.

    The network's own parameters are left out, and a storage that several tensors share counts once.

    Args:
        network: the network that runs, on any device (including ``meta``).
        size: returns the bytes to count for a kept tensor.
    """
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, int] = {}
    alive = []  # keeps storages alive, as a freed one's address may be reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)
        if storage._cdata not in own:
            kept[storage._cdata] = size(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
