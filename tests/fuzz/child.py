"""One case in a process of its own, which has some seconds and some memory."""

import contextlib
import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from triplet import cli
from triplet.environment import usable_cores
from triplet.errors import Interrupted, KitError

SECONDS = 30
"""A case has so many, and as many times that as processes share a core of the machine."""
MEMORY = 2 << 30
"""Bytes that a case may take beyond what the process that it is forked from has."""
RESULT, REFUSED = "result", "refused"
LONGEST = 2000
"""Characters of a line."""


@dataclass(frozen=True)
class Outcome:
    kind: str
    """result, refused, traceback, several lines, hang, memory or killed."""
    text: str
    seconds: float
    bytes: int
    """Of memory, at most, beyond what it began with."""

    @property
    def held(self) -> bool:
        return self.kind in (RESULT, REFUSED)


class NotOneLine(Exception):
    """A command failed and did not say so in one line."""


def attempt(case: Callable[[], object], log: Path) -> Outcome:
    """Run a case in a fork and judge how it ended; its output goes to the log."""
    begun = time.monotonic()
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(read)
        _run(case, log, write)
    os.close(write)
    limit = SECONDS * max(1.0, os.getloadavg()[0] / usable_cores())
    late = not _ends(pid, limit)
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    os.set_blocking(read, False)  # a loader that was left behind may hold the other end
    with os.fdopen(read, "rb") as file:
        said = file.read() or b""
    _, status, usage = os.wait4(pid, 0)
    before, _, said = said.partition(b"\n")
    seconds, used = time.monotonic() - begun, max(0, usage.ru_maxrss * 1024 - int(before or 0))
    if late:
        kind, text = "hang", f"not over after {limit:g} s"
    elif said:
        kind, text = json.loads(said)
    else:
        kind, text = "killed", f"exit code {os.waitstatus_to_exitcode(status)}: {log.read_bytes()[-300:]!r}"
    if used > MEMORY and kind != "hang":
        kind, text = "memory", f"{used / 1e9:.1f} GB; {kind}: {text}"
    return Outcome(kind, text, seconds, used)


def _run(case: Callable[[], object], log: Path, write: int) -> None:
    """In the fork: never returns."""
    try:
        os.setsid()
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        for name, number in (("stdout", 1), ("stderr", 2)):  # pytest has put its own there
            setattr(sys, name, open(number, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        limit = _virtual() + 2 * MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.write(write, b"%d\n" % _resident())
        os.write(write, json.dumps(_judge(case)).encode())
    finally:
        os._exit(0)


def _judge(case: Callable[[], object]) -> tuple[str, str]:
    try:
        case()
    except (KitError, Interrupted) as error:
        return REFUSED, cli.one_line(str(error))
    except OSError as error:  # the command line makes one line of it
        said = cli.explain(error)
        return ("traceback", _trace()) if said is None else (REFUSED, said)
    except NotOneLine as error:
        return "several lines", str(error)[-LONGEST:]
    except MemoryError:
        return "memory", _trace()
    except BaseException:
        return "traceback", _trace()
    return RESULT, ""


def command(*arguments: str) -> None:
    """Run a command of the kit's; KitError with its line when it refuses.

    Raises:
        NotOneLine: it failed otherwise than with exit code 2 and one line.
    """
    held = os.dup(2)
    with tempfile.TemporaryFile() as told:
        os.dup2(told.fileno(), 2)
        try:
            code = cli._run(list(arguments))
        except SystemExit as error:  # argparse
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.stderr.flush()
            os.dup2(held, 2)
        told.seek(0)
        said = told.read().decode(errors="replace")
    lines = [line for line in said.splitlines() if line.startswith(("triplet ", "triplet:"))]
    if code == 2 and len(lines) == 1 and said.rstrip().endswith(lines[0]) and "Traceback" not in said:
        raise KitError(lines[0])
    if code:
        raise NotOneLine(f"exit code {code}: {said[-LONGEST:]}")


def _trace() -> str:
    return "".join(traceback.format_exc().splitlines(keepends=True)[-14:])[-LONGEST:]


def _ends(pid: int, seconds: float) -> bool:
    descriptor = os.pidfd_open(pid)
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _virtual() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
