"""Batch normalisation over several processes, or over each part of a batch alone.

``PooledBatchNorm`` is one operator for pretraining and detection, eager and compiled, on CPU and GPU.
Its forward pass takes one all-gather (mean, sum of squared deviations and count of each process), its
backward pass one all-reduce. Unlike torch's SyncBatchNorm, neither waits for the device nor breaks a
compiled graph. All other operations are plain ones, which torch.compile fuses with their neighbours.
"""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from triplet.training.distributed import PATIENCE, Processes


@torch.library.custom_op("triplet::pool_statistics", mutates_args=())
def pool_statistics(own: Tensor, group: str) -> Tensor:
    """Combine the statistics of every process (Chan et al., 1979) with one all-gather.

    Args:
        own: (2 C + 1,) mean and sum of squared deviations of each channel, and the number of values in
            one channel; mean and sum are 0 if that number is 0.
        group: name of the process group.

    Returns:
        (2 C + 1,) mean and biased variance of each channel over all processes, and the number of values.
    """
    processes = _group(group)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size(processes))]
    dist.all_gather(parts, own.contiguous(), processes)
    channels = len(own) // 2
    means, deviations, counts = torch.stack(parts).split([channels, channels, 1], 1)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    variance = (deviations + counts * (means - mean).square()).sum(0) / total
    return torch.cat([mean, variance, total])


@pool_statistics.register_fake
def _(own: Tensor, group: str) -> Tensor:
    return torch.empty_like(own)


@torch.library.custom_op("triplet::sum_over_processes", mutates_args=())
def sum_over_processes(own: Tensor, group: str) -> Tensor:
    """Add up the tensors of every process with one all-reduce.

    Args:
        own: tensor of any shape, the same shape on every process.
        group: name of the process group.
    """
    total = own.clone()
    dist.all_reduce(total, group=_group(group))
    return total


@sum_over_processes.register_fake
def _(own: Tensor, group: str) -> Tensor:
    return torch.empty_like(own)


def _group(name: str) -> dist.ProcessGroup:
    return dist.distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


def _by_kernels(x: Tensor) -> bool:
    """Return whether to use torch's SyncBatchNorm kernels for the local part: in eager mode on a GPU."""
    return x.is_cuda and x.numel() > 0 and not torch.compiler.is_compiling()


def _layout(x: Tensor) -> torch.memory_format:
    """Return the memory layout for the kernels: channels last if ``x`` has it, else contiguous."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


class _Pooled(torch.autograd.Function):
    """The operator with a hand-written backward pass (Ioffe and Szegedy, arXiv 1502.03167, section 3)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalise (N, C, ...) values, in float32 if their dtype is shorter.

        Returns:
            The result in the input's dtype; (C,) mean, (C,) biased variance and (1,) count over all
            processes.
        """
        wide = torch.promote_types(x.dtype, torch.float32)
        axes, shape = _axes(x)
        channels, count = x.shape[1], x.numel() // x.shape[1]
        if x.numel() == 0:
            own = weight.new_zeros(2 * channels + 1, dtype=wide)
        else:
            if _by_kernels(x):
                x = x.contiguous(memory_format=_layout(x))
                mean, inverse = torch.batch_norm_stats(x, 0.0)
                variance = inverse.pow(-2).nan_to_num(posinf=0.0)  # a constant channel's inverse is 0
            else:
                variance, mean = torch.var_mean(x.to(wide), axes, correction=0)
            own = torch.cat([mean, variance * count, mean.new_full((1,), count)])
        pooled = pool_statistics(own, group)
        mean, variance, total = pooled[:channels], pooled[channels:-1], pooled[-1:]
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse, total)
        ctx.group = group
        ctx.mark_non_differentiable(mean, variance, total)
        if _by_kernels(x):
            return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps), mean, variance, total
        scale = (inverse * weight).view(shape)
        result = (x.to(wide) - mean.view(shape)) * scale + bias.view(shape)
        # If a forward pass ends in a cast to the same dtype, torch 2.11 compiles it without a gradient.
        result = result if result.dtype == x.dtype else result.to(x.dtype)
        return result, mean, variance, total

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor, *statistics: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None, None]:
        """Return the gradients of input, weight and bias; DistributedDataParallel averages the latter
        two."""
        x, weight, mean, inverse, total = ctx.saved_tensors
        axes, shape = _axes(x)
        kernels = _by_kernels(x)
        if kernels:
            gradient = gradient.contiguous(memory_format=_layout(x))
            sums, products, _, _ = torch.batch_norm_backward_reduce(
                gradient, x, mean, inverse, weight, True, False, False
            )
        else:
            dy, centred = gradient.to(mean.dtype), x.to(mean.dtype) - mean.view(shape)
            sums, products = dy.sum(axes), (dy * centred).sum(axes)
        all_sums, all_products = sum_over_processes(torch.cat([sums, products]), ctx.group).chunk(2)
        if kernels:
            own = torch.batch_norm_backward_elemt(
                gradient, x, mean, inverse, weight, all_sums, all_products, total.to(torch.int32)
            )
        else:
            along = (all_products / total * inverse.square()).view(shape)
            own = dy - (all_sums / total).view(shape) - centred * along
            own = (own * (inverse * weight).view(shape)).to(x.dtype)
        return own, (products * inverse).to(weight.dtype), sums.to(weight.dtype), None, None


def _pooled(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _Pooled.apply(*arguments)  # type: ignore[no-any-return, no-untyped-call]


def _axes(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return all axes but the channels', and the shape in which a (C,) tensor broadcasts to ``x``."""
    return (0, *range(2, x.dim())), (1, -1, *(1 for _ in range(2, x.dim())))


