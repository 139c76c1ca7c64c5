"""`triplet pull` that is stopped or killed: the same command goes on, and nothing is half there."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.killed_at import Killer
from tests.support.processes import Process
from triplet import cli
from triplet.pull import stage
from triplet.pull.fetch import UNPACKED

PULL = ["pull", "coco"]


def test_sigterm_stops_and_the_same_command_goes_on(kit, places):
    kit.server.piece, kit.server.pause = 500, 0.02
    run = Process(Path(__file__).with_name("with_sources.py"), kit.configs, *PULL)
    part = kit.folder / ".downloads" / "train2017.zip.part"
    until = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < until:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    _, error = run.communicate(timeout=30)
    assert run.returncode == 143
    assert "run the same command to go on" in error
    assert "Traceback" not in error
    kit.server.pause = 0
    kit.server.asked.clear()
    assert cli.main(PULL) == 0
    assert any(headers.get("Range") for _, headers in kit.server.asked)
    assert kit.whole()


def in_child(killer=None):
    """The command in a process of its own; a fork, so that 30 of them take seconds."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if killer:
            sys.addaudithook(killer)
        os._exit(cli.main(PULL))
    return child


@pytest.mark.slow
def test_killed_at_any_change_once_all_is_unpacked(kit):
    """The downloads are deleted only when nothing is asked of them any more."""
    number, done = 0, False
    while not done:
        shutil.rmtree(kit.folder, ignore_errors=True)
        number += 1
        # With the slash: the mark of an archive ends with the same word while others are still fetched.
        done = os.waitpid(in_child(Killer(f"/{UNPACKED}", number)), 0)[1] == 0
        kit.server.asked.clear()
        assert os.waitpid(in_child(), 0)[1] == 0, number
        assert kit.whole(), number
        assert not kit.server.asked, number
        assert sorted(path.name for path in kit.folder.glob(".*")) == [".lock"], number
    assert number > 6


def test_kill_at_30_random_moments(kit):
    kit.server.piece, kit.server.pause = 4000, 0.002
    began = time.monotonic()
    assert os.waitpid(in_child(), 0)[1] == 0
    took = time.monotonic() - began
    moments, killed = random.Random(0), 0
    shutil.rmtree(kit.folder)
    while killed < 30:
        child = in_child()
        time.sleep(moments.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        killed += os.waitpid(child, 0)[1] == signal.SIGKILL
        seen = [kit.folder / name for name in ("train2017", "val2017", "annotations")]
        for path in (path for folder in seen if folder.exists() for path in folder.iterdir()):
            assert path.read_bytes() == (kit.drawn / path.relative_to(kit.folder)).read_bytes()
        if (kit.folder / "record.json").exists():
            assert kit.whole()
            shutil.rmtree(kit.folder)
    assert cli.main(PULL) == 0
    assert kit.whole()
    assert stage.targets(["coco"])[0].folder == kit.folder
