"""What may have made a result fall short of the published one: a ranking of known facts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from triplet.published import curves
from triplet.published.configs import recipes
from triplet.published.curves import FULL, NOISE, Effect

SEEN, POSSIBLE, EXCLUDED = "seen", "possible", "excluded"


# What the weights' pixels were: format, first mean, first deviation, stride in the 1x1 convolutions.
TORCH, MSRA = ("RGB", 123.675, 58.395, False), ("BGR", 103.53, 1.0, True)


@dataclass
class Facts:
    """What is known of a run; None where something is not known."""

    other: str = ""
    """The detector, where it is not Mask R-CNN R50-C4 with COCO's categories."""
    iterations: int | None = None
    """Iterations that were trained, as a log shows."""
    planned: int | None = None
    batch: int | None = None
    rate: float | None = None
    """Base learning rate."""
    last_rate: float | None = None
    scheduler: str | None = None
    norm: str | None = None
    gpus: int | None = None
    pool: int | None = None
    """Images over which BN took its statistics, where the log says so."""
    precise_bn: bool | None = None
    """Whether the config enables precise BN."""
    precise_ran: bool | None = None
    """Whether the log shows that it ran; None where no log would tell."""
    pixels: tuple[str, float, float, bool] | None = None
    """Format, first mean, first deviation, stride in the 1x1 convolutions."""
    unloaded: list[str] = field(default_factory=list)
    """Backbone tensors that the log says stayed random."""
    checked: bool = False
    """Whether the log shows that weights were loaded."""

    @property
    def length(self) -> float | None:
        """Iterations trained, in units of 16 images; without a log those that were planned."""
        iterations = self.planned if self.iterations is None else self.iterations
        return None if iterations is None or self.batch is None else iterations * self.batch / 16


@dataclass(frozen=True)
class Cause:
    """One thing that could explain a shortfall."""

    name: str
    verdict: str
    text: str
    box: tuple[float, float] | None = None
    """Box AP that it costs, at least and at most; None where nothing was published."""

    def order(self) -> tuple[int, float]:
        return (SEEN, POSSIBLE, EXCLUDED).index(self.verdict), -(self.box[1] if self.box else 0.0)


def enough(seen: list[Cause], short: float) -> str:
    """Whether causes that were seen account for so much box AP."""
    sized = [cause.box for cause in seen if cause.box]
    low, high = sum(box[0] for box in sized), sum(box[1] for box in sized)
    unknown = ", ".join(cause.name for cause in seen if cause.box is None)
    costs = f"what was seen costs {span((low, high))} if it adds up" if sized else "what was seen"
    if high + NOISE >= short:
        return f"{costs}: enough for {short:.1f}"
    if unknown:
        return f"{costs}; whether that of {unknown} makes up {short:.1f} nobody has published"
    return f"{costs}: not enough for {short:.1f}"


def span(box: tuple[float, float]) -> str:
    """A range of box AP in words, one number where both ends round to the same."""
    low, high = (f"{value:.1f}" for value in box)
    return f"{low} box AP" if low == high else f"{low} to {high} box AP"


def of_config(facts: Facts, values: dict[str, Any]) -> None:
    """Fill in the facts that a resolved config of Detectron2's tells."""
    solver, network = values["SOLVER"], values["MODEL"]
    if curves.detector(values) != "c4":
        facts.other = (
            f"{network['META_ARCHITECTURE']} {network['BACKBONE']['NAME']} {values['DATASETS']['TRAIN']}"
        )
    facts.planned = solver["MAX_ITER"]
    facts.batch, facts.rate = solver["IMS_PER_BATCH"], solver["BASE_LR"]
    facts.scheduler = solver["LR_SCHEDULER_NAME"]
    facts.norm, facts.precise_bn = network["RESNETS"]["NORM"], values["TEST"]["PRECISE_BN"]["ENABLED"]
    mean, deviation = network["PIXEL_MEAN"][0], network["PIXEL_STD"][0]
    facts.pixels = (values["INPUT"]["FORMAT"], mean, deviation, network["RESNETS"]["STRIDE_IN_1X1"])


def find(facts: Facts, row: str, result: tuple[float, float]) -> Iterator[Cause]:
    """Every cause with its verdict."""
    full = _expected(row, FULL).box.mid
    yield _schedule(facts, row, result, full)
    yield _undecayed_stop(facts, row, result, full)
    yield _weights(facts, row, result)
    yield _rate(facts)
    yield from _normalisation(facts)
    yield _input(facts, row)


