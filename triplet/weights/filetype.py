"""Recognise files that should hold weights but do not."""

import zipfile
from pathlib import Path

import torch

HEADS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; run there: git lfs pull",
    b"\x1f\x8b": "compressed by gzip; unpack it first: tar xf FILE, or gunzip",
    b"BZh": "compressed by bzip2; unpack it first: tar xf FILE, or bunzip2",
    b"\xfd7zXZ\0": "compressed by xz; unpack it first: tar xf FILE, or unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first: unzstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"\x89HDF\r\n": "an HDF5 file, as Keras writes; save the weights from there as tensors",
    b"\x93NUMPY": "one array of numpy's, not weights by name",
    b"GGUF": "a GGUF file of a language model",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
    b"%PDF": "a PDF document",
    b"<?xml": "an XML document: the download was refused; fetch it again",
    b"PK\x03\x04": "a ZIP, as torch writes, that is cut short or damaged; fetch it again",
    b"{": "JSON, perhaps a server's answer; look at it, and fetch it again",
}
PAGES = (b"<!doctype", b"<html", b"<head", b"<body")
MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")
"""The number, as pickles hold it, with which a file of ``torch.save`` in the old form begins."""


def is_page(path: Path) -> bool:
    """Return whether the bytes are a web page."""
    with path.open("rb") as file:
        return file.read(512).lstrip().lower().startswith(PAGES)


def is_torch(path: Path) -> bool:
    """Return whether the bytes are a whole ZIP, as ``torch.save`` writes, or begin as in its old form."""
    with path.open("rb") as file:
        return MAGIC in file.read(32) or zipfile.is_zipfile(path)


def describe(path: Path) -> str:
    """Say by its first bytes what kind of file torch could not read, and what to do; '' if they do not
    show it."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty; fetch it again"
    for start, meaning in HEADS.items():
        if head.startswith(start):
            return meaning.replace("FILE", str(path))
    if head[257:262] == b"ustar":
        return f"a tar archive; unpack it first: tar xf {path}"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":  # its version, then the name of its writer
        return "an ONNX model; save the state dict of the network that it was made from by torch.save"
    return ""
