"""Files through every interruption: what is on the disk, in what order, and what is left of a failure."""

import json
import os
import shutil
from pathlib import Path

import pytest

from triplet import files


@pytest.fixture
def calls(monkeypatch):
    """What is synchronised and renamed, in order; a folder by its name with a slash."""
    made = []

    def shown(path):
        path = Path(path)
        return path.name + ("/" if path.is_dir() else "")

    sync, replace, rename = os.fsync, os.replace, os.rename

    def fsync(descriptor):
        made.append(("sync", shown(Path(f"/proc/self/fd/{descriptor}").readlink())))
        sync(descriptor)

    def moved(original):
        def move(source, target, **more):
            made.append(("rename", Path(target).name))
            original(source, target, **more)

        return move

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", moved(replace))
    monkeypatch.setattr(os, "rename", moved(rename))
    return made


def test_a_file_reaches_the_disk_before_its_name_does(tmp_path, calls):
    with files.atomic(tmp_path / "f.txt") as temporary:
        temporary.write_text("content")
    assert [what for what, _ in calls] == ["sync", "rename", "sync"]
    assert calls[0][1].startswith(".f.txt.")
    assert [name for _, name in calls[1:]] == ["f.txt", f"{tmp_path.name}/"]
    calls.clear()
    files.write_text(tmp_path / "g.txt", "more")
    assert [what for what, _ in calls] == ["sync", "rename", "sync"]


def test_a_folder_is_published_in_the_same_order(tmp_path, calls):
    (tmp_path / "made").mkdir()
    files.publish(tmp_path / "made", tmp_path / "whole")
    assert calls == [("sync", "made/"), ("rename", "whole"), ("sync", f"{tmp_path.name}/")]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("old")
    with files.atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent, "a rename does not cross disks"
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["f.txt"]
    for error in (KeyboardInterrupt, SystemExit, OSError):
        with pytest.raises(error), files.atomic(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["f.txt"]


@pytest.mark.parametrize("before", [None, "old"])
def test_a_broken_copy_to_another_disk_leaves_what_was_there(tmp_path, monkeypatch, before):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("whole content")
    if before:
        target.write_text(before)

    def refuse(*_, **__):
        raise OSError(18, "Invalid cross-device link")

    def break_off(one, other, *_, **__):
        Path(other).write_text("whole")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", refuse)
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        for name in ("copy", "copyfile", "copy2"):
            patch.setattr(shutil, name, break_off)
        files.link_or_copy(source, target)
    assert (target.read_text() if target.exists() else None) == before
    files.link_or_copy(source, target)
    assert target.read_text() == source.read_text() == "whole content"
    assert not target.samefile(source)
    assert sorted(os.listdir(tmp_path)) == ["source", "target"]


def test_on_the_same_disk_a_second_name_takes_no_room(tmp_path):
    (tmp_path / "source").write_text("content")
    (tmp_path / "link").symlink_to("source")
    (tmp_path / "target").write_text("old")
    files.link_or_copy(tmp_path / "link", tmp_path / "target")
    assert (tmp_path / "target").samefile(tmp_path / "source")
    assert not (tmp_path / "target").is_symlink()


def test_lines_up_to_the_last_one_that_counts_are_kept(tmp_path):
    path = tmp_path / "log.jsonl"
    assert files.cut_lines(path, "step", 5) == {}
    lines = [{"step": step, "x": 10 * step} for step in (1, 2, 2, 5, 6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 3, ')
    assert files.cut_lines(path, "step", 5) == {"step": 5, "x": 50}
    assert [values for _, values in files.json_lines(path, "step")] == lines[:4]
    assert path.read_text().endswith('"x": 50}\n')
    assert files.cut_lines(path, "step", 0) == {}
    assert path.read_text() == ""


def test_a_walk_names_each_file_with_its_size_below_every_folder(tmp_path):
    for number, name in enumerate(("b.txt", "a/b/c", "a/b/.hidden", ".git/x", "a/a")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(number + 3))
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    assert list(files.walk(tmp_path)) == [
        ("b.txt", 3),
        ("a/a", 7),
        ("a/b/c", 4),
        ("linked/a", 7),
        ("linked/b/c", 4),
    ]
