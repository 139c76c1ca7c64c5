"""The fuzzer itself: it sees every way in which a reader may fail, and its page is what it counted."""

import functools
import json
import mmap
import os
import signal
import time
from random import Random

import pytest

from tests.fuzz import child, mutate, page, run, weights
from tests.fuzz.child import attempt, command
from triplet.errors import KitError


def refuse():
    raise KitError("found a, expected b\nrun: c")


def break_off():
    raise KeyError("id")


def take_memory():
    with mmap.mmap(-1, 150 << 20) as taken:  # not from what the tests before have left free
        for _ in range(150):
            taken.write(bytes(1 << 20))


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    ("case", "kind", "text"),
    [
        (lambda: 3, "result", ""),
        (refuse, "refused", "found a, expected b run: c"),
        (lambda: open("/nowhere"), "refused", "No such file or directory"),  # noqa: PTH123, SIM115
        (break_off, "traceback", "KeyError: 'id'"),
        (crash, "killed", "exit code -11"),
        (take_memory, "memory", "GB; result"),
        (lambda: bytes(1 << 40), "memory", "MemoryError"),
        (functools.partial(time.sleep, 60), "hang", "not over after"),
        (
            lambda: command("explain", "--result", "1", "x"),
            "refused",
            "argument --result: found x, expected a number",
        ),
        (lambda: command("doctor", "--no-such-option"), "refused", "unrecognized arguments"),
    ],
)
def test_an_outcome_is_told(tmp_path, monkeypatch, case, kind, text):
    monkeypatch.setattr(child, "SECONDS", 0.5 if kind == "hang" else 30)
    monkeypatch.setattr(child, "MEMORY", 100 << 20 if text == "GB; result" else 2 << 30)
    outcome = attempt(case, tmp_path / "log")
    assert outcome.kind == kind
    assert text in outcome.text
    assert outcome.held == (kind in ("result", "refused"))


def test_a_case_is_the_same_again(tmp_path):
    found = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with pytest.raises(KitError):
            weights.pickle_case(tmp_path, tmp_path / name, Random("seed pickles 1"))
        found.append((tmp_path / name / "w.pkl").read_bytes())
    assert found[0] == found[1]
    assert mutate.data(Random(1), found[0]) != found[0]


def test_a_campaign_counts_what_failed(tmp_path, monkeypatch):
    reader = run.READERS["pickles"]
    monkeypatch.setitem(run.READERS, "broken", type(reader)("what breaks", lambda *_: break_off()))
    found = run.campaign(tmp_path, ["pickles", "broken"], "a", 0.4)
    rows = found["readers"]
    assert rows["broken"]["failed"] == rows["broken"]["cases"] == len(found["failures"]) > 0
    assert rows["pickles"]["failed"] == 0
    assert rows["pickles"]["cases"] > 0
    assert "| broken | what breaks |" in page.page(found)


def test_the_page_is_what_was_counted():
    assert page.PAGE.read_text() == page.page(json.loads(page.RESULTS.read_text())), (
        "run: python -m tests.fuzz.page"
    )
