"""Files of weights, honest and hostile."""

import collections
import io
import pickle
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from tests.fuzz import mutate
from triplet.models.resnet import ResNet
from triplet.weights import detectron2_format, read_backbone, safetensors

BOMBS = (
    b"\x80\x04N\x94r\xff\xff\xff\x1f.",  # memory for 500 million numbered objects
    b"\x80\x04\x8e\xff\xff\xff\xff\x01\x00\x00\x00.",  # bytes of 8 GB
    b"\x80\x05\x96\xff\xff\xff\xff\x01\x00\x00\x00.",  # the same, mutable
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame
    b"\x80\x02)" + b"\x85" * 200_000 + b"}" + b"h\x00.",  # deep tuples
    b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.",  # one as a key
    b"\x80\x02cnumpy\nndarray\n(J\x00\x00\x00\x7ftR.",
    b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
    b"\x80\x02c_codecs\nencode\nX\x04\x00\x00\x00aaaaX\x03\x00\x00\x00hex\x86R.",
    b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    b"L" + b"9" * 5000 + b"L\n.",
)
NAMES = (1, 2.5, None, True, b"bytes", ("a", 1), (), "", "d$\\frac{$", "conv1.weight", frozenset({1}))
WRAPPERS = (
    lambda s: s,
    lambda s: {"state_dict": s},
    lambda s: {"student": s},
    lambda s: {"student": s, "teacher": {f"backbone.{k}": v for k, v in s.items()}},
    lambda s: {"model": {f"module.backbone.{k}": v for k, v in s.items()}, "epoch": 3},
    lambda s: {
        "classy_state_dict": {
            "base_model": {"model": {"trunk": {f"_feature_blocks.{k}": v for k, v in s.items()}}}
        }
    },
    lambda s: {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": s}}}}}}}},
    lambda s: {"a": s, "b": s},
)
_state: dict[str, torch.Tensor] = {}


def state() -> dict[str, torch.Tensor]:
    """A small ResNet's."""
    if not _state:
        torch.manual_seed(0)
        _state.update(ResNet(18, 8).state_dict())
    return dict(_state)


def torch_case(folder: Path, scratch: Path, random: Random) -> object:
    """A PyTorch file with odd tensors, odd keys, odd wrappers, a changed pickle, or changed bytes."""
    path = scratch / "w.pth"
    content = _odd_state(random)
    zipped = random.random() < 0.7
    try:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    except (RuntimeError, NotImplementedError, TypeError, pickle.PicklingError):
        torch.save(state(), path)
    chance = random.random()
    if chance < 0.3 and zipfile.is_zipfile(path):
        _change_pickle(random, path)
    elif chance < 0.6:
        path.write_bytes(mutate.data(random, path.read_bytes()))
    elif chance < 0.65:
        path.write_bytes(
            random.choice([*BOMBS, b"version https://git-lfs.github.com/spec/v1\n", b"<html>", b"\x1f\x8b"])
        )
    return read_backbone(path)


def _odd_state(random: Random) -> Any:
    values: dict[Any, Any] = state()
    for _ in range(random.randint(0, 2)):
        key = random.choice(["conv1.weight", "bn1.running_var", *values])
        values[key] = odd_tensor(random, values.get(key))
    if random.random() < 0.3:
        values[random.choice(NAMES)] = random.choice([torch.ones(2), 3, None, [1], "text"])
    return random.choice(WRAPPERS)(values)


def odd_tensor(random: Random, value: Any) -> Any:
    """A tensor as no state dict should hold it."""
    if not isinstance(value, torch.Tensor):
        return value
    makers = (
        lambda v: torch.nn.Parameter(v) if v.is_floating_point() else v,
        lambda v: v.to("meta"),
        lambda v: torch.empty(10**9, 10**9, device="meta"),
        lambda v: torch.ones(1).expand(40_000, 40_000),
        lambda v: torch.zeros(1).expand(v.shape) if v.ndim else v,
        lambda v: v.to_sparse(),
        lambda v: v.double(),
        lambda v: v.half(),
        lambda v: v.to(torch.complex64),
        lambda v: v.bool(),
        lambda v: v.to(torch.float8_e4m3fn),
        lambda v: torch.quantize_per_tensor(v.float(), 0.1, 0, torch.qint8),
        lambda v: v.transpose(0, -1) if v.ndim > 1 else v,
        lambda v: v.flatten()[:0],
        lambda v: v * float("nan"),
        lambda v: torch.ones(100_000, 3, 1, 1),
        lambda v: v.numpy(),
        lambda v: v.tolist(),
        lambda v: None,
        lambda v: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda v: collections.OrderedDict(a=v),
    )
    try:
        return random.choice(makers)(value)
    except (RuntimeError, NotImplementedError):
        return value


def _change_pickle(random: Random, path: Path) -> None:
    """Change the pickle inside, and compute its checksum anew."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w") as made:
        for info in archive.infolist():
            content = archive.read(info)
            kind = zipfile.ZIP_STORED
            if info.filename.endswith("data.pkl"):
                content = (
                    _numbers(random, content) if random.random() < 0.6 else mutate.data(random, content)
                )
                content = random.choice(BOMBS) if random.random() < 0.1 else content
            elif random.random() < 0.0005:
                content, kind = bytes(1 << 24), zipfile.ZIP_DEFLATED
            made.writestr(info.filename, content, kind)
    path.write_bytes(buffer.getvalue())


def _numbers(random: Random, content: bytes) -> bytes:
    """Change the numbers of a pickle: sizes, strides, numbers of elements."""
    changed = bytearray(content)
    places = [i for i in range(len(changed) - 5) if changed[i] in b"KMJ"]
    for place in random.sample(places, min(3, len(places))):
        if chr(changed[place]) == "K":
            changed[place + 1] = random.choice([0, 1, 127, 255])
        elif chr(changed[place]) == "M":
            changed[place + 1 : place + 3] = struct.pack("<H", random.choice([0, 1, 65535]))
        else:
            changed[place + 1 : place + 5] = struct.pack("<i", random.choice([0, -1, 2**31 - 1, 10**8]))
    return bytes(changed)


def pickle_case(folder: Path, scratch: Path, random: Random) -> object:
    """A .pkl of arrays: of Detectron2's, read as a trained model's is, or of Caffe2's."""
    path = scratch / "w.pkl"
    arrays: dict[Any, Any] = {name: value.numpy() for name, value in list(state().items())[:20]}
    for _ in range(random.randint(0, 2)):
        odd = (
            np.array([None, "a"], dtype=object),
            np.ones((2, 2), dtype=np.complex64),
            np.broadcast_to(np.float32(1), (3, 3)),
            np.array(["a"]),
            np.float32(1),
            np.ones(0),
            torch.ones(2),
            3,
            "x",
        )
        arrays[random.choice([*arrays, *NAMES])] = random.choice(odd)
    content = random.choice(
        [{"model": arrays}, {"blobs": arrays}, arrays, {"model": [1]}, {"blobs": None}, [arrays]]
    )
    data = pickle.dumps(content, protocol=random.randint(0, 5))
    chance = random.random()
    if chance < 0.5:
        data = mutate.data(random, data)
    elif chance < 0.7:
        data = random.choice(BOMBS)
    path.write_bytes(data)
    if random.random() < 0.5:
        return read_backbone(path)
    try:
        return detectron2_format.read(path)
    except pickle.UnpicklingError as error:  # its callers say which file
        from triplet.errors import KitError

        raise KitError(str(error)) from None


def safetensors_case(folder: Path, scratch: Path, random: Random) -> object:
    """A safetensors file with a changed header, or changed bytes."""
    path = scratch / "w.safetensors"
    header, data = {}, b""
    for name, value in state().items():
        content = value.numpy().tobytes()
        kind = "I64" if value.dtype == torch.int64 else "F32"
        header[name] = {
            "dtype": kind,
            "shape": list(value.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    if random.random() < 0.6:
        names = mutate.as_json(random, mutate.tree(random, header))
    else:
        names = mutate.as_json(Random(0), header)
    length = len(names) if random.random() < 0.9 else random.choice(mutate.EDGES)
    whole = struct.pack("<Q", length) + names + data
    path.write_bytes(mutate.data(random, whole) if random.random() < 0.3 else whole)
    assert callable(safetensors.read)
    return read_backbone(path)
