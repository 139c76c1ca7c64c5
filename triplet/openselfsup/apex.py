"""The two functions of NVIDIA's apex.amp that OpenSelfSup calls, implemented with torch.amp.

Only level O1 is supported: autocast (float16 on a GPU, bfloat16 on the CPU) and an adaptive loss scale.
apex is no longer developed, and its wheels are not on PyPI.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def initialize(
    model: nn.Module, optimizer: Optimizer, opt_level: str = "O1"
) -> tuple[nn.Module, Optimizer]:
    """Let the model run in mixed precision and the optimiser undo the loss scale.

    Args:
        model: its ``forward`` is wrapped in place.
        optimizer: its ``step`` unscales the gradients, skips the step if one is not finite (as apex does),
            and adapts the scale. The scale is not part of a checkpoint, as in OpenSelfSup with apex.
        opt_level: ``O1``.

    Raises:
        ValueError: ``opt_level`` is another level.
    """
    if opt_level != "O1":
        raise ValueError(f"opt_level is O1: found {opt_level!r}")
    device = next(model.parameters()).device.type
    model.forward = torch.autocast(device)(model.forward)
    scaler = torch.amp.GradScaler(device)
    step = optimizer.step

    def unscaled(closure: None = None) -> None:
        optimizer.step = step  # type: ignore[method-assign]  # which the scaler calls
        try:
            scaler.step(optimizer)
            scaler.update()
        finally:
            optimizer.step = unscaled  # type: ignore[method-assign,assignment]

    optimizer.step = unscaled  # type: ignore[method-assign,assignment]
    optimizer.scaler = scaler  # type: ignore[attr-defined]
    return model, optimizer


@contextmanager
def scale_loss(loss: Tensor, optimizer: Any) -> Iterator[Tensor]:
    """Yield the scaled loss for its backward pass; all passes of an optimiser step share a scale."""
    yield optimizer.scaler.scale(loss)
