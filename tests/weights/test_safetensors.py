"""Weights in safetensors, read without its library."""

import json
import struct

import pytest
import safetensors.torch as library
import torch

from tests.support.backbones import same
from triplet import untrusted
from triplet.errors import KitError
from triplet.weights import read_backbone, safetensors


def safe(state, **header):
    """A safetensors file; its header with changes."""
    entries, data = {}, b""
    for name, value in state.items():
        content = value.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
        place = [len(data), len(data) + len(content)]
        entries[name], data = (
            {"dtype": kind, "shape": list(value.shape), "data_offsets": place},
            data + content,
        )
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries, **header}).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_are_read(tmp_path, state):
    (tmp_path / "model.safetensors").write_bytes(safe(state))
    assert same(read_backbone(tmp_path / "model.safetensors"), state)


def test_safetensors_of_every_type_are_read_as_by_its_library(tmp_path):
    random = torch.Generator().manual_seed(0)
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool]
    kinds += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
    content = {str(kind): (torch.randn(2, 3, generator=random) * 50).abs().to(kind) for kind in kinds}
    content |= {"empty": torch.empty(0, 4), "one": torch.tensor(2.5)}
    library.save_file(content, tmp_path / "w.safetensors")
    found = safetensors.read(tmp_path / "w.safetensors")
    assert found.keys() == content.keys()
    for name, value in content.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}, "place inside the file"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"of shape \[3\] has 8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "lies on another tensor"),
        ({"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}, "is of type 'F4'"),
        ({"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}, "is of type ..F32"),
        ({"dtype": "F32", "shape": -1}, "place inside the file"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}, r"of shape \[1\] has 8 bytes"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "place inside the file"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}, "place inside the file"),
        ({"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}, "place inside the file"),
    ],
)
def test_safetensors_that_do_not_add_up_are_refused(tmp_path, state, entry, message):
    (tmp_path / "w.safetensors").write_bytes(safe(state, x=entry))
    with pytest.raises(KitError, match=message):
        read_backbone(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("length", "rest", "expected"),
    [(2, b"{}", True), (3, b"{}", False), (1, b"{}", False), (2, b" {}", False), (2, b"", False)],
)
def test_safetensors_are_known_by_a_header_that_fits(tmp_path, length, rest, expected):
    (tmp_path / "w").write_bytes(struct.pack("<Q", length) + rest)
    assert safetensors.looks_like(tmp_path / "w") == expected


def test_a_header_that_is_too_long_is_not_read(tmp_path, state, monkeypatch):
    monkeypatch.setattr(untrusted, "SAFETENSORS_HEADER", 100)
    (tmp_path / "w.safetensors").write_bytes(safe(state))
    with pytest.raises(KitError, match=r"its header of \d+ bytes does not fit"):
        read_backbone(tmp_path / "w.safetensors")
