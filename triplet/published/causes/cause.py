"""A cause that may have made a result fall short, with its verdict and its cost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from triplet.config import Range
from triplet.published.facts import Facts
from triplet.published.reference import Reference

SEEN, POSSIBLE, EXCLUDED = "seen", "possible", "excluded"
NOTHING: Range = (0.0, 0.0)


@dataclass(frozen=True)
class Cause:
    """A possible explanation of a shortfall."""

    name: str
    verdict: str
    text: str
    box: Range | None = None
    """Least and most box AP lost to it; None if nothing was published."""
    mask: Range | None = None
    sizes: tuple[Range, ...] = ()
    """The single published sizes behind ``box``, if there are several."""
    hinted: bool = False
    """Whether the run is known to have it, though not whether it matters there."""
    part: float = 0.0
    """Part of the shortfall that it is expected to explain; see ``triplet.published.causes.ranked``."""


Result = tuple[float, float | None]
"""Box and mask AP in percent; None for a detector without masks."""
Check = Callable[[Facts, Reference, Result], Iterator[Cause]]
"""A check looks for one cause, or for a few that belong together."""


def excluded(name: str, text: str) -> Cause:
    """Return a cause that the known facts exclude."""
    return Cause(name, EXCLUDED, text, NOTHING, NOTHING)


def span(box: Range) -> str:
    """Format a range of box AP, as one number where both ends round to the same."""
    low, high = (f"{value:.1f}" for value in box)
    return f"{low} box AP" if low == high else f"{low} to {high} box AP"


def amount(reference: Reference, result: Result) -> Result:
    """Return the box and mask AP that a result lacks."""
    masks = reference.mask is not None and result[1] is not None
    return reference.box - result[0], (reference.mask or 0.0) - (result[1] or 0.0) if masks else None
