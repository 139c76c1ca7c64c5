"""Turn SIGTERM, SIGINT, SIGHUP and SIGURG into a flag that long work polls between two steps."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from triplet.errors import Interrupted, WorkerKilled
from triplet.progress import first_here, leave_terminal, say

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG)
"""Signals that ask for a stop: from a scheduler or Docker, from Ctrl-C, from a closed terminal or ssh, and
from a job in Apptainer, where the others would also end the process that serves the image's files."""


class Stop:
    """A flag that is set if a stop was requested or is unavoidable."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._lost = False

    def __bool__(self) -> bool:
        return self._lost or self.signal is not None

    def lost_worker(self) -> None:
        """Note that a loader process was killed."""
        self._lost = True

    def interrupted(self, what: str) -> Interrupted:
        """Return the exception that ends the stage after it has saved."""
        if self._lost and not self.signal:
            return WorkerKilled(
                "a process that loads images was killed, mostly for want of memory: give the job more of "
                f"it, or take fewer loader processes; {what}; run the same command to go on"
            )
        name = self.signal.name if self.signal else "a request"
        return Interrupted(f"stopped by {name}: {what}; run the same command to go on")


def under_nohup(number: signal.Signals) -> bool:
    """Return whether the signal is SIGHUP and this process was started to ignore it."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def graceful() -> Iterator[Stop]:
    """Yield a Stop that the signals of ``STOPPING`` set; repeated signals do no harm.

    ``docker compose run`` sends SIGTERM twice when it is stopped. SIGHUP stays ignored under ``nohup``.
    """
    stop = Stop()
    owner, first = os.getpid(), first_here()

    def ask(number: int, frame: FrameType | None) -> None:
        known = bool(stop)
        stop.signal = signal.Signals(number)  # set first: another may arrive while the message is printed
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
    """Ignore signals in a DataLoader's worker (``worker_init_fn``); the parent handles those to the process
    group.

    Workers end by themselves when their parent ends.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
