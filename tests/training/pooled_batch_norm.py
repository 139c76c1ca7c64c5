"""``python pooled_batch_norm.py``, in several processes: pooled layers beside plain ones.

The first process prints a JSON object: the largest deviation of each case, relative to the largest value.
"""

import json

import torch
from torch import Tensor, nn

from triplet.training.batch_norm import pool_batch_norm
from triplet.training.distributed import Processes, join


def deviations(processes: Processes, shape: tuple[int, ...], counts: list[int]) -> dict[str, float]:
    """Of outputs, gradients and running statistics, of a layer that sees ``counts`` images a process."""
    torch.manual_seed(1)
    whole = 3 * torch.randn(sum(counts), *shape, dtype=torch.float64) + torch.arange(1, 1 + shape[0]).view(
        -1, *(1 for _ in shape[1:])
    )
    slope = torch.randn_like(whole)
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    plain, pooled = (kind(shape[0], momentum=0.3).double() for _ in range(2))
    for layer in (plain, pooled):
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, shape[0]))
            layer.bias.copy_(torch.linspace(-1, 3, shape[0]))
    network = nn.Sequential(pooled)
    pool_batch_norm(network, processes, processes.size)
    first = sum(counts[: processes.rank])
    own = slice(first, first + counts[processes.rank])
    mine, theirs = whole[own].clone().requires_grad_(), whole.clone().requires_grad_()
    output, expected = network(mine), plain(theirs)
    (output.square() * slope[own]).sum().backward()
    (expected.square() * slope).sum().backward()
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "output": (output, expected[own]),
        "input's gradient": (mine.grad, theirs.grad[own]),
        "weight's gradient": (processes.mean(pooled.weight.grad) * processes.size, plain.weight.grad),
        "bias's gradient": (processes.mean(pooled.bias.grad) * processes.size, plain.bias.grad),
        "running mean": (pooled.running_mean, plain.running_mean),
        "running variance": (pooled.running_var, plain.running_var),
    }
    return {
        name: float((ours - reference).abs().max() / reference.abs().max())
        for name, (ours, reference) in pairs.items()
        if len(reference)
    }


with join() as processes:
    found = {}
    for name, counts in {
        "equal": [3] * processes.size,
        "unequal": [2 + 3 * rank for rank in range(processes.size)],
        "none here": [4 * (rank > 0) for rank in range(processes.size)],
    }.items():
        for shape in ((5,), (4, 3, 2)):
            each = deviations(processes, shape, counts) if sum(counts) else {}
            found[f"{name}, {len(shape) + 1} dimensions"] = each
    every = processes.gather(found)
    if processes.is_main_process:
        cases = {
            f"{case}: {what}": max(other[case].get(what, 0.0) for other in every)
            for case in found
            for what in {key for other in every for key in other[case]}
        }
        print(json.dumps(cases))
