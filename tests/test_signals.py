"""Stops: by a signal, and by a terminal that is gone."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from triplet.errors import Interrupted, WorkerKilled
from triplet.signals import Stop, graceful, ignore_in_worker

WORK = """
import sys, time
from pathlib import Path
from triplet.progress import Bar, say
from triplet.errors import Interrupted, WorkerKilled
from triplet.signals import Stop, graceful, ignore_in_worker
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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


def test_a_request_to_stop_counts_more_than_a_lost_worker():
    stop = Stop()
    stop.lost_worker()
    assert stop
    assert isinstance(stop.interrupted("3 of 9 steps"), WorkerKilled)
    stop.signal = signal.SIGINT
    error = stop.interrupted("3 of 9 steps")
    assert type(error) is Interrupted
    assert str(error) == "stopped by SIGINT: 3 of 9 steps; run the same command to go on"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
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
