"""Read the safetensors format: a JSON header of names, types, shapes and offsets, then the tensors' bytes.

This follows the format's description in github.com/huggingface/safetensors, without its library.
"""

import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triplet import untrusted
from triplet.errors import KitError

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def looks_like(path: Path) -> bool:
    """Return whether a file begins like this format, with the length of the header and the header's
    brace."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and 2 <= _length(head) <= path.stat().st_size - 8


def read(path: Path) -> dict[str, Tensor]:
    """Read the tensors by name, in the order of the header.

    Raises:
        KitError: the file is truncated or damaged; or a tensor has a type that torch lacks, lies outside
            the file, or overlaps another one.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = _length(file.read(8))
        if length > min(size - 8, untrusted.SAFETENSORS_HEADER):
            raise KitError(
                f"{path} is cut short: its header of {length} bytes does not fit; fetch it again"
            )
        header = untrusted.parse_json(file.read(length), str(path), most=untrusted.SAFETENSORS_HEADER)
        if not isinstance(header, dict):
            raise KitError(f"{path}: its header names no tensors; fetch it again")
        header.pop("__metadata__", None)
        places = {name: _place(path, name, each, size - 8 - length) for name, each in header.items()}
        last = 0
        for name, (begin, end, *_) in sorted(places.items(), key=lambda item: item[1][:2]):
            if begin < last:
                raise KitError(f"{path}: {name!r:.60} lies on another tensor; fetch it again")
            last = end
        found = {}
        for name, (begin, end, kind, shape) in places.items():
            file.seek(8 + length + begin)
            data = bytearray(file.read(end - begin))
            flat = torch.frombuffer(data, dtype=kind) if data else torch.empty(0, dtype=kind)
            found[name] = flat.reshape(shape)
    return found


def _length(head: bytes) -> int:
    return int(struct.unpack("<Q", head[:8])[0]) if len(head) >= 8 else 0


def _place(path: Path, name: str, entry: Any, room: int) -> tuple[int, int, torch.dtype, list[int]]:
    """Return the begin and end of a tensor in the data, with its type and shape."""
    try:
        kind, shape, (begin, end) = entry["dtype"], list(entry["shape"]), entry["data_offsets"]
        whole = all(type(number) is int and 0 <= number <= room for number in (begin, end, *shape))
    except (LookupError, TypeError, ValueError):
        whole = False
    if not whole or begin > end:
        raise KitError(f"{path}: {name!r:.60} has no type, shape and place inside the file; fetch it again")
    if not isinstance(kind, str) or kind not in TYPES:
        raise KitError(f"{path}: {name!r:.60} is of type {kind!r:.20}; expected one of {', '.join(TYPES)}")
    if math.prod(shape) * TYPES[kind].itemsize != end - begin:
        raise KitError(f"{path}: {name!r:.60} of shape {shape} has {end - begin} bytes; fetch it again")
    return begin, end, TYPES[kind], shape
