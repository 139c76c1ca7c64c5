"""Bounds on reading files made by others: size, depth and count, which limit time and memory.

Each bound is a constant here, with its reason. A small file must not take much, whatever it claims, and a
large file of an honest user must be readable; where a file's own size is the right measure, the bound is
relative to it. A file beyond a bound is refused with a KitError of one line: what, where, the bound, what
to do.
"""

import io
import json
import lzma
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn, Self

import yaml

from triplet.errors import KitError, message_of

CONFIG = 256 << 10
"""Bytes of a YAML file. The kit's largest has 10 kB, a resolved config of Detectron2's 15 kB."""
CONFIG_VALUES = 10_000
"""Values in a YAML file with its aliases written out ("billion laughs"): OmegaConf takes 0.1 ms and 2 kB
for each."""
CONFIG_DEPTH = 32
"""Levels in a YAML file. The kit's deepest has 6; Python's own limit would be met as a RecursionError."""
INTEGER = 2**63 - 1
"""Largest whole number in a config: seeds have 64 bits. Fields that stand for memory or time have bounds of
their own."""
RECORD = 8 << 20
"""Bytes of a record, or of another small JSON file. A record has some 20 kB; JSON of 8 MB can take 200 MB
to read."""
METADATA = 32 << 20
"""Bytes of a crate's list of files: 200 for each. The records of a crate have at most as much together."""
ANNOTATIONS = 4 << 30
"""Bytes of annotations or detections. COCO's train2017 has 0.5 GB, LVIS 1.2 GB, Objects365 2 GB; Python
takes some ten times as much, so that more would not fit the memory of most machines."""
JSON_DEPTH = 100
"""Levels of JSON: COCO's annotations have 5, records 8."""
INSTRUCTIONS = 6_000_000
"""Instructions and arguments of a pickle, 60 for each tensor: 100 000 tensors, and some 10 s."""
PICKLE_DEPTH = 100
"""Tuples in tuples of a pickle: beyond some ten thousand, hashing one overflows C's stack and kills
Python."""
STRUCTURE = 256 << 20
"""Bytes of the pickle inside a PyTorch file, without its tensors: a checkpoint of 10 GB has a few MB."""
WIDTH = 256
"""Channels of a ResNet's stem, four times the usual: the network that is built to compare takes width
squared."""
SAFETENSORS_HEADER = 100 << 20
"""Bytes of a safetensors header: the limit of the format's own library."""
DIRECTORY = 512 << 20
"""Bytes of a zip's directory, of which Python makes ten times as much. Kaggle's ImageNet (2 million files)
has 0.26 GB."""
TAR_HEADER = 1 << 20
"""Bytes of one extended header of a tar: a path has at most 4 kB, and tarfile reads what the header says
into memory."""
LZMA_MEMORY = 256 << 20
"""Bytes that unpacking xz may take: `xz -9` needs 65 MB, the format allows 4 GB."""
EXPANSION = 20
"""Largest ratio of an archive's unpacked size to its own: images have 1, COCO's annotations 4."""
CRATE_EXPANSION = 100
"""Largest ratio of a crate's file to its compressed size: JSON shrinks to about a tenth."""
SMALLEST = 512
"""Bytes that a file in an archive counts at least, so that a million empty ones count too."""
LISTING = 1 << 30
"""Bytes of a list of images, or of the index of a shard: 40 for each of ImageNet-21k's 14 million are
0.6 GB."""
NAMES = 8 << 20
"""Bytes of another list: VOC's image sets have 0.1 MB, ImageNet's classes and checksums less."""
ANNOTATION = 16 << 20
"""Bytes of the XML of one image: an object takes 300."""
LOG = 1 << 30
"""Bytes of a log of metrics: 300 for each of the 1 000 000 steps of 200 epochs by batches of 256."""
LOG_LINE = 1 << 20
"""Bytes of a line in a log; a longer one is skipped as damaged."""
IMAGE = 1 << 30
"""Bytes of an encoded image: the size of the largest that Pillow opens, uncompressed in 16 bits."""
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that Pillow may open (JPEG includes MPO): by default it would also try forty rarer readers, one
of which runs Ghostscript. Pillow itself refuses an image of more than 179 megapixels, which takes 1.3 GB;
ImageNet's largest has some 60."""

_YAML: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BEGIN = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_END = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


def read_bytes(path: Path, most: int, what: str = "file") -> bytes:
    """Read the bytes of a file, or of a pipe that has a writer.

    Args:
        path: path of the file.
        most: most bytes that it may have.
        what: kind of file that is expected, for the message.

    Raises:
        KitError: it has more bytes, or is a device, which may be endless.
        OSError: it cannot be read.
    """
    with open(path, "rb", opener=unblocked) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            raise KitError(f"{path} is a device, expected a {what}; give another file")
        size = found.st_size if stat.S_ISREG(found.st_mode) else most
        data = file.read(size + 1) if size <= most else b""  # do not read a file that is too large
        if size and len(data) > size and size < most:  # it grew, or lies in /proc
            data += file.read(most + 1 - len(data))
    if max(len(data), size) > most:
        raise KitError(f"{path} has more than {_amount(most)}, the most of a {what}; give another file")
    return data


