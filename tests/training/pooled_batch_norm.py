"""``python pooled_batch_norm.py``, in several processes: pooled layers beside plain ones.

The first process prints a JSON object: the largest deviation of each case, relative to the largest value.
"""

import json

import torch
from torch import Tensor, nn

from triplet.training.batch_norm import pool_batch_norm
from triplet.training.distributed import Processes, join


def deviations(
    processes: Processes, shape: tuple[int, ...], counts: list[int], ranks: int
) -> dict[str, float]:
    """Of outputs, gradients and running statistics, of a layer that sees ``counts`` images a process and
    takes its statistics over teams of ``ranks`` processes."""
    torch.manual_seed(1)
    whole = 3 * torch.randn(sum(counts), *shape, dtype=torch.float64) + torch.arange(1, 1 + shape[0]).view(
        -1, *(1 for _ in shape[1:])
    )
    slope = torch.randn_like(whole)
    kind = nn.BatchNorm1d if len(shape) == 1 else nn.BatchNorm2d
    plain, pooled = (kind(shape[0], eps=0.04, momentum=0.3).double() for _ in range(2))
    for layer in (plain, pooled):
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, shape[0]))
            layer.bias.copy_(torch.linspace(-1, 3, shape[0]))
    network = nn.Sequential(pooled)
    pool_batch_norm(network, processes, ranks)
    begin = processes.rank // ranks * ranks
    team = slice(sum(counts[:begin]), sum(counts[: begin + ranks]))
    whole, slope = whole[team], slope[team]
    first = sum(counts[begin : processes.rank])
    own = slice(first, first + counts[processes.rank])
    mine, theirs = whole[own].clone().requires_grad_(), whole.clone().requires_grad_()
    output, expected = network(mine), plain(theirs)
    (output.square() * slope[own]).sum().backward()
    (expected.square() * slope).sum().backward()

    def team_sum(gradient: Tensor) -> Tensor:
        parts: list[Tensor] = processes.gather(gradient)[begin : begin + ranks]
        return torch.stack(parts).sum(0)

    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "output": (output, expected[own]),
        "input's gradient": (mine.grad, theirs.grad[own]),
        "weight's gradient": (team_sum(pooled.weight.grad), plain.weight.grad),
        "bias's gradient": (team_sum(pooled.bias.grad), plain.bias.grad),
        "number of batches": (pooled.num_batches_tracked[None], plain.num_batches_tracked[None]),
        "evaluated": (network.eval()(whole), plain.eval()(whole)),
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
            found[f"{name}, {len(shape) + 1} dimensions"] = deviations(
                processes, shape, counts, processes.size
            )
    found["teams of two"] = deviations(processes, (5,), [2 + 3 * rank for rank in range(processes.size)], 2)
    every = processes.gather(found)
    if processes.is_main_process:
        cases = {
            f"{case}: {what}": max(other[case].get(what, 0.0) for other in every)
            for case in found
            for what in {key for other in every for key in other[case]}
        }
        print(json.dumps(cases))