class _AnyBatchNorm(nn.BatchNorm2d):
    """Base class for (N, C) as well as (N, C, H, W) inputs; layers for either become one of its
    subclasses."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (N, C) or (N, C, H, W): found {tuple(input.shape)}")


class PooledBatchNorm(_AnyBatchNorm):
    """Batch normalisation over the values of several processes, which may have different numbers of them.

    Inputs are (N, C) or (N, C, H, W) in any floating dtype; statistics are float32, or float64 for float64
    inputs.
    """

    group: str
    """Name of the process group whose processes share the statistics."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the pooled batch while training, by the running statistics otherwise."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        result, mean, variance, total = _pooled(input, self.weight, self.bias, self.eps, self.group)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (total / (total - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            self.num_batches_tracked += 1
        return result


def pool_batch_norm(
    module: nn.Module,
    processes: Processes,
    ranks: int,
    kinds: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d),
) -> None:
    """Make BN layers, in place, take their statistics over ``ranks`` consecutive processes.

    Args:
        module: the module whose layers are changed.
        processes: all processes; each must call this.
        ranks: number of processes that share statistics; divides the number of processes.
        kinds: classes of the layers to change.
    """
    if ranks == 1:
        return
    group = dist.group.WORLD
    if ranks < processes.size:
        for first in range(0, processes.size, ranks):
            made = dist.new_group(list(range(first, first + ranks)), timeout=timedelta(seconds=PATIENCE))
            if first <= processes.rank < first + ranks:
                group = made
    assert group is not None
    for layer in module.modules():
        if isinstance(layer, kinds):
            layer.__class__ = PooledBatchNorm  # keeps names and tensors
            layer.group = group.group_name  # type: ignore[assignment]


class GroupBatchNorm(_AnyBatchNorm):
    """Batch normalisation of each of ``groups`` equal parts of the batch, as if each had its own GPU.

    The running statistics are those of the first part, like those of the GPU that writes the checkpoint.
    """

    groups: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalise each part by its own statistics while training, else by the running ones."""
        if self.training and len(input) % self.groups:
            raise ValueError(f"{len(input)} rows do not divide into {self.groups} parts")
        first, *others = input.chunk(self.groups) if self.training else (input,)
        normalised = [
            nn.functional.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
            for part in others
        ]
        return torch.cat([super().forward(first), *normalised])


def group_batch_norm(module: nn.Module, groups: int) -> None:
    """Make every BN layer, in place, normalise each of ``groups`` parts of a batch separately."""
    for layer in module.modules() if groups > 1 else ():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.__class__ = GroupBatchNorm  # keeps names and tensors
            layer.groups = groups  # type: ignore[assignment]
