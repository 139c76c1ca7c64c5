"""Archives of others: whole ones unpack, once; hostile and damaged ones do no harm."""

import contextlib
import tarfile
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.archives import tar_bytes, tarred
from triplet.errors import Interrupted, KitError
from triplet.pull import unpack as module
from triplet.pull.sources import Unpack
from triplet.pull.unpack import unpack
from triplet.signals import Stop

FILES = {"a/1.jpg": b"one" * 1000, "a/2.jpg": b"", "b.json": b"{}" * 5000}


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


KINDS = {
    "zip": zipped,
    "stored zip": lambda path, members: zipped(path, members, zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda path, members: tarred(path, members, "w:gz"),
}


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_an_archive_unpacks_below_its_folder(tmp_path, make):
    archive = make(tmp_path / "archive", FILES)
    unpack(archive, tmp_path / "to", Unpack(into="deep/er"), Stop())
    assert content(tmp_path / "to" / "deep" / "er") == FILES


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_stop_keeps_whole_files_and_the_next_run_goes_on(tmp_path, make):
    archive, folder = make(tmp_path / "archive", FILES), tmp_path / "to"

    class AfterOne(Stop):
        def __bool__(self):
            return (folder / "a" / "1.jpg").exists()

    with pytest.raises(Interrupted, match=r"is unpacked up to a/2\.jpg"):
        unpack(archive, folder, Unpack(), AfterOne())
    assert content(folder) == {"a/1.jpg": FILES["a/1.jpg"]}
    before = (folder / "a" / "1.jpg").stat().st_ino
    (folder / ".b.json.tmp").write_bytes(b"left by a kill")
    unpack(archive, folder, Unpack(), Stop())
    assert content(folder) == FILES
    assert (folder / "a" / "1.jpg").stat().st_ino == before


def test_archives_in_an_archive_become_folders(tmp_path):
    inner = {"n01.tar": tar_bytes({"1.JPEG": b"x", "2.JPEG": b"y"}), "n02.tar": tar_bytes({"3.JPEG": b"z"})}
    unpack(tarred(tmp_path / "t.tar", inner), tmp_path / "to", Unpack(archives=True), Stop())
    assert content(tmp_path / "to") == {"n01/1.JPEG": b"x", "n01/2.JPEG": b"y", "n02/3.JPEG": b"z"}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../outside", "a\\..\\outside"])
def test_paths_that_lead_out_are_refused(tmp_path, make, name):
    archive = make(tmp_path / "archive", {name: b"2"})
    with pytest.raises(KitError, match="would lead out of the folder"):
        unpack(archive, tmp_path / "to", Unpack(), Stop())
    assert content(tmp_path) == {"archive": archive.read_bytes()}


def test_paths_inside_an_inner_archive_are_looked_at_too(tmp_path):
    archive = tarred(tmp_path / "t.tar", {"n01.tar": tar_bytes({"../../evil": b"x"})})
    with pytest.raises(KitError, match="would lead out of the folder"):
        unpack(archive, tmp_path / "to", Unpack(archives=True), Stop())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(KitError, match="is a link or would lead out"):
        unpack(tmp_path / "t.tar", tmp_path / "to", Unpack(), Stop())


def test_links_in_a_zip_are_refused(tmp_path):
    member = zipfile.ZipInfo("link")
    member.external_attr = 0o120777 << 16
    zipped(tmp_path / "z.zip", {member: "/etc/passwd"})
    with pytest.raises(KitError, match="is a link or would lead out"):
        unpack(tmp_path / "z.zip", tmp_path / "to", Unpack(), Stop())


@pytest.mark.parametrize("make", [zipped, lambda path, members: tarred(path, members, "w:gz")])
def test_bombs_are_refused_before_they_go_off(tmp_path, make):
    archive = make(tmp_path / "archive", {f"{i}": bytes(1 << 22) for i in range(8)})
    with pytest.raises(KitError, match="unpacks to more than 20 times its size"):
        unpack(archive, tmp_path / "to", Unpack(), Stop())
    assert sum(len(data) for data in content(tmp_path / "to").values()) <= 20 << 20


def test_many_empty_files_are_a_bomb_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST", 1)
    archive = zipped(tmp_path / "z.zip", {f"{i}": b"" for i in range(3000)})
    with pytest.raises(KitError, match="times its size"):
        unpack(archive, tmp_path / "to", Unpack(), Stop())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    archive = zipped(tmp_path / "z.zip", FILES)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: module.shutil._ntuple_diskusage(1, 1, 10))
    with pytest.raises(KitError, match=r"has 0\.0 MB free"):
        unpack(archive, tmp_path / "to", Unpack(), Stop())


@pytest.mark.parametrize("data", [b"", b"PK nothing", b"<html>", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_one_line(tmp_path, data):
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(KitError, match="is damaged, or no archive") as caught:
        unpack(tmp_path / "bad", tmp_path / "to", Unpack(), Stop())
    assert "\n" not in str(caught.value)


@given(kind=st.sampled_from(sorted(KINDS)), place=st.floats(0, 1), data=st.binary(min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_any_damage_is_one_line_or_harmless(tmp_path_factory, kind, place, data):
    """Nothing outside the folder, no unnamed exception; where there is no checksum, bytes may differ."""
    root = tmp_path_factory.mktemp("damaged")
    archive = KINDS[kind](root / "archive", FILES)
    damaged = bytearray(archive.read_bytes())
    start = int(place * len(damaged))
    damaged[start : start + len(data)] = data
    archive.write_bytes(damaged)
    with contextlib.suppress(KitError):
        unpack(archive, root / "to", Unpack(), Stop())
    assert {path.name for path in root.iterdir()} <= {"archive", "to"}
    assert not any(path.is_symlink() for path in root.rglob("*"))
