"""Stops: by a signal, and by a terminal that is gone."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from triplet.signals import STOPPING, graceful

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
    Path(sys.argv[1]).write_text(f"saved after {stop.signal.name}")
"""


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


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with graceful() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
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
    work += "open(__import__('sys').argv[1], 'w').write('saved')"
    here, there = os.pipe()
    os.close(here)
    saved = tmp_path / "saved"
    done = subprocess.run([sys.executable, "-c", work, saved], stdout=there, stderr=subprocess.PIPE)
    os.close(there)
    assert (done.returncode, done.stderr) == (0, b"")
    assert saved.read_text() == "saved"
