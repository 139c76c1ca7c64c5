"""Findings of a check: the first one of each kind in full, the others counted."""

import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triplet.errors import KitError

KINDS = 4
"""Most kinds of problems that a message spells out."""

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 40
_short.maxlist = _short.maxdict = 4
_short.maxlevel = 3


def show(value: Any) -> str:
    """Return a value from a file as a short, printable line."""
    return _short.repr(value).encode("utf-8", "backslashreplace").decode()


class Findings:
    """Texts by kind, in the order in which the kinds were first found."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._count: dict[str, int] = {}

    def add(self, kind: str, text: str, count: int = 1) -> None:
        """Add ``count`` findings of a kind; the text of the first one is kept."""
        self._first.setdefault(kind, text)
        self._count[kind] = self._count.get(kind, 0) + count

    def merge(self, others: Iterable["Findings"]) -> None:
        """Add the findings of other processes."""
        for other in others:
            for kind, text in other._first.items():
                self.add(kind, text, other._count[kind])

    def __bool__(self) -> bool:
        return bool(self._first)

    def lines(self) -> list[str]:
        """Return a text for each kind, with the number of further ones."""
        return [
            text + (f" (and {self._count[kind] - 1} more)" if self._count[kind] > 1 else "")
            for kind, text in self._first.items()
        ]

    def refuse(self, file: Path | None = None) -> None:
        """Raise KitError with the first finding of each kind, if there is any."""
        if not self:
            return
        lines = self.lines()
        if rest := len(lines) - KINDS:
            lines[KINDS:] = [f"and {rest} other kinds of problems"] * (rest > 0)
        raise KitError(f"{file}: " * (file is not None) + "; ".join(lines))
