"""Read PyTorch's own files as tensors and plain values, after checking that they claim no more memory than
they have bytes."""

import argparse
import io
import mmap
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from triplet import files, untrusted
from triplet.errors import KitError, message_of
from triplet.weights import filetype, pickles

SKIPPED = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    "pathlib.PosixPath",
    "pathlib._local.PosixPath",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "builtins.getattr",
)
"""Names for which a stand-in is made instead: of NumPy's numbers and of paths, which projects save beside
the weights, and of mmengine's log with the methods of its class."""
LEGACY = 4
"""Number of pickles at the beginning of a file in the old form: magic number, protocol, machine,
content."""


def read(path: Path, *, checksums: bool = True, mapped: bool = False) -> Any:
    """Load a file of ``torch.save``.

    Args:
        path: path of the file.
        checksums: whether to compare the checksums inside, which reads the whole file.
        mapped: whether to leave the tensors in the file until they are used; not for the old form.

    Raises:
        KitError: there is no such file; or it is of another type, has a class that may not be unpickled,
            is damaged, or asks for more memory than it can hold; the message says which.
        OSError: it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path, checksums=checksums)
        else:
            _check_legacy(path)
        # DINO, torchvision's references and others save their arguments, plain values, with the weights.
        skipped = [(pickles.StandIn, name) for name in SKIPPED]
        with torch.serialization.safe_globals([argparse.Namespace, *skipped]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (KitError, OSError):
        raise
    except Exception as error:  # torch may raise anything on a damaged file
        raise KitError(_explain(path, error)) from None


def _check_zip(path: Path, *, checksums: bool) -> None:
    """Compare the storage sizes that the pickle inside states with the real ones."""
    size = path.stat().st_size
    with untrusted.open_zip(path) as archive:
        found = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in found:
            names = ", ".join(archive.namelist()[:3])
            raise KitError(
                f"{path} is a ZIP that torch.save did not write (in it: {names:.100}); unpack it first"
            )
        if "constants.pkl" in found:
            raise KitError(
                f"{path} is a TorchScript archive, a program; save its state_dict() by torch.save"
            )
        untrusted.check_members(archive, size)
        if found["data.pkl"].file_size > untrusted.STRUCTURE:
            raise KitError(f"{path}: its pickle is larger than {untrusted.STRUCTURE} bytes; fetch it again")
        if checksums and (damage := files.damage(path)):
            raise KitError(f"{path} is damaged ({damage}); fetch it again")
        said = pickles.survey(io.BytesIO(_stored(path, found["data.pkl"])), size).storages
    for key, needed in said.items():
        there = found.get(f"data/{key}")
        if there is None or there.file_size < needed:
            has = there.file_size if there else "no"
            raise KitError(
                f"{path} is damaged: storage {key:.20} has {has} bytes of {needed}; fetch it again"
            )


def _stored(path: Path, member: zipfile.ZipInfo) -> bytes:
    """Read a member that is not compressed. torch may have left out the checksum that zipfile would
    check."""
    with path.open("rb") as file:
        file.seek(member.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        file.seek(name + extra, io.SEEK_CUR)
        return file.read(member.file_size)


def _check_legacy(path: Path) -> None:
    """Check a file of the form before PyTorch 1.6, which has no checksums."""
    if meaning := filetype.describe(path):
        raise KitError(f"{path} is not a PyTorch file of tensors: it is {meaning}")
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:1] != b"\x80":
            raise KitError(
                f"{path} is not a PyTorch file of tensors: it begins with {content[:12]!r}; fetch it again"
            )
        if not filetype.is_torch(path):
            pickles.survey(content, size)
            raise KitError(
                f"{path} is not a PyTorch file of tensors: it is a pickle of another program; save its "
                "state dict by torch.save, or name it .pkl if it holds arrays by name"
            )
        needed = sum(pickles.survey(content, size, LEGACY).storages.values())
    if needed > size:
        raise KitError(
            f"{path} is cut short: its tensors have {needed} bytes, the file {size}; fetch it again"
        )


def _explain(path: Path, error: Exception) -> str:
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    known = re.search(
        r"GLOBAL (\S{1,100}) |reduce for unrecognized function (\S{1,100})|got <class '(\S{1,100})'>", text
    )
    if isinstance(error, pickle.UnpicklingError) and known:
        name = known[1] or known[2] or known[3]
        return (
            f"{path} is not a PyTorch file of tensors alone: it holds {name}, which may not be unpickled: "
            "it could run code; where you trust the file, save its state dict alone, by torch.load(..., "
            "weights_only=False) and torch.save"
        )
    return f"{path} is not a PyTorch file of tensors, or damaged: {message_of(text)}"
