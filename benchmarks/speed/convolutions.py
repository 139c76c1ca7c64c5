"""The convolutions of a step alone: the speed that a step would have if all other work were free."""

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.speed.timing import Variant
from triplet.models.networks import Networks
from triplet.pretrain.views import InputResolutions

Convolution = tuple[nn.Conv2d, torch.Size, torch.Size]
"""A layer, the shape of its input and the shape of its output."""


def convolutions(networks: Networks, images: int, sizes: Sequence[InputResolutions]) -> Variant:
    """Run the convolutions of both views through both networks, and back through the online one.

    Each reads the beginning of one random buffer, channels last, so its caches are at least as warm as in a
    step.

    Args:
        networks: networks whose layers run; they are not modified.
        images: number of images in a micro-batch.
        sizes: resolutions of each pass.
    """
    online = [
        list(recorded(networks.online, images, side))
        for size in sizes
        for side in (size.online_1, size.online_2)
    ]
    target = [
        layer
        for size in sizes
        for side in (size.target_1, size.target_2)
        for layer in recorded(networks.target, images, side)
    ]
    layers = [*target, *itertools.chain(*online)]
    most = max(shape.numel() for _, *shapes in layers for shape in shapes)
    buffer = torch.randn(most, device=next(networks.parameters()).device)

    @torch.no_grad()
    def run() -> None:
        for layer, shape, _ in layers:
            layer(_beginning(buffer, shape))
        for view in online:
            for number, (layer, shape, result) in enumerate(view):
                torch.ops.aten.convolution_backward(
                    _beginning(buffer, result),
                    _beginning(buffer, shape),
                    layer.weight,
                    bias_sizes=None,
                    stride=layer.stride,
                    padding=layer.padding,
                    dilation=layer.dilation,
                    transposed=False,
                    output_padding=(0, 0),
                    groups=layer.groups,
                    output_mask=(number > 0, True, False),  # images get no gradient
                )

    return Variant("convolutions alone", run, images=len(sizes) * images, ours=True)


def recorded(network: nn.Module, images: int, side: int) -> Iterator[Convolution]:
    """Yield the convolutions of a network in the order of a forward pass of (images, 3, side, side)."""
    shadow = copy.deepcopy(network).to("meta")
    seen: list[tuple[nn.Module, torch.Size, torch.Size]] = []
    for layer in shadow.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, inputs, output: seen.append((layer, inputs[0].shape, output.shape))
            )
    shadow(torch.empty(images, 3, side, side, device="meta"))
    names = {layer: name for name, layer in shadow.named_modules()}
    for layer, shape, result in seen:
        own = network.get_submodule(names[layer])
        assert isinstance(own, nn.Conv2d)
        yield own, shape, result


def _beginning(buffer: Tensor, shape: torch.Size) -> Tensor:
    n, c, h, w = shape
    return buffer[: shape.numel()].view(n, h, w, c).permute(0, 3, 1, 2)
