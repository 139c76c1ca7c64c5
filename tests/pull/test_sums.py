"""Checksums of files whose publisher gives some, and of those whose publisher gives none."""

import hashlib
import signal

import pytest

from tests.conftest import placed
from triplet.errors import Interrupted, KitError
from triplet.pull import checksums, sources
from triplet.pull.checksums import Lock, mismatch
from triplet.pull.sources import Expect
from triplet.pull.verify import problems
from triplet.signals import Stop


@pytest.mark.parametrize("kind", ["md5", "sha256"])
def test_a_file_has_its_checksum_or_another_one(tmp_path, kind, monkeypatch):
    """Over several reads, the last of which is short."""
    monkeypatch.setattr(checksums, "CHUNK", 7)
    path, content = tmp_path / "file", bytes(range(24))
    path.write_bytes(content)
    right = hashlib.new(kind, content).hexdigest()
    assert mismatch(path, f"{kind}:{right}", Stop(), "file") == ""
    for other in (content[:-1], content + b"x", bytes(24), content[::-1]):
        path.write_bytes(other)
        found = hashlib.new(kind, other).hexdigest()
        assert mismatch(path, f"{kind}:{right}", Stop(), "file") == f"{kind} is {found}, expected {right}"
    stop = Stop()
    stop.signal = signal.SIGTERM
    with pytest.raises(Interrupted, match="file is not verified yet"):
        mismatch(path, f"{kind}:{right}", stop, "file")


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A lock whose shared list is empty, and the place of that list."""
    monkeypatch.setattr(sources, "CONFIGS", tmp_path / "configs")
    (tmp_path / "configs").mkdir()
    with placed(tmp_path):
        yield Lock(), tmp_path / "configs" / "SHA256SUMS"


def test_a_first_download_is_recorded_after_the_shared_list(lock):
    known, shared = lock
    assert known.find("byol/a.pth") is None
    known.record("byol/a.pth", "1" * 64)
    known.record("moco/b.pth", "2" * 64)
    assert Lock().find("byol/a.pth") == f"sha256:{'1' * 64}"
    assert known.own.read_text() == f"{'1' * 64}  byol/a.pth\n{'2' * 64}  moco/b.pth\n"
    shared.write_text(f"{'3' * 64}  byol/a.pth\n{'4' * 64}  npid/c.pth\n")
    assert known.find("byol/a.pth") == f"sha256:{'3' * 64}"
    assert known.find("moco/b.pth") == f"sha256:{'2' * 64}"
    for twin in ("2", "4"):
        with pytest.raises(KitError, match=r"simclr/d\.pth would be byte for byte (moco/b|npid/c)\.pth"):
            known.record("simclr/d.pth", twin * 64)
    known.record("moco/b.pth", "2" * 64)
    known.record("moco/b.pth", "5" * 64)
    assert known.find("moco/b.pth") == f"sha256:{'5' * 64}"
    shared.write_text(f"{'3' * 63}  byol/a.pth\n")
    with pytest.raises(KitError, match="line 1: expected a SHA-256, two blanks, method/file"):
        known.find("byol/a.pth")


def test_each_count_of_a_data_set_is_compared_with_its_own(tmp_path, drawn):
    """More and fewer: of folders, images, annotations and lines of a list."""
    right = {"train2017": 12, "val2017": 6}
    assert list(problems(drawn, Expect(images=right))) == []
    for place, count in right.items():
        for other in (count - 1, count + 1):
            found = list(problems(drawn, Expect(images=right | {place: other})))
            assert found == [f"{place}: {count} images, expected {other}"]
    for name in ("a", "b", "c"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    (tmp_path / "classes" / "file").touch()
    assert list(problems(tmp_path, Expect(folders={"classes": 3}))) == []
    assert list(problems(tmp_path, Expect(folders={"classes": 4}))) == ["classes: 3 folders, expected 4"]
    assert list(problems(tmp_path, Expect(images={"none": 1}))) == ["none is missing"]