def unblocked(path: str, flags: int) -> int:
    """Opener for ``open`` that never blocks: a named pipe without a writer counts as empty."""
    os.set_blocking(found := os.open(path, flags | os.O_NONBLOCK), True)
    return found


def read_text(path: Path, most: int, what: str = "file") -> str:
    """Read UTF-8 text with or without a byte order mark; raise as ``read_bytes`` does, and for other
    encodings."""
    try:
        return read_bytes(path, most, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {error.start} is not"
        raise KitError(f"{path} is not a {what} in UTF-8: {where}; save it as UTF-8") from None


def parse_json(data: bytes | str, where: str, *, most: int = RECORD, finite: bool = True) -> Any:
    """Parse plain values of JSON within bounds.

    Args:
        data: UTF-8 with or without a byte order mark.
        where: origin of the data, for the message.
        most: most bytes that it may have.
        finite: whether to refuse NaN and infinities, which are not JSON.

    Raises:
        KitError: the data are damaged, too large or too deep, or have a number of more than 4300 digits.
    """
    if len(data) > most:
        raise KitError(f"{where}: has {_amount(len(data))}, more than the {_amount(most)} that it may have")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data
        values = json.loads(text, parse_constant=_refuse_constant if finite else None)
        if len(data) <= METADATA:  # for larger files Python's own limit of some 1000 levels is enough
            _check_depth(values)
        return values
    except RecursionError:
        raise KitError(
            f"{where}: is nested more deeply than the {JSON_DEPTH} levels that any real file has"
        ) from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise KitError(f"{where}: is not JSON ({message_of(error)}); make it again") from None


def _check_depth(values: Any) -> None:
    """Raise RecursionError if lists and dicts are nested more than JSON_DEPTH times."""
    level = [values] if isinstance(values, dict | list) else []
    for _ in range(JSON_DEPTH):
        if not level:
            return
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inside for value in values if isinstance(value, dict | list)]
    raise RecursionError


def read_json(path: Path, *, most: int = RECORD, finite: bool = True) -> Any:
    """Read plain values from a JSON file; OSError if it cannot be read."""
    return parse_json(read_bytes(path, most, "JSON file of this kind"), str(path), most=most, finite=finite)


def check_yaml(text: str, where: str) -> None:
    """Check the size of a YAML text's values before building them.

    Args:
        text: text of the file.
        where: origin of the text, for the message.

    Raises:
        KitError: more than CONFIG bytes, CONFIG_VALUES values with aliases written out, or CONFIG_DEPTH
            levels; an interpolation. yaml.YAMLError: it is not YAML.
    """
    if len(text) > CONFIG:
        raise KitError(f"{where}: has more than {_amount(CONFIG)}, the most of a config; give another file")
    if "${" in text:
        raise KitError(
            f"{where}: found an interpolation '${{...}}', which no config here has; write the value"
        )
    for depth, count in _counts(text):
        if depth > CONFIG_DEPTH:
            raise KitError(f"{where}: has more than {CONFIG_DEPTH} levels; give another file")
        if count > CONFIG_VALUES:
            raise KitError(
                f"{where}: has more than {CONFIG_VALUES} values, aliases written out; give another file"
            )


def _counts(text: str) -> Iterator[tuple[int, int]]:
    """Yield the level, and the values in it with aliases written out, after each event of a YAML text."""
    levels: list[tuple[str | None, int]] = [(None, 0)]  # its anchor, and values so far
    anchors: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_YAML):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, _BEGIN):
            levels.append((anchor, 1))
            done = 0
        elif isinstance(event, _END):
            anchor, done = levels.pop()
            anchors[anchor or ""] = done
        elif isinstance(event, yaml.AliasEvent):
            if (done := anchors.get(anchor or "", 0)) == 0:  # the parser refuses undefined names
                raise yaml.YAMLError(f"the alias *{anchor} stands inside of what it names")
        else:
            done = int(isinstance(event, yaml.ScalarEvent))
            if done and anchor:
                anchors[anchor] = 1
        levels[-1] = (levels[-1][0], levels[-1][1] + done)
        yield len(levels), levels[-1][1]


def load_yaml(text: str, where: str) -> Any:
    """Parse plain values of YAML within bounds.

    Raises:
        KitError: it is not YAML, or beyond a bound.
    """
    try:
        check_yaml(text, where)
        values = yaml.load(text, Loader=_YAML)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise KitError(f"{where}: is not YAML ({message_of(error)})") from None
    check_numbers(values, where)
    return values


