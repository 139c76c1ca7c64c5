"""Every reader of files that others wrote has a bound, whatever the size of the file."""

import os
from pathlib import Path

import pytest

from benchmarks.linear.data import open_sets
from benchmarks.linear.semi import from_list
from benchmarks.linear.voc import read_split
from tests.linear.conftest import draw
from triplet import files, images, untrusted
from triplet.annotations import voc
from triplet.annotations.coco import check
from triplet.errors import KitError
from triplet.images import Files, open_images, read_shards
from triplet.pull import checksums, imagenet, verify
from triplet.pull.sources import Expect

HOLE = 1 << 43
"""Bytes of a file without content, which no disk here has."""


@pytest.fixture
def hole(tmp_path):
    """Makes a file of 8 TB at a path below the test's folder, which takes no room."""

    def make(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(HOLE)
        return path

    return make


def sets(folder, listed):
    draw(folder / "images", 1, 0)
    return open_sets(folder / "images", folder / "images", listed)


def chosen(folder, listed):
    return from_list(sets(folder, None)[0], listed)


def voc_labels(folder, listed):
    (listed.parent / "test.txt").write_text("000001\n")
    return read_split(folder, "test")


READERS = {
    "list.txt": lambda folder, path: open_images(path),
    "shards.json": lambda folder, path: open_images(folder),
    "classes.txt": lambda folder, path: sets(folder, path),
    "some.txt": lambda folder, path: chosen(folder, path),
    "ImageSets/Main/test.txt": lambda folder, path: voc.read_list(path),
    "ImageSets/Main/cat_test.txt": lambda folder, path: voc_labels(folder, path),
    "a/1.xml": lambda folder, path: voc.check(path.parent, ["1"], ["cat"]),
    "instances.json": lambda folder, path: check(path),
    "1.png": lambda folder, path: Files(folder, ["1.png"], None).read(0),
    "metrics.jsonl": lambda folder, path: files.cut_lines(path, "step", 1),
    "SHA256SUMS": lambda folder, path: checksums._read_sums(path),
    "data/meta.mat": lambda folder, path: imagenet.validation_classes(folder),
    "solution.csv": lambda folder, path: imagenet.Kaggle(folder, path).classes(),
    "VOC/ImageSets/Main/x.txt": lambda folder, path: [
        *verify.problems(folder, Expect(lists={"VOC/ImageSets/Main/x.txt": 1}))
    ],
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", READERS)
def test_a_file_without_end_is_refused_at_once(tmp_path, hole, name):
    path = hole(name)
    with pytest.raises(KitError, match=r"has (more than )?\d.*(the most of an?|the most of a log)"):
        READERS[name](tmp_path, path)


def test_the_description_of_a_shard_has_a_bound(tmp_path, hole):
    hole("shard-000000.json")
    (tmp_path / "shards.json").write_text(
        images.Index(shards=["shard-000000.tar"], images=1).model_dump_json()
    )
    with pytest.raises(KitError, match="the most of a description of shards"):
        read_shards(tmp_path)


@pytest.mark.parametrize(
    "name", ["../shard-000000.tar", "/etc/shard-000000.tar", "a/shard-0.tar", "passwd", "", ".", "s" * 300]
)
def test_shards_are_files_beside_their_index(tmp_path, name):
    """Whatever an index of others names: nothing elsewhere is opened."""
    (tmp_path / "packed").mkdir()
    shard = images.Shard(name="x", sha256="", bytes=2, names=["a"], labels=None, offsets=[0], sizes=[1])
    (tmp_path / "shard-000000.json").write_text(shard.model_dump_json())
    (tmp_path / "shard-000000.tar").write_bytes(b"12")
    index = images.Index(shards=[name], images=1)
    (tmp_path / "packed" / "shards.json").write_text(index.model_dump_json())
    with pytest.raises(KitError, match=r"its shards cannot be read \(shards\.json names the shard"):
        open_images(tmp_path / "packed")


@pytest.mark.parametrize(
    "change", [{"name": "../other.tar"}, {"sizes": [1 << 31], "bytes": 1 << 32}, {"offsets": [0, 1]}]
)
def test_what_is_said_of_a_shard_fits_it(tmp_path, change):
    said = {"name": "shard-0.tar", "sha256": "", "bytes": 2, "names": ["a"], "labels": None}
    shard = images.Shard.model_validate({**said, "offsets": [0], "sizes": [1], **change})
    (tmp_path / "shard-0.json").write_text(shard.model_dump_json())
    with (tmp_path / "shard-0.tar").open("wb") as file:
        file.truncate(shard.bytes)
    (tmp_path / "shards.json").write_text(images.Index(shards=["shard-0.tar"], images=1).model_dump_json())
    with pytest.raises(KitError, match=r"shard-0\.json does not fit its shard"):
        open_images(tmp_path)


@pytest.mark.timeout(20)
def test_a_pipe_is_no_image(tmp_path):
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a\.png is not a file"):
        open_images(tmp_path).read(0)


def test_a_line_without_end_is_damaged_and_the_next_one_is_read(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    deep = b'{"step": ' + b"[" * 5000 + b"]" * 5000 + b"}"
    lines = [b'{"step": 1}', b"x" * 3 * untrusted.LOG_LINE, b'{"step": 2}', deep, b'{"step": 3}']
    path.write_bytes(b"\n".join(lines))
    assert [values["step"] for _, values in files.json_lines(path, "step")] == [1, 2, 3]
    assert "2 damaged lines are left out" in capsys.readouterr().out


def test_what_is_just_within_a_bound_is_read(tmp_path):
    path = Path(tmp_path / "a")
    path.write_bytes(b"12345")
    assert untrusted.read_bytes(path, 5) == b"12345"
    with pytest.raises(KitError, match="has more than 4 bytes, the most of a file"):
        untrusted.read_bytes(path, 4)
