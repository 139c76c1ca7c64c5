"""Check rows of numbers from JSON, all at once if they are right, else one by one."""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triplet.annotations.findings import show

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Lists of numbers of any lengths, concatenated."""

    flat: Floats
    """(total,) finite numbers of all rows."""
    lengths: Ints
    """(n,) length of each row; 0 for one that is not a list of finite numbers."""
    bad: dict[int, str]
    """Description of the error in a row, by its place."""

    @property
    def starts(self) -> Ints:
        """(n,) place in ``flat`` at which each row begins."""
        starts: Ints = np.cumsum(self.lengths) - self.lengths
        return starts

    def most(self) -> Floats:
        """(n,) largest magnitude in each row, 0 for an empty one."""
        found = np.zeros(len(self.lengths))
        filled = np.flatnonzero(self.lengths)
        if len(filled):
            found[filled] = np.maximum.reduceat(np.abs(self.flat), self.starts[filled])
        return found


def read_rows(rows: Sequence[Any]) -> Rows:
    """Convert lists of numbers from JSON; ``Rows.bad`` names the rows that are not lists of numbers."""
    flat = _convert(rows)
    bad: dict[int, str] = {}
    if flat is None:
        bad = {place: said for place, row in enumerate(rows) if (said := what_is_wrong(row))}
        rows = [() if place in bad else row for place, row in enumerate(rows)]
        flat = np.array([float(number) for number in chain.from_iterable(rows)], dtype=np.float64)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return Rows(flat, lengths, bad)


def _convert(rows: Sequence[Any]) -> Floats | None:
    """Return all numbers; None if any row is not a list of finite numbers."""
    if not set(map(type, rows)) <= {list}:
        return None
    flat = list(chain.from_iterable(rows))
    try:
        found = (
            np.frombuffer(array("d", flat)) if flat else np.zeros(0)
        )  # unlike numpy's own conversion, this refuses text
    except (TypeError, OverflowError):  # OverflowError: an integer too large for a float
        return None
    flags = np.flatnonzero((found == 0) | (found == 1)).tolist()
    if any(type(flat[place]) is bool for place in flags):
        return None
    return found if np.isfinite(found).all() else None


def what_is_wrong(row: Any) -> str:
    """Say why this is not a list of finite numbers; '' if it is."""
    if type(row) is not list:
        return f"is {show(row)}, expected a list of numbers"
    for number in row:
        if said := not_a_number(number):
            return f"holds {said}, expected numbers"
    return ""


def not_a_number(value: Any) -> str:
    """Return the value as text for a message if it is not a finite number; '' if it is."""
    if type(value) is int:
        return "" if abs(value) < 2**53 else show(value)
    return "" if type(value) is float and math.isfinite(value) else show(value)
