"""Files of torch.save and pickles that ask for more than they hold, which are refused before it is made."""

import codecs
import io
import pickle
import struct
import zipfile

import pytest
import torch

from triplet import untrusted
from triplet.errors import KitError
from triplet.weights import arrays, pickles, torch_file


class Call:
    """An object that is made by a call of something with arguments."""

    def __init__(self, made_by, *arguments):
        self.made_by, self.arguments = made_by, arguments

    def __reduce__(self):
        return self.made_by, self.arguments


class Storage:
    """What torch writes instead of a storage."""

    def __init__(self, saved):
        self.saved = saved


class Writer(pickle.Pickler):
    """Writes storages as torch does."""

    def persistent_id(self, each):
        return each.saved if isinstance(each, Storage) else None


def written(*content):
    file = io.BytesIO()
    for each in content:
        Writer(file, 2).dump(each)
    return file.getvalue()


def survey(content, count=1):
    return pickles.survey(io.BytesIO(content), len(content), count)


MUCH = 1 << 20
"""As many elements as any file may ask for, however small."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (written(Call(bytearray, MUCH + 1)), "elements in a file"),
        (written(Call(bytearray, -MUCH - 1)), "elements in a file"),
        (written(Call(bytearray, (1024, 1025), (1, 1))), "elements in a file"),
        (written([Call(bytearray, MUCH) for _ in range(5)]), "many times its own size"),
        (written(Call(codecs.encode, "text", "zlib")), "an encoding that no writer"),
        (written(Storage(("storage", torch.FloatStorage, "0", "cpu"))), "a reference that torch never"),
        (written(Storage("0")), "a reference that torch never"),
        *(
            (
                written(Storage(("storage", torch.FloatStorage, "0", "cpu", count))),
                "a tensor of .* elements",
            )
            for count in (-1, MUCH + 1, 2.0)
        ),
        (b"\x80\x02)" + b"\x85" * (untrusted.PICKLE_DEPTH + 1) + b".", "tuples in tuples"),
        (b"\x80\x02Nr" + struct.pack("<I", untrusted.INSTRUCTIONS + 1) + b".", "an object numbered"),
        (b"Np%d\n." % (untrusted.INSTRUCTIONS + 1), "an object numbered"),
        (b"Np-1\n.", "an object numbered"),
        (b"\x80\x02\x82\x01.", "an extension"),
    ],
)
def test_a_pickle_that_asks_for_too_much_is_refused(content, message):
    with pytest.raises(pickle.UnpicklingError, match=message):
        survey(content)


def test_a_pickle_of_arrays_is_surveyed_before_it_is_loaded(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02)" + b"\x85" * (untrusted.PICKLE_DEPTH + 1) + b".")
    with pytest.raises(pickle.UnpicklingError, match="tuples in tuples"):
        arrays.read(tmp_path / "w.pkl")


def test_a_pickle_has_no_more_instructions_than_allowed(monkeypatch):
    monkeypatch.setattr(untrusted, "INSTRUCTIONS", 100)
    survey(b"\x80\x02" + b"N0" * 40 + b"N.")
    with pytest.raises(pickle.UnpicklingError, match="more than 100 instructions"):
        survey(b"\x80\x02" + b"N0" * 60 + b"N.")


@pytest.mark.parametrize(
    "content",
    [
        written([Call(bytearray, MUCH) for _ in range(4)]),
        written([Call(torch._utils._rebuild_tensor_v2, 0, 0, (MUCH,), (1,)) for _ in range(9)]),
        written(Call(codecs.encode, "text", "latin1")),
        b"\x80\x02)" + b"\x85" * untrusted.PICKLE_DEPTH + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 3) + b"abc.",
        *(pickle.dumps({"a": [1.5, "b" * 70_000]}, protocol) for protocol in range(6)),
    ],
)
def test_a_pickle_that_asks_for_no_more_is_surveyed(content):
    assert survey(content).storages == {}


def test_the_largest_size_of_each_storage_counts():
    """Those of the last of several pickles."""
    named = [
        (torch.DoubleStorage, "0", 5),
        (torch.FloatStorage, "0", 3),
        (torch.UntypedStorage, "1", 7),
        (torch.HalfStorage, "1", 2),
    ]
    storages = [Storage(("storage", kind, key, "cpu", count)) for kind, key, count in named]
    content = written(storages[:1], storages)
    assert survey(content).storages == {"0": 40}
    assert survey(content, 2).storages == {"0": 40, "1": 7}


def saved(path, **more):
    """A file of two tensors of 800 bytes each."""
    torch.save({name: torch.arange(100.0, dtype=torch.double) for name in "ab"}, path, **more)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"x" * 799, "storage 1 has 799 bytes of 800"), (None, "storage 1 has no bytes of 800")],
)
def test_a_storage_has_the_bytes_that_are_said_of_it(tmp_path, content, message):
    whole = zipfile.ZipFile(saved(tmp_path / "whole.pth"))
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        for name in whole.namelist():
            if not name.endswith("/data/1"):
                archive.writestr(name, whole.read(name))
            elif content:
                archive.writestr(name, content)
    with pytest.raises(KitError, match=message):
        torch_file.read(tmp_path / "w.pth")


def test_a_file_in_the_old_form_holds_all_of_its_tensors(tmp_path):
    path = saved(tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert torch_file.read(path)["b"][99] == 99
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(KitError, match="its tensors have 1600 bytes, the file 1500; fetch it again"):
        torch_file.read(path)


def test_the_pickle_of_a_file_has_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(untrusted, "STRUCTURE", 10)
    with pytest.raises(KitError, match="its pickle is larger than 10 bytes"):
        torch_file.read(saved(tmp_path / "w.pth"))


def test_a_file_of_a_gpu_is_read_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
    assert torch_file.read(saved(tmp_path / "w.pth"))["a"].device.type == "cpu"