def _schedule(facts: Facts, row: str, result: tuple[float, float], full: float) -> Cause:
    """A schedule shorter than the published one, which ends decayed."""
    name, length = "schedule", facts.length
    possible = (0.0, max(0.0, full - result[0]))
    if length is None:
        text = _unknown_batch(facts) or (
            "trained on fewer images than 180k iterations of 16; this result is what is expected of "
            f"{_compressed_like(row, result) or 'no length of it'}"
        )
        return Cause(name, POSSIBLE, text, possible)
    trained = f"{_count(length)} iterations of 16 images (2x is 180k)"
    if length > 0.97 * FULL and facts.iterations is None:
        text = f"the config plans {trained}; only a log shows whether they were trained"
        return Cause(name, POSSIBLE, text, possible)
    if length > 0.97 * FULL:
        return Cause(name, EXCLUDED, f"trained for {trained}", (0.0, 0.0))
    expected = _expected(row, length).box
    again = "make finetune SCHEDULE=2x, or HOURS= for what your time allows, with the AP to expect"
    text = f"trained for {trained}: {expected} was to expect; {again}"
    return Cause(name, SEEN, text, (max(0.0, full - expected.high), full - expected.low))


def _undecayed_stop(facts: Facts, row: str, result: tuple[float, float], full: float) -> Cause:
    """A training that was cut short before its learning rate fell."""
    name, length = "undecayed stop", facts.length
    possible = (0.0, max(0.0, full - result[0]))
    near = _stopped_like(result, full) or "no such stop"
    if length is None:
        text = f"stopped before the learning rate fell; this result is near {near}"
        return Cause(name, POSSIBLE, _unknown_batch(facts) or text, possible)
    if facts.last_rate is None or facts.rate is None:
        text = f"only a log shows where it stopped; this result is near {near}"
        return Cause(name, POSSIBLE, text, possible)
    left = facts.last_rate / facts.rate
    if left < 0.05:
        return Cause(name, EXCLUDED, "the learning rate ended near 0", (0.0, 0.0))
    expected, reached = _expected(row, length).box, curves.undecayed("c4", length)[0] * full
    cost = (max(0.0, expected.low - reached), max(0.0, expected.high - reached))
    text = f"the last learning rate was {facts.last_rate:g}, {left:.0%} of its peak"
    text += ": compress the schedule instead of cutting it short"
    if left < 0.5:  # the published curve ends where the rate falls first
        return Cause(name, SEEN, f"{text}; a stop before it fell costs {span(cost)}", None)
    return Cause(name, SEEN, text, cost)


def _unknown_batch(facts: Facts) -> str:
    """Why the length is not known though a log shows iterations; empty where it shows none."""
    if facts.iterations is None:
        return ""
    return f"the log shows {facts.iterations} iterations, not of how many images: add --config FILE"


def _compressed_like(row: str, result: tuple[float, float]) -> str:
    """The compressed schedules of which such a box AP is expected; empty where there are none."""
    fits = [n for n in _lengths() if _expected(row, n).box.holds(result[0])]
    return f"a compressed schedule of {_count(fits[-1])} to {_count(fits[0])} iterations" if fits else ""


def _stopped_like(result: tuple[float, float], full: float) -> str:
    """The stops before the rate fell that end near such a box AP; empty where there are none."""
    undecayed = [n for n in _lengths() if n <= curves.decays("c4")]
    stops = [n for n in undecayed if abs(curves.undecayed("c4", n)[0] * full - result[0]) < 1]
    return f"a stop after {_count(stops[-1])} to {_count(stops[0])} of 180k" if stops else ""


def _lengths() -> list[int]:
    """Schedules to look at, in iterations: from 2x down to 1/128 of it, eight for each halving."""
    return [round(FULL * 2 ** (-step / 8)) for step in range(8 * 7)]


def _expected(row: str, iterations: float) -> curves.Expected:
    """What is expected of a row of the table, of each of which something is published."""
    expected = curves.expected(row, "c4", iterations)
    assert expected
    return expected


def _count(iterations: float) -> str:
    return f"{iterations / 1000:.3g}k"


