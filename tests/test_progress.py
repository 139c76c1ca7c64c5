"""Progress on a terminal, of several pieces of work at once, and in a log."""

import io

from triplet import progress
from triplet.progress import Bar, amount, say


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bytes_for_people():
    assert [amount(n) for n in (0, 12_345_678, 19_336_861_798)] == ["0.0 MB", "12.3 MB", "19.3 GB"]


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


def test_nothing_that_is_said_controls_the_terminal(capsys):
    """Names of files and of classes come from others."""
    say("a\x1b[2J\rb\u202ec\x9b1m\td\n\u65e5\u672c")
    assert capsys.readouterr().out == "a\\x1b[2J\\rb\\u202ec\\x9b1m\td\n\u65e5\u672c\n"
