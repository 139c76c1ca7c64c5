"""Learning rate and EMA momentum as functions of the iteration.

Iterations count micro-batches: one forward and backward pass each, before gradient accumulation.
"""

from collections.abc import Sequence
from math import cos, pi


def learning_rate(
    iteration: int,
    *,
    peak: float,
    iterations_per_epoch: int,
    epochs: int,
    warmup_epochs: float = 10,
    warmup_ratio: float = 1e-4,
    steps: Sequence[int] = (),
) -> float:
    """Return the learning rate: a cosine to zero or steps, changed once per epoch, times a linear warm-up
    that changes in each iteration.

    During warm-up a factor multiplies the epoch's value, as in mmcv 0.x.

    Args:
        iteration: number of the iteration, from 0.
        peak: the configured learning rate.
        iterations_per_epoch: number of micro-batches in an epoch.
        epochs: number of epochs of the whole run.
        warmup_epochs: length of the warm-up.
        warmup_ratio: factor at iteration 0.
        steps: epochs at which the rate falls to a tenth; empty for the cosine.
    """
    epoch = iteration // iterations_per_epoch
    annealed = 0.5 * peak * (1 + cos(pi * epoch / epochs))
    if steps:
        annealed = peak * 0.1 ** sum(epoch >= step for step in steps)
    warmup = warmup_epochs * iterations_per_epoch
    if iteration >= warmup:
        return annealed
    return annealed * (1 - (1 - iteration / warmup) * (1 - warmup_ratio))


def ema_momentum(iteration: int, *, iterations: int, base: float = 0.99) -> float:
    """Return the share of the target network that an EMA update keeps, a cosine from the base to 1.

    The authors recompute it only in iterations that step the optimiser (iteration + 1 divisible by the
    accumulation count); in those iterations this is their value.

    Args:
        iteration: number of the iteration, from 0.
        iterations: number of iterations of the whole run.
        base: momentum at iteration 0.
    """
    return 1 - (1 - base) * (cos(pi * iteration / iterations) + 1) / 2
