"""Bounds on files of others: what is beyond is refused in one line, what honest users have is read."""

import io
import json
import lzma
import os
import struct
import subprocess
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from tests.fuzz.page import bounds
from triplet import untrusted
from triplet.config import load
from triplet.errors import KitError
from triplet.pretrain.config import Pretrain
from triplet.pull.sources import Unpack
from triplet.pull.unpack import unpack
from triplet.signals import Stop

GOOD = "loss: {group: 196}\noptimizer: {groups: 8, accumulate: 4}\nschedule: {epochs: 200}\n"
LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "has more than 10000 values, aliases written out"),
        (
            "a0: &a0 {x: 1}\n" + LAUGHS.replace("[", "{<<: [").replace("]", "]}").partition("\n")[2],
            "values",
        ),
        ("a: " + "[" * 500 + "]" * 500, "has more than 32 levels"),
        ("a: " + "b" * 300_000, "the most of a config"),
        ("a: ${oc.env:HOME}", "found an interpolation"),
        (GOOD + "seed: " + "9" * 300, "seed: found a number of 997 bits, expected at most 64"),
        (GOOD + "seed: 0x" + "f" * 9000, "seed: found a number of 36000 bits"),
        (GOOD + "seed: " + "9" * 5000, "cannot be read: a number of more than 4300 digits"),
        (
            GOOD.replace("accumulate: 4", "accumulate: 999999999999"),
            "accumulate: Input should be less than",
        ),
        (GOOD.replace("accumulate: 4", "accumulate: 1000000"), "images a step; expected at most 1048576"),
        (GOOD + "model: {hidden: 1000000000}", "model.hidden: Input should be less than or equal to 65536"),
    ],
)
def test_a_config_has_bounds(config, text, message):
    with pytest.raises(KitError) as caught:
        load(config(text), Pretrain)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "override", ["optimizer.accumulate=999999999999", "seed=" + "9" * 300, "a." * 99 + "b=1"]
)
def test_an_override_has_the_same(config, override):
    with pytest.raises(KitError) as caught:
        load(config(GOOD), Pretrain, [override])
    assert len(str(caught.value)) < 600


def test_honest_aliases_are_read(config):
    text = GOOD.replace("{group: 196}", "&loss {group: 196}")
    assert load(config(text), Pretrain).loss.group == 196
    assert untrusted.load_yaml("a: &a [1, 2]\nb: [*a, *a]", "c.yaml") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[" * 100_000, "is nested more deeply than the 100 levels"),
        (b"[" * 200 + b"]" * 200, "is nested more deeply than the 100 levels"),
        (b"9" * 5000, "a number of more than 4300 digits"),
        (b'{"a": NaN}', "found NaN, which is not a JSON number"),
        (b'"\xff"', "is not JSON"),
        (b" " * 2000, "has 2 kB, more than the 1 kB"),
    ],
)
def test_json_has_bounds(data, message):
    with pytest.raises(KitError) as caught:
        untrusted.parse_json(data, "r.json", most=1000 if data[:1] == b" " else 1 << 20)
    assert str(caught.value).startswith("r.json: ")
    assert message in str(caught.value)


def test_json_may_begin_with_a_byte_order_mark():
    assert untrusted.parse_json(b"\xef\xbb\xbf[1]", "r.json") == [1]


def test_a_file_without_end_is_read_up_to_its_bound():
    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as endless:
        with pytest.raises(KitError, match="has more than 1 kB, the most of a config"):
            untrusted.read_bytes(Path(f"/dev/fd/{endless.stdout.fileno()}"), 1000, "config")
        endless.kill()


def header(name, kind, size):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_4_gb_in_a_tar_is_refused(tmp_path, kind):
    (tmp_path / "t.tar").write_bytes(header("x", kind, 4 << 30) + bytes(2048))
    with pytest.raises(KitError, match="a header says that it has 4294967296 bytes"):
        unpack(tmp_path / "t.tar", tmp_path / "to", Unpack(), Stop())


def test_xz_that_needs_much_memory_is_refused(tmp_path):
    small = lzma.compress(bytes(2048), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    # The block's header holds the size of its dictionary, and a checksum.
    place = 12
    block = bytearray(small[place : place + (small[place] + 1) * 4])
    block[4] = 38
    block[-4:] = struct.pack("<I", zlib.crc32(bytes(block[:-4])))
    (tmp_path / "t.tar.xz").write_bytes(small[:place] + bytes(block) + small[place + len(block) :])
    with pytest.raises(KitError, match="Memory usage limit"):
        unpack(tmp_path / "t.tar.xz", tmp_path / "to", Unpack(), Stop())


def test_honest_compressed_tars_are_read(tmp_path):
    for kind in ("gz", "bz2", "xz"):
        with tarfile.open(tmp_path / "t", f"w:{kind}") as archive:
            info = tarfile.TarInfo("a" * 200 + ".jpg")
            info.size = 5000
            archive.addfile(info, io.BytesIO(bytes(range(250)) * 20))
        unpack(tmp_path / "t", tmp_path / kind, Unpack(), Stop())
        assert (tmp_path / kind / ("a" * 200 + ".jpg")).read_bytes() == bytes(range(250)) * 20


def test_a_directory_of_a_zip_has_a_bound(tmp_path, monkeypatch):
    path = tmp_path / "z.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(100):
            archive.writestr(f"{number}", b"")
    with untrusted.open_zip(path) as archive:
        assert len(archive.namelist()) == 100
    monkeypatch.setattr(untrusted, "DIRECTORY", 1000)
    with pytest.raises(KitError, match="that is not a data set"), untrusted.open_zip(path):
        pass


def test_every_bound_says_why():
    """Each constant is followed by its reason; docs/robustness.md prints them."""
    found = {name: reason for name, _, reason in bounds()}
    named = [name for name in vars(untrusted) if name.isupper() and name[0] != "_" and name != "IO"]
    assert sorted(found) == sorted(named)
    assert all(len(reason) > 20 for reason in found.values())
    assert json.dumps(found)


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: [1, {c: *a}]}", "&a [1, *a]"])
def test_an_alias_inside_of_what_it_names_is_refused(text):
    with pytest.raises(KitError, match=r"c.yaml: is not YAML \(the alias \*a stands inside"):
        untrusted.load_yaml(text, "c.yaml")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_a_device_has_no_end_and_is_no_file(device):
    with pytest.raises((KitError, OSError), match=r"is a device, expected a list|No such device"):
        untrusted.read_bytes(Path(device), 100, "list")


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert untrusted.read_bytes(tmp_path / "pipe", 100) == b""
    read, write = os.pipe()
    threading.Timer(0.1, lambda: (os.write(write, b"late"), os.close(write))).start()
    assert untrusted.read_bytes(Path(f"/dev/fd/{read}"), 100) == b"late"
    os.close(read)
