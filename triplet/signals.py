"""Turn SIGTERM, SIGINT, SIGHUP and SIGURG into a flag that long work polls, or into an exception."""

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from triplet.errors import Interrupted, WorkerKilled
from triplet.progress import is_local_main, leave_terminal, say

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGURG)
"""Signals that ask for a stop: from a scheduler or Docker, from Ctrl-C, from a closed terminal or ssh, and
from a job in Apptainer, where the others would also end the process that serves the image's files."""
BROKEN = re.compile(r"\bgloo\b|\bNCCL\b|Connection (reset|closed|refused)")
"""What torch says if another process of the group has ended."""


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
        error = Interrupted(f"stopped by {name}: {what}; run the same command to go on")
        error.code = 128 + self.signal if self.signal else error.code
        return error


class Stopped(KeyboardInterrupt):
    """A signal asked for a stop where no flag is polled."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; run the same command to go on")
        self.code = 128 + number


def under_nohup(number: signal.Signals) -> bool:
    """Return whether the signal is SIGHUP and this process was started to ignore it."""
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


@contextmanager
def graceful() -> Iterator[Stop]:
    """Yield a Stop that the signals of ``STOPPING`` set; repeated signals do no harm.

    A signal that arrives after the work has last polled the flag is handed on to ``raising`` at the end.
    ``docker compose run`` sends SIGTERM twice when it is stopped. SIGHUP stays ignored under ``nohup``.

    Raises:
        Interrupted: the same signal has ended another process, which did not hear signals yet.
    """
    stop = Stop()
    owner, first, asked = os.getpid(), is_local_main(), itertools.count()

    def ask(number: int, frame: FrameType | None) -> None:
        known = bool(stop) or next(asked) > 0  # another signal may arrive between any two steps of this
        stop.signal = signal.Signals(number)  # set first: another may arrive while the message is printed
        if number == signal.SIGHUP:
            leave_terminal()
        if not known and first and os.getpid() == owner:  # loader processes inherit this handler
            say(f"{stop.signal.name}: saving, then stopping")

    with _handled(ask):
        try:
            yield stop
        except RuntimeError as error:
            if not stop.signal or not BROKEN.search(str(error)):
                raise
            raise stop.interrupted("another process has ended") from None
    if stop.signal:
        later = signal.getsignal(stop.signal)
        if callable(later) and later is not signal.default_int_handler:
            later(stop.signal, None)


@contextmanager
def raising() -> Iterator[None]:
    """Raise Stopped on the signals of ``STOPPING`` wherever ``graceful`` does not turn them into a flag.

    A second signal within a second is ignored: it would disturb what the first one's exception cleans up.
    Forked processes end as by default, and so do torchrun's, which may wait for each other in C.
    """
    if "LOCAL_RANK" in os.environ or threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, last = os.getpid(), -1.0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif time.monotonic() > last + 1:
            last = time.monotonic()
            if number == signal.SIGHUP:
                leave_terminal()
            raise Stopped(number)

    with _handled(stop):
        yield


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals of ``STOPPING``, except for SIGHUP under ``nohup``, and then as before."""
    before = {number: signal.signal(number, handler) for number in STOPPING if not under_nohup(number)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def ignore_in_worker(worker: int) -> None:
    """Ignore signals in a DataLoader's worker (``worker_init_fn``); the parent handles those to the process
    group.

    Workers end by themselves when their parent ends.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
