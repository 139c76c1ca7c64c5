"""Published costs of mistakes in a finetuning: configs/causes.yaml."""

import functools
from typing import Literal

from triplet.config import Range, Settings, parse_file
from triplet.paths import CONFIGS


class Effect(Settings):
    """Least and most AP that a mistake costs, according to one source."""

    cause: str
    kind: Literal["measured", "report"]
    box: Range | None
    """None if the source describes the mistake without a size."""
    mask: Range | None = None
    setting: str
    source: str


class Effects(Settings):
    """The schema of configs/causes.yaml."""

    effects: list[Effect]


@functools.cache
def published() -> list[Effect]:
    """Read configs/causes.yaml; KitError when it does not fit the schema."""
    return parse_file(CONFIGS / "causes.yaml", Effects).effects


def size(cause: str, severe: bool | None = None) -> tuple[Range | None, Range | None, str]:
    """Return the range of box and of mask AP over the published sizes of a mistake, and their sources.

    Args:
        cause: its name in configs/causes.yaml.
        severe: True for the severest setting alone, False for the others; by default all of them.
    """
    found = [effect for effect in published() if effect.cause == cause]
    if severe is not None:
        worst = max(found, key=lambda effect: effect.box[1] if effect.box else 0.0)
        found = [effect for effect in found if (effect is worst) == severe]
    text = "; ".join(f"{effect.setting} ({effect.source})" for effect in found)
    return _union([e.box for e in found]), _union([e.mask for e in found]), text


def sizes(*causes: str) -> tuple[Range, ...]:
    """Return the single published sizes of mistakes, in box AP."""
    return tuple(effect.box for effect in published() if effect.cause in causes and effect.box)


def _union(ranges: list[Range | None]) -> Range | None:
    known = [each for each in ranges if each]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None
