"""Progress for people: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY = 10.0
"""Seconds between lines in a log."""


def say(message: str) -> None:
    """One line to the reader, at once."""
    print(message, flush=True)


def duration(seconds: float) -> str:
    """For people: ``42 s``, ``17 min``, ``3.5 h``, ``12.1 days``."""
    for unit, size, digits in (("days", 86400, 1), ("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


class Bar:
    """Progress of one long piece of work; use as a context manager.

    Args:
        title: what is being done.
        total: number of steps.
        start: steps that an earlier session has done.
        quiet: show nothing.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.title, self.total, self.done, self.start = title, total, start, start
        self._out = sys.stdout  # of now: Detectron2's output is sent elsewhere while the bar moves
        self._bar: Progress | None = None
        self.quiet = quiet
        if self._out.isatty() and not quiet:
            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            )  # fmt: skip
            self._bar = Progress(*columns, console=Console(file=self._out))

    def __enter__(self) -> Self:
        self._began = self._spoke = time.monotonic()
        if self._bar:
            self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, note="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, note: str = "", count: int = 1) -> None:
        """One step (or ``count``) is done; the note (a loss, a rate) is shown beside it."""
        self.done += count
        if self._bar:
            self._bar.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if self.quiet:
            return
        if now - self._spoke >= LINE_EVERY or self.done == self.total:
            self._spoke = now
            left = (self.total - self.done) * (now - self._began) / (self.done - self.start)
            line = f"{self.title}: {self.done}/{self.total}, {duration(left)} left{note and ', ' + note}"
            print(line, file=self._out, flush=True)
