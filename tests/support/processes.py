"""Real processes for tests: the kit's command line and torchrun, started quickly."""

import atexit
import itertools
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO

KIT = Path(__file__).parent.parent.parent
SERVER = "TEST_FORK_SERVER"
"""Variable that names the socket of the server to the processes that it forks."""
DOUBLE = (Path(__file__).with_name("double_precision.py"),)
"""The program of ``launch`` that is the kit's command line in float64."""


@cache
def fork_server() -> str:
    """Path of the socket of this session's fork server, which is started when it is first needed."""
    if path := os.environ.get(SERVER):
        return path
    folder = Path(tempfile.mkdtemp(prefix="forkserver-"))
    path, log = str(folder / "socket"), folder / "log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forkserver", path],
            cwd=KIT,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR", SERVER: path},
        )

    def end() -> None:
        assert server.stdin
        server.stdin.close()
        server.wait(30)
        shutil.rmtree(folder)

    atexit.register(end)
    return path


def _connect(path: str) -> socket.socket:
    """A connection to the server, once it has imported everything."""
    deadline = time.monotonic() + 120
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            said = Path(path).with_name("log").read_text()
            late = time.monotonic() > deadline or "Traceback" in said
            assert not late, f"the fork server does not answer: {said}"
            time.sleep(0.05)
        else:
            return connection


class Process:
    """A process of ``python ARGUMENTS``, with the part of subprocess.Popen's interface that tests need.

    Its output goes to files, so that nobody must read while it runs.

    Args:
        arguments: as of ``python``: ``-m module ...`` or ``script.py ...``.
        session: start a session of its own, so that ``os.killpg`` reaches its children and no one else.
        folder: working directory.
        environment: all of its variables; None for this process's.
        outputs: descriptors of its standard output and error, instead of ``stdout`` and ``stderr``.
    """

    def __init__(
        self,
        *arguments: object,
        session: bool = False,
        folder: Path = KIT,
        environment: Mapping[str, str] | None = None,
        outputs: tuple[int, int] | None = None,
    ) -> None:
        self.args = [str(argument) for argument in arguments]
        self.returncode: int | None = None
        path = fork_server()
        environment = {**(os.environ if environment is None else environment), SERVER: path}
        request = {
            "arguments": self.args,
            "environment": environment,
            "folder": str(folder),
            "session": session,
        }
        self._server = _connect(path)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
            self.stdout, self.stderr = _reader(out), _reader(error)
            descriptors = outputs or (out.fileno(), error.fileno())
            socket.send_fds(self._server, [json.dumps(request).encode()], descriptors)
        self.pid = int(self._server.recv(32))

    def poll(self) -> int | None:
        """The exit code, None while it runs; minus the signal's number for one that killed it."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            ready, _, _ = select.select([self._server], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._server.recv(32))
            self._server.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed, and not been read yet, once it has ended."""
        self.wait(timeout)
        return self.stdout.read(), self.stderr.read()

    def send_signal(self, number: int) -> None:
        """Send a signal to it alone; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _reader(file: IO[bytes]) -> IO[str]:
    """The same file with a position of its own."""
    return Path(f"/proc/self/fd/{file.fileno()}").open(encoding="utf-8", errors="replace")


def start(*arguments: object, session: bool = False, **environment: object) -> Process:
    """Start ``triplet ARGUMENTS``, with further variables; None takes one away."""
    return Process("-m", "triplet.cli", *arguments, session=session, environment=_with(environment))


def run(*arguments: object, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run ``triplet ARGUMENTS`` to its end."""
    return _completed(start(*arguments, **environment))


def _completed(process: Process) -> subprocess.CompletedProcess[str]:
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.wait(), out, error)


def killed_at(
    name: str, number: int, *arguments: object, by: int = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Run ``triplet ARGUMENTS``, killed or stopped at a change to files; see ``killed_at.py``."""
    program = Path(__file__).with_name("killed_at.py")
    return _completed(Process(program, name, number, int(by), *arguments, environment=_with({})))


def run_module(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m NAME ARGUMENTS`` to its end."""
    return _completed(Process("-m", name, *arguments, environment=_with({})))


def make(target: str, *, environment: Mapping[str, object], **settings: object) -> Process:
    """Start the one command that `make TARGET` runs with these settings."""
    command = ["make", "--no-print-directory", "-n", target, *(f"{k}={v}" for k, v in settings.items())]
    shown = subprocess.run(command, cwd=KIT, check=True, capture_output=True, text=True).stdout
    words = shlex.split(shown.replace("\\\n", " "))
    variables = dict(word.split("=", 1) for word in itertools.takewhile(lambda word: "=" in word, words))
    program = words[len(variables) :]
    if Path(program[0]).name == "python":
        program = program[1:]
    return Process(*program, environment=_with({**environment, **variables}))


def launch(
    processes: int,
    *arguments: object,
    program: tuple[object, ...] = ("-m", "triplet.cli"),
    **environment: object,
) -> Process:
    """Start ``triplet ARGUMENTS``, or another program, in several processes as `make pretrain` does."""
    return Process(
        "-m",
        "triplet.launch",
        "--standalone",
        "--nproc-per-node",
        processes,
        "--no-python",
        "--",
        sys.executable,
        *program,
        *arguments,
        environment=_with(environment),
    )


def _with(environment: Mapping[str, object]) -> dict[str, str]:
    return {k: str(v) for k, v in {**os.environ, **environment}.items() if v is not None}


def children(pid: int) -> list[int]:
    """PIDs of a process's children."""
    return [
        int(word)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for word in path.read_text().split()
    ]


def group_is_gone(process: Process) -> bool:
    """Whether nothing is left of the group of a process that was started with ``session``."""
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(ready: Callable[[], object], running: Process) -> None:
    """Wait for something that a process makes; AssertionError with its output if it ends first."""
    while not ready():
        assert running.poll() is None, running.communicate()
        time.sleep(0.005)
