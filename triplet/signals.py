"""Turn SIGTERM, SIGINT and SIGHUP into a flag that long work polls between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from triplet.errors import Interrupted, WorkerKilled
from triplet.progress import first_here, leave_terminal, say

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What asks for a stop: a scheduler or Docker, Ctrl-C, and a terminal or an ssh that is gone."""


class Stop:
    """Whether a stop was asked for, or cannot be avoided."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._lost = False

    def __bool__(self) -> bool:
        return self._lost or self.signal is not None

    def lost_worker(self) -> None:
        """A process that loads data was killed."""
        self._lost = True

    def interrupted(self, what: str) -> Interrupted:
        """The exception that ends the stage after it saved."""
        if self._lost and not self.signal:
            return WorkerKilled(
                "a process that loads images was killed, mostly for want of memory: give the job more of "
                f"it, or take fewer loader processes; {what}; run the same command to go on"
            )
        name = self.signal.name if self.signal else "a request"
        return Interrupted(f"stopped by {name}: {what}; run the same command to go on")


def under_nohup(number: signal.Signals) -> bool:
    """Whether the signal is SIGHUP and whoever started this process wants it ignored."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def graceful() -> Iterator[Stop]:
    """Let the signals of ``STOPPING`` only set the Stop that is given, however often they come.

    (``docker compose run`` sends SIGTERM twice when it is stopped.) SIGHUP stays ignored under ``nohup``.
    """
    stop = Stop()
    owner, first = os.getpid(), first_here()

    def ask(number: int, frame: FrameType | None) -> None:
        known = bool(stop)
        stop.signal = signal.Signals(number)  # first: the next one may come while this one is spoken of
        if number == signal.SIGHUP:
            leave_terminal()
        if not known and first and os.getpid() == owner:  # loader processes inherit this handler
            say(f"{stop.signal.name}: saving, then stopping")

    before = {number: signal.signal(number, ask) for number in STOPPING if not under_nohup(number)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_in_worker(worker: int) -> None:
    """``worker_init_fn`` of a DataLoader: a signal to the whole process group is the parent's to answer.

    Workers end by themselves when their parent does.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
