"""Progress for people: a bar on a terminal, an occasional plain line in a log."""

import os
import re
import sys
import threading
import time
from types import TracebackType
from typing import ClassVar, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

CONTROL = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, colour it, or turn the direction of its text; not tabs and
ends of lines."""
LINE_EVERY = 10.0
"""Seconds between lines in a log."""


def harmless(text: str) -> str:
    """Escape the characters of a text that would control a terminal."""
    return CONTROL.sub(lambda odd: ascii(odd[0])[1:-1], text)


def say(message: str, out: TextIO | None = None) -> None:
    """Print one line at once to ``out`` or standard output.

    Characters that the output cannot show are escaped, and so are those that would control a terminal, as
    names of files and of classes come from others.

    If the output fails (a closed terminal, a pipe without a reader, a full disk under the log), long work
    continues and later output is dropped.
    """
    out = out or sys.stdout
    encoding = out.encoding or "utf-8"
    message = harmless(message)
    message = message.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(message, file=out, flush=True)
    except OSError:
        _drop(out.fileno())


def leave_terminal() -> None:
    """Discard further output to standard output and error whose terminal is gone."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            _drop(descriptor)


def _drop(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def is_local_main() -> bool:
    """Return whether this process prints on behalf of all that torchrun started on this machine."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def duration(seconds: float) -> str:
    """Format seconds for people: ``42 s``, ``17 min``, ``3.5 h``, ``12.1 days``."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def amount(count: float) -> str:
    """Format bytes for people: ``19.3 GB``, ``0.4 MB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class Bar:
    """Progress of one long piece of work, as a context manager. Several may be shown at once.

    Args:
        title: what is being done.
        total: number of steps.
        start: steps that an earlier session has done.
        quiet: show nothing.
        of_bytes: a step is a byte; the rate is shown.
    """

    _screen: ClassVar[Progress | None] = None
    _shown: ClassVar[int] = 0
    _turn: ClassVar[threading.RLock] = threading.RLock()

    def __init__(
        self, title: str, total: int, start: int = 0, *, quiet: bool = False, of_bytes: bool = False
    ) -> None:
        self.title, self.total, self.done, self.start = title, total, start, start
        self._out = sys.stdout  # of now: Detectron2's output is sent elsewhere while the bar moves
        self.quiet, self.of_bytes = quiet, of_bytes
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        self._began = self._spoke = time.monotonic()
        if self._out.isatty() and not self.quiet:
            with Bar._turn:
                if Bar._screen is None:
                    columns = (
                        TextColumn("{task.description}"),
                        BarColumn(),
                        TextColumn("{task.fields[amount]}"),
                        TimeElapsedColumn(),
                        TimeRemainingColumn(),
                        TextColumn("{task.fields[note]}"),
                    )
                    Bar._screen = Progress(*columns, console=Console(file=self._out))
                    Bar._screen.start()
                Bar._shown += 1
                self._bar = Bar._screen
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.done, amount=self._amount(), note=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            with Bar._turn:
                Bar._shown -= 1
                if not Bar._shown:
                    self._bar.stop()
                    Bar._screen = None

    def step(self, note: str = "", count: int = 1) -> None:
        """Advance by ``count`` steps; the note (a loss, a rate) is shown beside the progress."""
        self.done += count
        if self.quiet:
            return
        now = time.monotonic()
        spent, new = now - self._began, self.done - self.start
        if self.of_bytes and spent > 0:
            note = f"{amount(new / spent)}/s"
        if self._bar:
            self._bar.update(
                self._task, completed=self.done, total=self.total, amount=self._amount(), note=note
            )
        elif now - self._spoke >= LINE_EVERY or self.done == self.total:
            self._spoke = now
            left = max(0, self.total - self.done) * spent / new if new > 0 else 0.0
            line = f"{self.title}: {self._amount()}, {duration(left)} left{note and ', ' + note}"
            say(line, self._out)

    def _amount(self) -> str:
        if not self.of_bytes:
            return f"{self.done}/{self.total}"
        return f"{amount(self.done)} of {amount(self.total)}" if self.total else amount(self.done)
