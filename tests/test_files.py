import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from triplet import files
from triplet.errors import KitError


def test_atomic_replaces_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.txt"
    files.write_text(path, "one")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    files.write_text(path, "one")
    with pytest.raises(OSError, match="No space left") as caught, files.atomic(path) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_text("two")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert files.sha256(tmp_path / "f") == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_walk_is_sorted_and_skips_hidden(tmp_path):
    for name in ("b/2", "b/1", "a/3", ".git/4", "b/.5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert list(files.walk(tmp_path)) == [("a/3", 3), ("b/1", 3), ("b/2", 3)]


def test_dead_links_are_listed_and_loops_followed_once(tmp_path):
    data = tmp_path / "data"
    (data / "cat").mkdir(parents=True)
    (data / "cat" / "1.png").write_bytes(b"1")
    (data / "cat" / "again").symlink_to(data)
    (data / "dog").symlink_to("cat")
    (data / "lost.png").symlink_to("/nowhere")
    (data / "self.png").symlink_to("self.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "2.png").write_bytes(b"22")
    (data / "there").symlink_to(tmp_path / "elsewhere")
    assert list(files.walk(data)) == [
        ("lost.png", 0),
        ("self.png", 0),
        ("cat/1.png", 1),
        ("dog/1.png", 1),
        ("there/2.png", 2),
    ]


DAMAGED = {
    "no UTF-8": b'\xff\xfe{"iteration": 2}',
    "cut": b'{"iteration": 2, "lo',
    "no object": b"[2]",
    "a number": b"2",
    "no iteration": b'{"loss": 2}',
    "zeros after a crash": b"\0" * 100,
    "too deep": b"[" * 100_000,
    "too many digits": b'{"iteration": ' + b"9" * 5000 + b"}",
    "NaN": b'{"iteration": NaN}',
    "text": b'{"iteration": "2"}',
    "huge": b'{"iteration": 1' + b"0" * 400 + b"}",
    "infinite": b'{"iteration": -1e999}',
    "null": b'{"iteration": null}',
    "true": b'{"iteration": true}',
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_damaged_lines_of_a_log_are_dropped_and_counted(tmp_path, capsys, line):
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(b'{"iteration": 1}\n' + line + b'\n\n{"iteration": 3}\n{"iteration": 5}\n' + line)
    assert files.cut_lines(log, "iteration", 4) == {"iteration": 3}
    assert log.read_text() == '{"iteration": 1}\n{"iteration": 3}\n'
    assert capsys.readouterr().out == f"{log}: 2 damaged lines are left out\n"
    assert files.cut_lines(log, "iteration", 2) == {"iteration": 1}
    assert capsys.readouterr().out == ""


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path):
    path = tmp_path / ("é" * 125 + ".json")
    files.write_text(path, "whole")
    assert [each.read_text() for each in tmp_path.iterdir()] == ["whole"]


def test_a_file_replaces_no_folder_no_pipe_and_no_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/full"), Path("/"), Path()):
        with pytest.raises(KitError, match="it is not a file; name another one"):
            files.write_text(path, "text")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
