"""Training speed of other GPU models, and the offers of free hosts: configs/gpus.yaml."""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from triplet.config import Range, Settings, did_you_mean, nearest, parse_file
from triplet.errors import KitError
from triplet.paths import CONFIGS
from triplet.published.curves import published

PATH = CONFIGS / "gpus.yaml"
GPUS = 8
"""Number of cards behind the published seconds."""
SPARE = 0.5
"""Hours before the end of a session at which the notebook stops, so that the host keeps its files."""
MEMORY = re.compile(r"(?<![a-z\d])(\d{1,4}) ?gi?b?\b")
"""A size in a card's name, in lower case; the one of A10G is not a size."""
HALF = ("bfloat16", "float16")


class Throughput(Settings):
    """Training throughput for each model of a benchmark."""

    float32: Annotated[list[float], Field(min_length=1)]
    half: Annotated[list[float], Field(min_length=1)]


class SpeedBenchmark(Settings):
    """Training speeds of several cards, published by one source."""

    models: list[str]
    source: str
    v100: Throughput


class Card(Settings):
    memory: float
    """Memory in GB (1e9 bytes)."""
    precision: Literal["float32", "float16", "bfloat16"]
    """The card's fastest precision, as ``trainer.best_precision`` chooses."""
    benchmark: str = ""
    throughput: Throughput | None = None
    seconds: dict[Literal["c4", "fpn"], float] = Field(default_factory=dict)
    """Seconds of an iteration of 16 images on 8 such cards in float32, by detector."""
    like: str = ""
    """Another card, from whose published speed this card's is derived."""
    share: Range = (1.0, 1.0)
    """Least and most share of that speed that this card reaches."""
    source: str = ""


class Preset(Settings):
    """A host and what it offers."""

    gpu: str
    gpus: int
    session_hours: float
    week_hours: float | None = None
    source: str

    @property
    def training_hours(self) -> float:
        """Hours of a session after which the notebook lets the training save and stop."""
        return self.session_hours - SPARE


class Cards(Settings):
    benchmarks: dict[str, SpeedBenchmark]
    cards: dict[str, Card]
    presets: dict[str, Preset]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, card in self.cards.items():
            if ((card.benchmark or card.throughput) and card.benchmark not in self.benchmarks) or (
                card.like and card.like not in self.cards
            ):
                raise ValueError(f"{name} names an unknown benchmark or card")
            if card.throughput and len(card.throughput.half) != len(self.benchmarks[card.benchmark].models):
                raise ValueError(f"{name} has not one throughput for each model of {card.benchmark}")
            if [bool(card.throughput), bool(card.seconds), bool(card.like)].count(True) != 1:
                raise ValueError(f"{name} needs one of throughput, seconds and like")
        return self


@dataclass(frozen=True)
class IterationTime:
    """Seconds of an iteration of 16 images."""

    low: float
    mid: float
    high: float
    source: str

    def on(self, gpus: int) -> "IterationTime":
        """Convert from ``GPUS`` to another number of cards, assuming that they share the work evenly."""
        factor = GPUS / gpus
        return IterationTime(self.low * factor, self.mid * factor, self.high * factor, self.source)


@functools.cache
def cards() -> Cards:
    """Read configs/gpus.yaml; KitError when it does not fit the schema."""
    return parse_file(PATH, Cards)


def find_card(name: str) -> tuple[str, Card]:
    """Find a card by its name in configs/gpus.yaml, ignoring case and the words of maker and series.

    A size in the name, as in nvidia-smi's ``Tesla V100-PCIE-32GB``, is the card's memory.

    Raises:
        KitError: there is no such card; the message has the nearest name or all of them.
    """
    known = cards().cards
    model, size = _model(name)
    for wanted in (model, model.replace("pcie", "")):
        alike = [card for card in known if _model(card)[0] == wanted]
        if alike:
            found = next((card for card in alike if known[card].memory == size), alike[0])
            return found, known[found].model_copy(update={"memory": size} if size else {})
    raise KitError(f"--gpu {name!r} is not a card in configs/gpus.yaml; {_hint(name)}")