def _weights(facts: Facts, row: str, result: tuple[float, float]) -> Cause:
    if row == "random":
        return Cause("weights not loaded", EXCLUDED, "random weights are what this row is of", (0.0, 0.0))
    length = facts.length or FULL
    random = _expected("random", length)
    at = f"random weights give {random.box} / {random.mask} after {_count(length)} iterations"
    if facts.unloaded:
        more = f" and {len(facts.unloaded) - 1} more" if facts.unloaded[1:] else ""
        text = f"the log says that {facts.unloaded[0]}{more} stayed random; {at}"
        return Cause("weights not loaded", SEEN, text, None)
    if facts.checked:
        text = "the log names no backbone tensor that stayed random"
        return Cause("weights not loaded", EXCLUDED, text, (0.0, 0.0))
    if facts.length is None and result[0] < random.box.low:
        text = f"{at}, more than this: so it cannot be the only cause"
        return Cause("weights not loaded", POSSIBLE, text, None)
    if result[0] > random.box.high + 1:
        return Cause("weights not loaded", EXCLUDED, f"{at}, less than this", (0.0, 0.0))
    return Cause(
        "weights not loaded", POSSIBLE, f"{at}; triplet convert and finetune prove the loading", None
    )


def _effect(cause: str, severe: bool | None = None) -> tuple[tuple[float, float], str]:
    """The range of box AP over the published sizes of an effect, and their sources.

    Args:
        cause: as configs/expected.yaml names it.
        severe: True for the severest setting alone, False for the others; by default all of them.
    """
    found: list[Effect] = [effect for effect in curves.published().effects if effect.cause == cause]
    if severe is not None:
        worst = max(found, key=lambda effect: effect.box[1])
        found = [effect for effect in found if (effect is worst) == severe]
    low, high = min(e.box[0] for e in found), max(e.box[1] for e in found)
    return (low, high), "; ".join(f"{e.setting} ({e.source})" for e in found)


def _rate(facts: Facts) -> Cause:
    both, source = _effect("lr-too-high")
    if facts.rate is None or facts.batch is None or facts.scheduler is None:
        return Cause("learning rate", POSSIBLE, f"too high for a smaller batch: {source}", both)
    _, rate = recipes().get(facts.scheduler, ("own", 0.02))
    right = rate * facts.batch / 16
    times = facts.rate / right
    text = f"{facts.rate:g} for {facts.batch} images; the recipe's, scaled with the batch, is {right:.3g}"
    if times < 1.5:
        return Cause(
            "learning rate",
            EXCLUDED if times > 0.6 else POSSIBLE,
            text,
            (0.0, 0.0) if times > 0.6 else None,
        )
    cost, source = _effect("lr-too-high", severe=times >= 4)
    return Cause("learning rate", SEEN, f"{text}, {times:.1f} times less; {source}", cost)


def _normalisation(facts: Facts) -> Iterator[Cause]:
    cost, source = _effect("bn-batch")
    name = "BN statistics"
    if facts.norm is None:
        yield Cause(name, POSSIBLE, f"over few images: {source}", cost)
    elif facts.norm in ("FrozenBN", ""):
        cost, source = _effect("bn-frozen")
        yield Cause(name, SEEN, f"BN is frozen, the recipe trains it over 16 images; {source}", cost)
    else:
        share = facts.batch and facts.gpus and facts.batch // facts.gpus
        pool = facts.pool or (facts.batch if facts.norm == "SyncBN" else share)
        if pool is None:
            yield Cause(name, POSSIBLE, f"{facts.norm} over one GPU's images: {source}", cost)
        elif pool >= 8:
            yield Cause(name, EXCLUDED, f"over {pool} images", (0.0, 0.0))
        else:
            yield Cause(name, SEEN, f"over {pool} images instead of 16; {source}", cost)
    if facts.precise_ran or facts.norm == "FrozenBN":
        yield Cause("PreciseBN", EXCLUDED, "it ran" if facts.precise_ran else "BN is frozen", (0.0, 0.0))
    else:
        cut = bool(facts.iterations and facts.planned and facts.iterations < facts.planned)
        absent = facts.precise_ran is False or facts.precise_bn is False or cut
        known = "it did not run" if absent else "left out by a run that is stopped early"
        text = f"{known}: BN then evaluates with running averages"
        yield Cause("PreciseBN", SEEN if absent else POSSIBLE, text)


def _input(facts: Facts, row: str) -> Cause:
    name = "colour order, mean, stride"
    (low, _), bgr = _effect("bgr")
    (_, high), wrong = _effect("wrong-input")
    if facts.pixels is None:
        return Cause(name, POSSIBLE, f"not those of the weights; {bgr}; {wrong}", (low, high))
    right = (MSRA, TORCH) if row == "supervised" else (TORCH,)
    shown = "format {}, first mean {:g}, first deviation {:g}, stride in the 1x1 convolutions {}"
    if facts.pixels in right:
        return Cause(name, EXCLUDED, shown.format(*facts.pixels), (0.0, 0.0))
    text = f"{shown.format(*facts.pixels)}; the weights want {shown.format(*right[0])}; {bgr}; {wrong}"
    return Cause(name, SEEN, text, (low, high))
