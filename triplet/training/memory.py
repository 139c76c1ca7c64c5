"""Measurement of the tensors that a forward pass keeps for the backward pass."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


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


class NoiseForConvolutions(TorchDispatchMode):
    """In this context a convolution returns noise of its output's shape instead of computing it.

    The tensors that are kept for the backward pass are as large as ever, in a small part of the time.
    """

    def __torch_dispatch__(
        self,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is not torch.ops.aten.convolution.default:
            return function(*args, **(kwargs or {}))
        shape = function(*[each.to("meta") if isinstance(each, Tensor) else each for each in args])
        return torch.empty_like(shape, device=args[0].device).uniform_(-0.1, 0.1)