def _model(name: str) -> tuple[str, float | None]:
    """Return a card's name in plain letters without its memory, and the memory in GB if the name has it."""
    size = MEMORY.search(name.lower())
    return _plain(MEMORY.sub(" ", name.lower())), float(size[1]) if size else None


def _hint(name: str) -> str:
    """Return the nearest known name and the list of all."""
    known = list(cards().cards)
    plain = {_plain(card): card for card in known}
    near = nearest(_plain(name), list(plain))
    listed = f"known here: {', '.join(known)}"
    return f"did you mean {plain[near]!r}? {listed}" if near else listed


def _plain(name: str) -> str:
    words = re.sub(r"nvidia|tesla|geforce|rtx|gtx|quadro|generation|sxm\d?|hbm\d\w?", " ", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def find_preset(name: str) -> Preset:
    """Find a host by its name in configs/gpus.yaml.

    Raises:
        KitError: there is no such host; the message lists the known ones.
    """
    presets = cards().presets
    if name not in presets:
        raise KitError(
            f"--preset {name!r} is not in configs/gpus.yaml; {did_you_mean(name, list(presets))}"
        )
    return presets[name]


def timing(name: str, detector: str, precision: str) -> IterationTime:
    """Return the seconds that ``GPUS`` cards of one model take for 16 images.

    Args:
        name: the card's name in configs/gpus.yaml.
        detector: c4 or fpn.
        precision: one of ``trainer.PRECISIONS``.
    """
    card = cards().cards[name]
    if card.seconds:
        seconds = card.seconds[detector]  # type: ignore[index]
        return IterationTime(seconds, seconds, seconds, card.source)
    if card.like:
        found = timing(card.like, detector, precision)
        least, most = card.share
        mid = found.mid / math.sqrt(least * most)
        source = f"{found.source}; {card.source}"
        return IterationTime(found.low / most, mid, found.high / least, source)
    base = published().speed[detector].seconds
    half = precision in HALF
    gain = _half_gain() if half else 1.0
    wanted = [base / gain / ratio for ratio in _ratios(card, half)]
    mid = _mean(wanted)
    tf32 = card.precision == "bfloat16" and card.benchmark.startswith("lambda")  # measured as float32 there
    if half and tf32:  # half precision is not slower than TF32
        mid = min(mid, _mean([base / ratio for ratio in _ratios(card, half=False)]))
        wanted.append(mid)
    elif len(wanted) == 1:  # one model gives no range: use its ratio in the other precision as well
        wanted += [base / gain / ratio for ratio in _ratios(card, not half)]
    benchmark = cards().benchmarks[card.benchmark]
    models = ", ".join(benchmark.models)
    source = f"Detectron2's V100s (frozen BN) over the cards' ratio in {models} ({benchmark.source})"
    if precision == "float32" and tf32:
        source = f"with TF32, which float32 throughout is slower than: {source}"
    return IterationTime(min(wanted), mid, max(wanted), source)


def _mean(values: list[float]) -> float:
    """Return the geometric mean, clipped to the range of the values against rounding."""
    mean = math.prod(values) ** (1 / len(values))
    return min(max(values), max(min(values), mean))


def _ratios(card: Card, half: bool) -> Iterator[float]:
    """Yield the throughput relative to the V100's for each model of the card's benchmark."""
    assert card.throughput is not None
    theirs = cards().benchmarks[card.benchmark].v100
    if half:
        pairs = zip(card.throughput.half, theirs.half, strict=True)
    else:
        pairs = zip(card.throughput.float32, theirs.float32, strict=True)
    for ours, reference in pairs:
        yield ours / reference


def _half_gain() -> float:
    """Return the speed-up of a Mask R-CNN by half precision on a V100."""
    measured = cards().benchmarks["lambda-2020"].v100
    return measured.half[0] / measured.float32[0]
