"""Causes that may have made a result fall short of the published one, ranked by how much they explain.

Each check looks for a cause in the known facts of a run and gives it a verdict: seen, possible or excluded.
The ranking then estimates how much of the shortfall each cause explains. A seen cause explains as much as
its published size allows. Possible causes share the rest, in proportion to how often each was the answer in
the threads of docs/explain.md, times how well its size fits the rest.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean

from triplet.published.causes import length, network, optimisation
from triplet.published.causes.cause import (
    EXCLUDED,
    POSSIBLE,
    SEEN,
    Cause,
    Check,
    Result,
    amount,
    span,
)
from triplet.published.curves import NOISE
from triplet.published.facts import Facts
from triplet.published.reference import Reference

__all__ = ["EXCLUDED", "POSSIBLE", "SEEN", "Cause", "enough", "find", "ranked", "span"]

CHECKS: tuple[Check, ...] = (
    optimisation.divergence,
    length.schedule,
    length.undecayed_stop,
    network.weights,
    network.other_weights,
    network.folded,
    optimisation.rate,
    optimisation.recipe,
    optimisation.decay,
    optimisation.tuned_rate,
    optimisation.rescaled,
    network.batch_norm,
    network.precise_bn,
    network.frozen_stages,
    network.extra_norm,
    network.pixels,
    optimisation.image_sizes,
    optimisation.data,
    network.evaluation,
    network.masks,
    network.another_detector,
    optimisation.mixed_precision,
    optimisation.noise,
)
PRIOR = {
    "schedule": 0.40,
    "undecayed stop": 0.30,
    "learning rate": 0.20,
    "weights not loaded": 0.15,
    "other weights": 0.15,
    "BN statistics": 0.06,
    "frozen stages": 0.03,
    "rate tuned for the target": 0.20,
    "noise": 0.10,
    "colour order, mean, stride": 0.10,
    "evaluation": 0.10,
    "training data": 0.05,
    "image sizes": 0.05,
    "BN folded into the weights": 0.03,
    "mixed precision": 0.02,
}
"""Relative likelihood of a cause before anything is known of the run: how often it was the answer in the
threads of docs/explain.md, rounded by hand. Causes that are not named here have OTHER."""
OTHER = 0.03
PLANNED = 0.3
"""Factor on the likelihood of a short training if the config plans a full one."""
NEVER = 0.1
"""Factor on the likelihood of a short training if nothing was learned; 900 iterations give 5 AP."""
MOST = 0.65
"""Largest fraction of the AP that a short training may cost; an eighth of 1x costs a third."""
HINTED = 4.0
"""Factor on the likelihood of a cause that the run is known to have, whether or not it matters there."""
KNOWN = 1.0
"""Likelihood of a cause that the run is known to have but that has no published size."""
MILD = ("PreciseBN", "norm after res5", "another recipe")
"""Causes with which others came within a few AP of the published result."""
MILD_UP_TO = 3.0
"""Shortfall in AP up to which a mild cause is as likely as other known causes."""
FIRST = ("divergence", "masks alone", "another detector")
"""Causes that explain the whole shortfall once they are seen."""
UNSIZED = 1 / 20
"""Probability density of a cause without a published size: uniform up to 20 AP."""
WIDER = (0.7, 1.4)
"""Factors that widen a published size, as it was measured on another detector or schedule."""


def find(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Yield every cause with its verdict."""
    for check in CHECKS:
        yield from check(facts, reference, result)


def ranked(facts: Facts, reference: Reference, result: Result) -> list[Cause]:
    """Sort every cause by the part of the shortfall that it is expected to explain; divergence comes first.

    Args:
        facts: the known facts of the run.
        reference: the published result.
        result: the AP that the run reached.
    """
    found = list(find(facts, reference, result))
    short = max(max(each or 0.0 for each in amount(reference, result)), NOISE)
    seen = {
        each.name: _explained(each.box, short)
        for each in found
        if each.verdict == SEEN and each.box is not None
    }
    whole = max(short, sum(seen.values()))
    left = max(0.05 * short, short - sum(seen.values()))
    lacks = (
        left,
        (amount(reference, result)[1] or 0.0)
        - sum(_explained(e.mask, short) for e in found if e.verdict == SEEN),
    )
    open_causes = [
        each for each in found if each.verdict == POSSIBLE or (each.verdict == SEEN and each.box is None)
    ]
    weights = {each.name: _likely(each, facts, reference, lacks) for each in open_causes}
    total = sum(weights.values()) or 1.0

    def part(cause: Cause) -> float:
        if cause.verdict == EXCLUDED:
            return 0.0
        if cause.name in FIRST and cause.verdict == SEEN:
            return 1.0
        return (
            seen[cause.name] / whole if cause.name in seen else weights[cause.name] / total * left / whole
        )

    with_parts = [replace(cause, part=round(part(cause), 4)) for cause in found]
    return sorted(
        with_parts, key=lambda cause: (cause.verdict == EXCLUDED, -cause.part, cause.verdict != SEEN)
    )


def _explained(box: tuple[float, float] | None, short: float) -> float:
    """Return how much of a shortfall an observed cause explains; less if it costs more than the
    shortfall."""
    if box is None:
        return 0.0
    low, high = box
    return min(high, short) if low <= short else short * short / low


def _likely(cause: Cause, facts: Facts, reference: Reference, left: tuple[float, float]) -> float:
    """Return the relative likelihood that a cause explains the rest: its prior times how well its size
    fits."""
    prior = PRIOR.get(cause.name, OTHER) * (HINTED if cause.hinted else 1.0)
    if cause.verdict == SEEN:  # it is present, but its size is unknown
        return (0.3 if cause.name in MILD and left[0] > MILD_UP_TO else KNOWN) * UNSIZED
    if cause.name in ("schedule", "undecayed stop"):
        if reference.box - left[0] < network.NOTHING_LEARNED:
            prior *= NEVER
        planned = facts.length is not None
        return prior * (PLANNED if planned else 1.0) / (MOST * reference.box + 1)
    sizes = cause.sizes or ((cause.box,) if cause.box else ())
    density = fmean(_density(size, left[0]) for size in sizes) if sizes else UNSIZED
    if cause.mask and cause.box and left[1] > 0:  # box and mask are fitted together
        apart = left[1] - left[0] * sum(cause.mask) / max(sum(cause.box), 0.1)
        density *= math.exp(-((apart / 2) ** 2) / 2)
    return prior * density


def _density(box: tuple[float, float], left: float) -> float:
    """Return the probability density of a loss of AP, given an uncertain published size."""
    low, high = box[0] * WIDER[0] - NOISE, box[1] * WIDER[1] + NOISE
    away = max(low - left, left - high, 0.0)
    return math.exp(-((away / (2 * NOISE)) ** 2) / 2) / (high - low)


def enough(seen: list[Cause], short: float) -> str:
    """Say whether the observed causes account for a loss of box AP."""
    sized = [cause.box for cause in seen if cause.box]
    low, high = sum(box[0] for box in sized), sum(box[1] for box in sized)
    unknown = ", ".join(cause.name for cause in seen if cause.box is None)
    costs = (
        f"the causes seen cost {span((low, high))} together"
        if sized
        else "the causes seen have no published size"
    )
    if high + NOISE >= short:
        return f"{costs}: enough for {short:.1f}"
    if unknown:
        return f"{costs}; what {unknown} costs, and so whether it explains {short:.1f}, is not published"
    return f"{costs}: not enough for {short:.1f}"
