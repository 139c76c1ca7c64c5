"""Progress on a terminal, of several pieces of work at once, and in a log."""

import io
import sys

import pytest

from triplet import progress
from triplet.progress import Bar, amount, duration, is_local_main, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bytes_for_people():
    assert [amount(n) for n in (0, 12_345_678, 19_336_861_798)] == ["0.0 MB", "12.3 MB", "19.3 GB"]
    assert [amount(n) for n in (999_900_000, 1_000_000_000)] == ["999.9 MB", "1.0 GB"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2.0 h"),
        (12_780, "3.5 h"),
        (172_799, "48.0 h"),
        (172_800, "2.0 days"),
        (1_045_440, "12.1 days"),
    ],
)
def test_seconds_for_people(seconds, shown):
    assert duration(seconds) == shown


def test_a_log_gets_a_line_with_rate_and_time_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    clock = iter([0.0, 2.0, 4.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Bar("pull: a.zip", 4_000_000, start=1_000_000, of_bytes=True) as bar:
        bar.step(count=1_000_000)
        bar.step(count=2_000_000)
    assert capsys.readouterr().out.splitlines() == [
        "pull: a.zip: 2.0 MB of 4.0 MB, 4 s left, 0.5 MB/s",
        "pull: a.zip: 4.0 MB of 4.0 MB, 0 s left, 0.8 MB/s",
    ]


def test_a_log_gets_few_lines_and_the_last_one(monkeypatch, capsys):
    """Ten seconds apart, into the output that there was when the work began; a quiet bar only counts."""
    clock = iter([0.0, 9.9, 10.0, 12.0, 22.0, 32.5, 33.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Bar("train", 50, start=10) as bar:
        monkeypatch.setattr("sys.stdout", io.StringIO())
        bar.step(count=0)
        bar.step(count=0)
        bar.step("loss 0.25")
        bar.step("loss 0.75", count=2)
        bar.step(count=4)
        bar.step("rest", count=33)
    with Bar("quiet", 3, quiet=True) as bar:
        bar.step(count=3)
    assert bar.done == 3
    assert sys.stdout.getvalue() == ""
    assert capsys.readouterr().out.splitlines() == [
        "train: 10/50, 0 s left",
        "train: 13/50, 5 min left, loss 0.75",
        "train: 17/50, 3 min left",
        "train: 50/50, 0 s left, rest",
    ]


def test_several_bars_share_a_terminal(monkeypatch):
    out = Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("one", 4) as one:
        with Bar("two", 3_000_000, of_bytes=True) as two:
            one.step()
            two.step(count=1_000_000)
        one.step("loss 3")
    shown = out.getvalue()
    for part in ("one", "two", "2/4", "1.0 MB of 3.0 MB", "loss 3"):
        assert part in shown
    assert Bar._screen is None
    monkeypatch.setattr("sys.stdout", Terminal())
    with Bar("three", 0, start=3) as three:  # after an earlier session, of a length not known yet
        (drawn,) = Bar._screen.tasks
        assert (drawn.completed, drawn.total) == (3, 0)
        three.total = 8
        three.step(count=2)
        assert (drawn.completed, drawn.total) == (5, 8)
    assert "5/8" in sys.stdout.getvalue()
    assert "one" not in sys.stdout.getvalue()


def test_bytes_without_an_end_are_counted(monkeypatch, capsys):
    """Of a download whose length its server does not say."""
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    clock = iter([0.0, 0.0, 4.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with Bar("pull: b", 0, of_bytes=True) as bar:
        bar.step(count=500_000)
        bar.step(count=1_500_000)
    assert capsys.readouterr().out.splitlines() == [
        "pull: b: 0.5 MB, 0 s left",
        "pull: b: 2.0 MB, 0 s left, 0.5 MB/s",
    ]


def test_one_process_of_a_machine_speaks(monkeypatch):
    """The first of this machine, which need not be the first of all."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "8")
    assert is_local_main()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert is_local_main()
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "0")
    assert not is_local_main()


def test_what_an_output_cannot_show_is_escaped():
    """Into the output that is named; each line at once."""
    written = io.BytesIO()
    out = io.TextIOWrapper(io.BufferedWriter(written), encoding="ascii")
    say("se\xf1al.jpg", out)
    assert written.getvalue() == b"se\\xf1al.jpg\n"


def test_nothing_that_is_said_controls_the_terminal(capsys):
    """Names of files and of classes come from others."""
    say("a\x1b[2J\rb\u202ec\x9b1m\td\n\u65e5\u672c")
    assert capsys.readouterr().out == "a\\x1b[2J\\rb\\u202ec\\x9b1m\td\n\u65e5\u672c\n"
