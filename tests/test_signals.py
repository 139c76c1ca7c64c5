"""Stops: by a signal, and by a terminal that is gone."""

import hashlib
import os
import pty
import re
import signal
import subprocess
import sys

import pytest
import torch

from tests.support.processes import killed_at, run
from triplet import signals
from triplet.errors import Interrupted, WorkerKilled
from triplet.models.resnet import ResNet
from triplet.signals import STOPPING, Stop, Stopped, graceful, ignore_in_worker, raising

WORK = """
import sys, time
from pathlib import Path
from triplet.progress import Bar, say
from triplet.signals import graceful
with graceful() as stop, Bar("work", 10**6) as bar:
    while not stop:
        bar.step()
        Path(sys.argv[1]).write_text("begun")
        time.sleep(0.01)
    say("and this is written where nobody reads")
    print("nor this", file=sys.stderr, flush=True)
print("nor this, which no bar takes over", file=sys.stderr, flush=True)
Path(sys.argv[1]).write_text(f"saved after {stop.signal.name}")
"""


MOMENTS = {
    "pack": (".shard-000001.tar", 143),
    "data": (".tiny.png", 143),
    "export": (".backbone.pth", 130),
    "report": (".report.md", 129),
}
"""For each command the file at whose first writing it is stopped, and the exit code."""


@pytest.fixture(scope="module")
def commands(drawn, tmp_path_factory):
    """Commands that end within seconds, of which only the first one polls the flag of ``graceful``."""
    weights = tmp_path_factory.mktemp("weights") / "r18.pth"
    torch.manual_seed(0)
    torch.save(ResNet(18, 8).state_dict(), weights)
    return {
        "pack": ["pack", drawn / "unlabelled", "--per-shard", "20"],
        "data": ["data", "check", drawn],
        "export": ["export", "--run", "run", "--weights", weights, "--format", "pth"],
        "report": ["report"],
    }


def made(places):
    """Hashes of what a command has written, without what differs from run to run."""
    found = [
        path for path in places.rglob("*") if path.is_file() and path.suffix in (".tar", ".pth", ".png")
    ]
    return {str(p.relative_to(places)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


@pytest.mark.parametrize("name", MOMENTS)
def test_a_stopped_command_says_so_and_can_be_repeated(places, commands, name):
    at, code = MOMENTS[name]
    stopped = killed_at(at, 1, *commands[name], by=code - 128)
    assert stopped.returncode == code, stopped.stderr
    assert stopped.stderr.startswith(f"triplet {name}: stopped by {signal.Signals(code - 128).name}")
    assert stopped.stderr.endswith("run the same command to go on\n")
    assert stopped.stderr.count("\n") == 1
    assert not list(places.rglob(".*.tmp"))
    assert run(*commands[name]).returncode == 0
    first = made(places)
    assert run(*commands[name]).returncode == 0
    assert made(places) == first


@pytest.mark.parametrize("number", STOPPING)
def test_where_no_flag_is_polled_a_signal_raises_once(number):
    """What is cleaned up is not disturbed by a second one, and afterwards the old handler is there."""
    before, cleaned = signal.getsignal(number), []
    with pytest.raises(Stopped, match=f"^stopped by {number.name}; run the same") as caught, raising():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            cleaned.append(True)
    assert caught.value.code == 128 + number
    assert cleaned
    assert signal.getsignal(number) is before


def test_a_signal_after_the_last_poll_is_not_forgotten():
    """The work whose flag it set is whole; the next work of the command does not begin."""
    done = []
    with pytest.raises(Stopped, match=r"^stopped by SIGHUP"), raising():
        with graceful() as stop:
            assert not stop
            os.kill(os.getpid(), signal.SIGHUP)
            done.append("first")
        done.append("second")
    assert done == ["first"]


def test_a_fork_of_a_command_ends_as_by_default():
    with raising():
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_sets_the_flag_and_the_old_handler_returns(number, capsys):
    before = signal.getsignal(number)
    with graceful() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert signal.getsignal(number) is before
    assert capsys.readouterr().out == f"{number.name}: saving, then stopping\n"


def test_a_handler_returns_also_after_an_error():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with pytest.raises(ZeroDivisionError), graceful():
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN
            1 / 0  # noqa: B018
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "words", ["[pair.cc:538] Read error: Connection reset by peer", "gloo: pair closed", "NCCL error"]
)
def test_a_signal_that_ended_another_process_is_the_reason(words):
    """It had not begun to hear signals; what is said of the broken group helps nobody."""
    stopped = pytest.raises(Interrupted, match="stopped by SIGTERM: another process has ended; run")
    with stopped as caught, graceful():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError(words)
    assert caught.value.code == 143
    with pytest.raises(RuntimeError, match=re.escape(words)), graceful():
        raise RuntimeError(words)


def test_an_error_of_its_own_is_not_hidden_by_a_signal():
    with pytest.raises(RuntimeError, match="out of memory"), graceful():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("out of memory")


def test_only_the_first_process_of_a_machine_says_that_it_stops(monkeypatch, capfd):
    """Neither another that torchrun has started nor one that was forked."""
    with graceful() as stop:
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7 if stop else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert not stop
    monkeypatch.setenv("LOCAL_RANK", "1")
    with graceful() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
    assert capfd.readouterr().out == ""


def test_two_signals_however_close_are_announced_once(monkeypatch, capfd):
    """The second one arrives while the first one's handler looks at the flag."""

    class Watched(Stop):
        looked = False

        def __bool__(self):
            asked = super().__bool__()
            if not self.looked:
                self.looked = True
                os.kill(os.getpid(), signal.SIGTERM)
            return asked

    monkeypatch.setattr(signals, "Stop", Watched)
    with graceful() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop
    assert capfd.readouterr().out == "SIGTERM: saving, then stopping\n"


def test_a_request_to_stop_counts_more_than_a_lost_worker():
    stop = Stop()
    stop.lost_worker()
    assert stop
    assert isinstance(stop.interrupted("3 of 9 steps"), WorkerKilled)
    stop.signal = signal.SIGINT
    error = stop.interrupted("3 of 9 steps")
    assert type(error) is Interrupted
    assert str(error) == "stopped by SIGINT: 3 of 9 steps; run the same command to go on"


@pytest.mark.parametrize("number", STOPPING)
def test_a_loader_process_ignores_what_asks_for_a_stop(number):
    if (child := os.fork()) == 0:
        ignore_in_worker(3)
        os.kill(os.getpid(), number)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_work_is_saved_when_its_terminal_is_closed(tmp_path):
    """As when an ssh drops: SIGHUP, and every write to the terminal fails from then on."""
    state = tmp_path / "state"
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, "-c", WORK, str(state)])
    while not state.exists():
        os.read(terminal, 1 << 16)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert state.read_text() == "saved after SIGHUP"


def test_a_pipe_without_a_reader_ends_no_work(tmp_path):
    work = "from triplet.progress import say\nfor number in range(3): say(str(number))\n"
    work += "print('and what others print', flush=True)\n"
    work += "open(__import__('sys').argv[1], 'w').write('saved')"
    here, there = os.pipe()
    os.close(here)
    saved = tmp_path / "saved"
    done = subprocess.run([sys.executable, "-c", work, saved], stdout=there, stderr=subprocess.PIPE)
    os.close(there)
    assert (done.returncode, done.stderr) == (0, b"")
    assert saved.read_text() == "saved"
