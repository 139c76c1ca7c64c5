"""Rows of numbers out of JSON: checked all at once where they are right, one by one where they are not."""

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
    """Lists of numbers of any lengths, one after the other."""

    flat: Floats
    """(total,) all finite."""
    lengths: Ints
    """(n,) of each row; 0 for one that is no list of finite numbers."""
    bad: dict[int, str]
    """What is wrong with such a row, by its place."""

    @property
    def starts(self) -> Ints:
        """(n,) where each row begins in ``flat``."""
        starts: Ints = np.cumsum(self.lengths) - self.lengths
        return starts

    def most(self) -> Floats:
        """(n,) the largest magnitude in each row, 0 for an empty one."""
        found = np.zeros(len(self.lengths))
        filled = np.flatnonzero(self.lengths)
        if len(filled):
            found[filled] = np.maximum.reduceat(np.abs(self.flat), self.starts[filled])
        return found


def read_rows(rows: Sequence[Any]) -> Rows:
    """Convert lists of numbers as JSON gives them; what is none is named in ``Rows.bad``."""
    flat = _convert(rows)
    bad: dict[int, str] = {}
    if flat is None:
        bad = {place: said for place, row in enumerate(rows) if (said := what_is_wrong(row))}
        rows = [() if place in bad else row for place, row in enumerate(rows)]
        flat = np.array([float(number) for number in chain.from_iterable(rows)], dtype=np.float64)
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return Rows(flat, lengths, bad)


def _convert(rows: Sequence[Any]) -> Floats | None:
    """All numbers; None where any row is no list of finite numbers."""
    if not set(map(type, rows)) <= {list}:
        return None
    flat = list(chain.from_iterable(rows))
    try:
        found = (
            np.frombuffer(array("d", flat)) if flat else np.zeros(0)
        )  # which takes no text, as numpy does
    except (TypeError, OverflowError):  # an integer beyond what a float holds
        return None
    flags = np.flatnonzero((found == 0) | (found == 1)).tolist()
    if any(type(flat[place]) is bool for place in flags):
        return None
    return found if np.isfinite(found).all() else None


def what_is_wrong(row: Any) -> str:
    """Why this is no list of finite numbers; '' where it is one."""
    if type(row) is not list:
        return f"is {show(row)}, expected a list of numbers"
    for number in row:
        if said := not_a_number(number):
            return f"holds {said}, expected numbers"
    return ""


def not_a_number(value: Any) -> str:
    """The value where it is no finite number, for a message; '' where it is one."""
    if type(value) is int:
        return "" if abs(value) < 2**53 else show(value)
    return "" if type(value) is float and math.isfinite(value) else show(value)
