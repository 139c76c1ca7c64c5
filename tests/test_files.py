import errno
import hashlib
import os

import pytest

from triplet import files


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
