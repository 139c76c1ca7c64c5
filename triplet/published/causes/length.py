"""Checks for a training that was too short: compressed as a whole, or stopped before the rate fell."""

from collections.abc import Iterator

from triplet.commands import typed
from triplet.config import Range
from triplet.published import curves
from triplet.published.causes.cause import EXCLUDED, NOTHING, POSSIBLE, SEEN, Cause, Result, excluded, span
from triplet.published.curves import FULL
from triplet.published.facts import Facts
from triplet.published.reference import Reference

ALMOST = 0.97
"""Fraction of a schedule that counts as the full schedule."""
ONCE = 0.2
"""Largest fraction of its peak to which a rate falls in one step, usually a tenth."""
NEAR = 1.0
"""Largest distance in AP at which a published point counts as near a result."""
ALIKE = 0.01
"""Ratio of box to mask AP by which two runs alike differ. Box and mask AP vary together: published pairs of
one length and weights (configs/expected.yaml: budgeted, and MoCo v2 in detco and insloc) differ by 0.001 to
0.014, by 0.008 in the root mean square."""
ROUNDED = 0.05
"""Largest error in AP of a number with one decimal."""


def schedule(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a schedule shorter than the published one that ends with a decayed rate."""
    name, length, full = "schedule", facts.length, reference.iterations
    possible = (0.0, max(0.0, reference.box - result[0]))
    if length is None:
        text = unknown_batch(facts) or (
            f"trained for less than {count(full)} iterations of 16 images; this result fits "
            f"{_fits(compressed_like(reference, result), 'a compressed schedule of {} to {} iterations')}"
        )
        yield Cause(name, POSSIBLE, text, possible)
        return
    trained = f"{count(length)} iterations of 16 images ({_name(full)} is {count(full)})"
    if length > ALMOST * full and facts.iterations is None:
        text = f"the config plans {trained}; only a log shows whether they were trained"
        yield Cause(name, POSSIBLE, text, possible)
    elif length > ALMOST * full:
        yield Cause(name, EXCLUDED, f"trained for {trained}", NOTHING, NOTHING)
    else:
        box, mask = reference.expected(length)
        again = f"train it in full, or ask what your hours allow: {typed('plan', '--hours', '12')}"
        if not reference.of_table:
            again = "a batch that is smaller by a factor needs as many more iterations, in SOLVER.STEPS too"
        cost = (max(0.0, reference.box - box.high), max(0.0, reference.box - box.low))
        masks = None
        if mask and reference.mask:
            masks = (max(0.0, reference.mask - mask.high), max(0.0, reference.mask - mask.low))
        yield Cause(name, SEEN, f"trained for {trained}: {box} was to be expected; {again}", cost, masks)


def undecayed_stop(facts: Facts, reference: Reference, result: Result) -> Iterator[Cause]:
    """Check for a training that was stopped before its learning rate fell."""
    name, length = "undecayed stop", facts.length
    possible = (0.0, max(0.0, reference.box - result[0]))
    stop = f"a stop after {{}} to {{}} of {count(FULL)} iterations"
    near = _fits(stopped_like(reference, result), stop, "no such stop")
    if length is None:
        text = f"stopped before the learning rate fell; this result fits {near}"
        yield Cause(name, POSSIBLE, unknown_batch(facts) or text, possible)
        return
    if facts.last_rate is None and _never_falls(facts):
        cost = _lost(
            reference.expected(length)[0], curves.undecayed(reference.kind, length)[0] * reference.box
        )
        text = f"the rate would fall first after {min(facts.steps or (0,))} iterations, and there are only"
        yield Cause(name, SEEN, f"{text} {facts.iterations or facts.planned}", cost)
        return
    if facts.last_rate is None or not facts.rate:
        text = f"only a log shows where it stopped; this result fits {near}"
        yield Cause(name, POSSIBLE, text, possible)
        return
    left = facts.last_rate / facts.rate
    if left < 0.05:
        yield excluded(name, "the learning rate ended near 0")
        return
    if facts.planned and facts.iterations and facts.iterations >= ALMOST * facts.planned:
        # Steps of 1/10 may end at a hundredth of the peak, and a plan may have none.
        text = f"the whole plan was trained, and the last learning rate was {left:.0%} of its peak"
        if left < 0.2:
            yield excluded(name, text)
            return
    cost = _lost(reference.expected(length)[0], curves.undecayed(reference.kind, length)[0] * reference.box)
    text = f"the last learning rate was {facts.last_rate:g}, {left:.0%} of its peak"
    text += ": compress the schedule instead of cutting it short"
    if left < 0.5:  # the published curve ends at the first fall of the rate
        text += f"; a stop before it fell costs {span(cost)}"
        once = curves.once_decayed(reference.kind)
        if once and left < ONCE and "Cosine" not in (facts.scheduler or ""):
            box, mask = reference.expected(length)
            masks = _lost(mask, once[1] * reference.mask) if mask and reference.mask else None
            box_lost = _lost(box, once[0] * reference.box)
            yield Cause(name, SEEN, f"{text}, one after it fell once less", box_lost, masks)
        else:
            yield Cause(name, SEEN, text)
    else:
        yield Cause(name, SEEN, text, cost)


def _lost(due: curves.Band, reached: float) -> Range:
    """Return the least and the most AP that is lost."""
    return max(0.0, due.low - reached), max(0.0, due.high - reached)


def _never_falls(facts: Facts) -> bool:
    """Return whether the training ends before the first step of its learning rate."""
    stepped = "Cosine" not in (facts.scheduler or "")
    ends = facts.iterations or facts.planned
    return bool(stepped and facts.steps and ends and min(facts.steps) >= ends)


def unknown_batch(facts: Facts) -> str:
    """Say why the length is unknown although the log shows iterations; empty if it shows none."""
    if facts.iterations is None:
        return ""
    return f"the log shows {facts.iterations} iterations, but not of how many images: add --config FILE"


def compressed_like(reference: Reference, result: Result) -> tuple[list[int], list[int]]:
    """Return the lengths of compressed schedules that explain the box AP, and those that explain the mask
    AP."""
    box, mask = [], []
    for length in _lengths(reference):
        of_box, of_mask = reference.expected(length)
        if of_box.holds(result[0]):
            box.append(length)
        if of_mask and result[1] is not None and of_mask.holds(result[1]):
            mask.append(length)
    return box, mask


def stopped_like(reference: Reference, result: Result) -> tuple[list[int], list[int]]:
    """Return the lengths of training stopped before its rate fell that explain the box AP and the mask
    AP."""
    box, mask = [], []
    for length in _lengths(reference):
        if length > curves.decays(reference.kind):
            continue
        shares = curves.undecayed(reference.kind, length)
        if abs(shares[0] * reference.box - result[0]) < NEAR:
            box.append(length)
        if reference.mask and result[1] is not None and abs(shares[1] * reference.mask - result[1]) < NEAR:
            mask.append(length)
    return box, mask


def ratio(reference: Reference, result: Result) -> str:
    """Say which of the two kinds of short training the ratio of box to mask AP fits, by published ratios;
    empty without masks.

    The ratio grows with training, and faster after the learning rate has fallen.
    """
    box, mask = result
    if not mask or not reference.mask:
        return ""
    measured = box / mask
    doubt = max(ALIKE, measured * ROUNDED * (1 / max(box, 1) + 1 / mask))
    random, said, fits = reference.method == "random", [], []
    for what, found in (
        ("a compressed schedule of", compressed_like(reference, result)),
        ("an undecayed stop after", stopped_like(reference, result)),
    ):
        if not (lengths := sorted({*found[0], *found[1]})):
            continue
        decayed = what.startswith("a comp")
        ends = [curves.ratios(reference.kind, n, decayed=decayed, random=random) for n in lengths]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        shortest, _ = curves.lengths(reference.kind, random=random)
        of = f", as of {count(shortest)}, the shortest" if decayed and lengths[-1] < shortest else ""
        said.append(f"{what} {_range(lengths)} iterations gives {low:.3f} to {high:.3f}{of}")
        if low - doubt <= measured <= high + doubt:
            fits.append(what.rpartition(" ")[0])
    if not said:
        return f"{measured:.3f} +- {doubt:.3f}"
    verdict = f"this fits {' and '.join(fits)}" if fits else "neither alone explains it"
    return f"{measured:.3f} +- {doubt:.3f}; by published ratios, {'; '.join(said)}; {verdict}"


def _fits(found: tuple[list[int], list[int]], words: str, none: str = "no length of it") -> str:
    """Describe the lengths that fit the box AP and, where they differ, those that fit the mask AP."""
    box, mask = found
    if not box:
        return none
    text = words.format(count(box[0]), count(box[-1]))
    if mask and (mask[0], mask[-1]) != (box[0], box[-1]):
        both = [length for length in box if length in mask]
        shared = f"{_range(both)} by both" if both else "no length by both"
        text += f" by its box AP, {_range(mask)} by its mask AP, {shared}"
    return text


def _range(lengths: list[int]) -> str:
    first, last = count(lengths[0]), count(lengths[-1])
    return first if first == last else f"{first} to {last}"


def _lengths(reference: Reference) -> list[int]:
    """Return the schedules to try: from 1/128 of the published length to the full one, eight per
    doubling."""
    return [round(reference.iterations * 2 ** (-step / 8)) for step in range(8 * 7)][::-1]


def _name(iterations: int) -> str:
    return {90_000: "1x", 180_000: "2x", 270_000: "3x"}.get(iterations, "the published one")


def count(iterations: float) -> str:
    """Format iterations for people: ``5.62k``."""
    return f"{iterations / 1000:.3g}k"