def check_numbers(values: Any, where: str, key: str = "") -> None:
    """Raise KitError if an integer among plain values has more than 64 bits; it could not even be
    printed."""
    if isinstance(values, dict):
        for name, value in values.items():
            check_numbers(name, where, key)
            check_numbers(value, where, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple | set):
        for value in values:
            check_numbers(value, where, key)
    elif isinstance(values, int) and abs(values) > INTEGER:
        raise KitError(
            f"{where}: {key or 'a key'}: found a number of {values.bit_length()} bits, expected at most 64"
        )


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose directory is not larger than DIRECTORY.

    Raises:
        KitError: its directory is larger.
        zipfile.BadZipFile: it is not a zip.
    """
    with path.open("rb") as file:
        size = _directory(file)
    if size > DIRECTORY:
        raise KitError(
            f"{path}: its directory has {_amount(size)}, over {_amount(DIRECTORY)}: that is not a data set"
        )
    with zipfile.ZipFile(path) as archive:
        yield archive


def _directory(file: IO[bytes]) -> int:
    """Return the size of a zip's directory in bytes; 0 if none is found."""
    end = file.seek(0, io.SEEK_END)
    file.seek(max(0, end - 65_557))  # the last record, and the longest comment
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + 22:
        return 0
    size = int(struct.unpack_from("<I", tail, place + 12)[0])
    if size == 0xFFFFFFFF and place >= 20 and tail[place - 20 : place - 16] == b"PK\x06\x07":
        file.seek(min(struct.unpack_from("<Q", tail, place - 12)[0], end))
        record = file.read(56)
        size = int(struct.unpack_from("<Q", record, 40)[0]) if len(record) == 56 else 0
    return min(size, end)


def check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Check that the members of an uncompressed zip, such as torch writes, are not larger than its file.

    Args:
        archive: the open zip.
        size: bytes of its file.

    Raises:
        KitError: members are compressed or overlap, so that a small file could take any amount of memory.
    """
    found = archive.infolist()
    if any(
        info.compress_type != zipfile.ZIP_STORED or info.file_size > info.compress_size for info in found
    ):
        raise KitError(
            f"{archive.filename}: its tensors are compressed, which torch never writes; save it again"
        )
    if sum(info.file_size for info in found) > size:
        raise KitError(
            f"{archive.filename}: its members are larger than the file: they overlap; fetch it again"
        )


class _Header(tarfile.TarInfo):
    """A tar header that refuses long extensions of itself."""

    LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        if self.size < 0 or (self.type in self.LONG and self.size > TAR_HEADER):
            raise tarfile.ReadError(
                f"a header says that it has {self.size} bytes, expected at most {TAR_HEADER}"
            )
        result: Self = super()._proc_member(archive)  # type: ignore[misc]
        return result


class _Xz(io.RawIOBase):
    """Decompress an xz file within LZMA_MEMORY."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.decoder = file, lzma.LZMADecompressor(memlimit=LZMA_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = b""
        while not data:
            if self.decoder.eof:  # another stream may follow
                rest = self.decoder.unused_data or self.file.read(1 << 16)
                if not rest.strip(b"\0"):
                    return 0
                self.decoder = lzma.LZMADecompressor(memlimit=LZMA_MEMORY)
            else:
                rest = self.file.read(1 << 16) if self.decoder.needs_input else b""
                if not rest and self.decoder.needs_input:
                    raise EOFError("its compressed data is cut short")
            data = self.decoder.decompress(rest, max_length=len(buffer))
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar, plain or compressed by gzip, bzip2 or xz, as its content shows.

    Raises:
        tarfile.TarError: it is not a tar, or a header is larger than TAR_HEADER.
        lzma.LZMAError: it needs more memory than LZMA_MEMORY.
    """
    with path.open("rb") as file:
        head = file.read(6)
        file.seek(0)
        if head == b"\xfd7zXZ\0":
            content = io.BufferedReader(_Xz(file), 1 << 20)
            with tarfile.open(fileobj=content, mode="r|", tarinfo=_Header) as archive:
                yield archive
            return
        if head.startswith(b"\x1f\x8b"):
            kind = "r:gz"
        else:
            kind = "r:bz2" if head.startswith(b"BZh") else "r:"
        with tarfile.open(None, kind, file, tarinfo=_Header) as archive:  # type: ignore[call-overload]
            yield archive


def inner_tar(content: IO[bytes]) -> tarfile.TarFile:
    """Open a tar inside another one for reading from beginning to end; raise as ``open_tar`` does."""
    return tarfile.open(fileobj=content, mode="r|", tarinfo=_Header)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, which is not a JSON number")


def _amount(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
