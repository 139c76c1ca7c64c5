"""One thing that may have made a result fall short, with its verdict and what it costs."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from triplet.config import Range
from triplet.published.facts import Facts
from triplet.published.reference import Reference

SEEN, POSSIBLE, EXCLUDED = "seen", "possible", "excluded"
NOTHING: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Cause:
    """One thing that could explain a shortfall."""

    name: str
    verdict: str
    text: str
    box: Range | None = None
    """Box AP that it costs, at least and at most; None where nothing was published."""
    mask: Range | None = None
    sizes: tuple[Range, ...] = ()
    """The single published sizes behind ``box``, where there are several."""
    hinted: bool = False
    """Possible, and the run is known to have it; only whether it matters here is not known."""
    part: float = 0.0
    """Of the shortfall, what it is expected to explain: see ``triplet.published.causes.ranked``."""


Result = tuple[float, float | None]
"""Box and mask AP in percent; None for a detector without masks."""
Check = Callable[[Facts, Reference, Result], Iterator[Cause]]
"""Looks for one cause, or a few that belong together."""


def excluded(name: str, text: str) -> Cause:
    """A cause that is known not to be one."""
    return Cause(name, EXCLUDED, text, NOTHING, NOTHING)


def span(box: Range) -> str:
    """A range of box AP in words, one number where both ends round to the same."""
    low, high = (f"{value:.1f}" for value in box)
    return f"{low} box AP" if low == high else f"{low} to {high} box AP"


def amount(reference: Reference, result: Result) -> Result:
    """Box and mask AP that a result lacks."""
    masks = reference.mask is not None and result[1] is not None
    return reference.box - result[0], (reference.mask or 0.0) - (result[1] or 0.0) if masks else None
