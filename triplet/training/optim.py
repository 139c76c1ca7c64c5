"""LARS and EMA as multi-tensor updates that never wait for the device."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# The released pattern, dot unescaped and all. The down-sample BN is called `downsample.1`, so its
# weight is adapted and decayed while its bias is not.
EXCLUDED = re.compile(r"(bn|gn)(\d+)?.(weight|bias)|bias")


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888) as in OpenSelfSup.

    For a tensor w with gradient g::

        ratio = eta * |w| / (|g| + weight_decay * |w|)
        buffer = momentum * buffer + ratio * lr * (g + weight_decay * w)
        w = w - buffer

    The learning rate is inside the buffer, so a change of it acts through the momentum. Groups with
    ``lars_exclude=True`` use ratio 1. A tensor with zero gradient and no decay stays unchanged, whereas
    the released code divides by zero.

    Args:
        params: tensors or groups; a group may carry ``lars_exclude``.
        lr: learning rate.
        momentum: momentum of the buffer.
        weight_decay: L2 penalty.
        eta: trust coefficient.

    Raises:
        ValueError: a negative setting.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
    ) -> None:
        defaults = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, eta=eta)
        for name, value in defaults.items():
            if value < 0:
                raise ValueError(f"LARS: {name} must not be negative: found {value}")
        super().__init__(params, {**defaults, "lars_exclude": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the closure's loss, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad for p in params]
        decay = group["weight_decay"]
        updates = torch._foreach_add(grads, params, alpha=decay)
        if not group["lars_exclude"]:
            weight_norm = torch.stack(torch._foreach_norm(params))
            scale = torch.stack(torch._foreach_norm(grads)) + decay * weight_norm
            ratio = torch.where(scale > 0, group["eta"] * weight_norm / scale, 0.0)
            torch._foreach_mul_(updates, list(ratio.unbind()))
        torch._foreach_mul_(updates, group["lr"])
        buffers = []
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, buffers)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Return the recipe's two parameter groups: adapted and decayed, or neither (biases and BN).

    Args:
        named_parameters: ``module.named_parameters()``; frozen ones are left out.
        weight_decay: weight decay of the adapted group.
    """
    adapted: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (excluded if EXCLUDED.search(name) else adapted).append(parameter)
    return [
        {"params": adapted, "weight_decay": weight_decay},
        {"params": excluded, "weight_decay": 0.0, "lars_exclude": True},
    ]


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Set ``target = momentum * target + (1 - momentum) * online`` for parameters, not for BN's
    statistics."""
    kept: list[Tensor] = list(target.parameters())
    torch._foreach_mul_(kept, momentum)
    torch._foreach_add_(kept, list(online.parameters()), alpha=1 - momentum)
