"""A process that has imported the kit once, and forks the processes that tests start.

Importing torch, torchvision and Detectron2 takes most of the time of a small run; a fork has them at once.
What is forked is a real process: it has its own PID, group, signals, output and exit code, and Python ends
it as it ends any other. ``tests/support/processes.py`` is the other side.

``python -m tests.support.forkserver SOCKET`` serves until its standard input is closed. A request is JSON:
``arguments`` as those of ``python`` (``-m module ...`` or ``script.py ...``), ``environment``, ``folder``
and ``session`` (whether to start a new one), with the descriptors of standard output and error beside it.
The answers are the PID and, in the end, the exit code as subprocess gives it.
"""

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch

PRELOADED = (
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "triplet.pretrain.stage",
    "benchmarks.detection.convert",
    "triplet.report.stage",
    "triplet.demo",
    "benchmarks.detection.finetune",
    "benchmarks.detection.evaluate",
    "benchmarks.linear.linear",
    "benchmarks.linear.knn",
    "benchmarks.linear.semi",
    "benchmarks.linear.svm",
)


def serve(path: str) -> tuple[dict[str, Any], list[int]] | None:
    """Answer requests. In each forked process, return its request and descriptors; in the server, None."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    running: dict[int, tuple[int, socket.socket]] = {}  # PID of each process, by the descriptor of its end
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    for pid, _ in running.values():
                        os.kill(pid, signal.SIGKILL)
                    Path(path).unlink()
                    return None
                if key.fileobj is listener:
                    connection, _ = listener.accept()
                    request, descriptors = _receive(connection)
                    if (pid := os.fork()) == 0:
                        for other in (listener, connection, *(each for _, each in running.values())):
                            other.close()
                        for end in running:
                            os.close(end)
                        return request, descriptors
                    for descriptor in descriptors:
                        os.close(descriptor)
                    end = os.pidfd_open(pid)
                    running[end] = pid, connection
                    selector.register(end, selectors.EVENT_READ)
                    _answer(connection, pid)
                else:
                    selector.unregister(key.fd)
                    pid, connection = running.pop(key.fd)
                    os.close(key.fd)
                    _answer(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    connection.close()


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    return json.loads(data), descriptors


def _answer(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked has ended
        connection.send(str(number).encode())


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Make this fork the process that was asked for, and run its program."""
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    for target, descriptor in enumerate(descriptors, 1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    random.seed()
    if threads := os.environ.get("OMP_NUM_THREADS"):  # read when torch was imported, in a new process
        torch.set_num_threads(int(threads))
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and p not in sys.path]
    first, *arguments = request["arguments"]
    if first == "-m":
        module, *arguments = arguments
        sys.argv = [module, *arguments]
        sys.modules.pop(module, None)  # runpy warns of what is imported already
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *arguments]
        runpy.run_path(first, run_name="__main__")


def fork_workers() -> None:
    """Let torchrun ask this server for its workers, too, which are Python programs."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    from tests.support.processes import Process

    def start(handler: SubprocessHandler, command: tuple[str, ...], environment: dict[str, str]) -> Process:
        program = command[1:] if command[0] == sys.executable else command
        return Process(*program, session=True, outputs=(1, 2), environment=environment)

    SubprocessHandler._popen = start


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    fork_workers()
    # Seconds after which a loader whose worker was killed finds out; torch's own are 5.
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.5
    gc.freeze()  # else each fork copies and looks through all that is imported
    if asked := serve(sys.argv[1]):
        become(*asked)
