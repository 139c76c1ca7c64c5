"""Unpack zip and tar archives. A stop or a kill loses nothing, and no member can leave the folder."""

import errno
import gzip
import lzma
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from triplet import untrusted
from triplet.errors import KitError, message_of
from triplet.progress import Bar, amount
from triplet.pull.sources import Unpack
from triplet.signals import Stop

MOST = untrusted.EXPANSION
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    struct.error,
    ValueError,
    LookupError,
    OverflowError,
)


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool
    """Whether it is a file or a folder, not a link or a device."""
    folder: bool
    content: IO[bytes] | None
    position: int
    """Position in the archive in bytes, for the progress."""


def unpack(archive: Path, folder: Path, how: Unpack, stop: Stop) -> None:
    """Unpack an archive below a folder; complete files that already exist are kept.

    Each file is written under a temporary name first, so a file with its final name is complete.

    Args:
        archive: zip, tar or compressed tar, recognised by its content.
        folder: the destination; created if missing.
        how: the folder below the destination, and whether the members are archives themselves.
        stop: polled before each file.

    Raises:
        KitError: no such archive, a path that leads out, a link, a bomb, or too little disk.
        Interrupted: a signal stopped the call; unpacked files stay and are not unpacked again.
    """
    target = folder / how.into
    target.mkdir(parents=True, exist_ok=True)
    room = _Room(archive, target)
    try:
        with (
            Bar(f"pull: unpacking {archive.name}", archive.stat().st_size, of_bytes=True) as bar,
            _opened(archive) as members,
        ):
            for member in members:
                if how.archives and member.content:
                    name = PurePosixPath(_safe(archive, member)).stem
                    with untrusted.inner_tar(member.content) as inner:
                        for each in _of_tar(inner):
                            _write(archive, each, target / name, room, stop)
                else:
                    _write(archive, member, target, room, stop)
                bar.step(count=max(0, member.position - bar.done))
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a bad seek
            raise
        reason = message_of(error)
        raise KitError(f"{archive} is damaged, or no archive: {reason}") from None


class _Room:
    """Budget of bytes that unpacking may still write."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder, self.used = archive, folder, 0
        self.most = MOST * max(archive.stat().st_size, 1 << 20)

    def take(self, size: int) -> None:
        self.used += max(size, untrusted.SMALLEST)
        if self.used > self.most:
            raise KitError(
                f"{self.archive} unpacks to more than {MOST} times its size: that is not a data set"
            )

    def check(self, size: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise KitError(
                f"{self.archive}: {self.folder} has {amount(free)} free, the next file needs {amount(size)}"
            )


def _safe(archive: Path, member: _Member) -> str:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or not member.plain:
        raise KitError(f"{archive}: {member.name!r} is a link or would lead out of the folder")
    return member.name


def _write(archive: Path, member: _Member, folder: Path, room: _Room, stop: Stop) -> None:
    path = folder / _safe(archive, member)
    if stop:
        raise stop.interrupted(f"{archive.name} is unpacked up to {member.name}")
    room.take(member.size)
    if member.folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    if path.is_file() and path.stat().st_size == member.size:
        return
    room.check(member.size)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    assert member.content is not None
    with temporary.open("wb") as out:
        shutil.copyfileobj(member.content, out, 1 << 20)
    if temporary.stat().st_size != member.size:
        raise KitError(f"{archive}: {member.name!r} is cut short")
    temporary.replace(path)


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Member]]:
    if zipfile.is_zipfile(archive):
        with untrusted.open_zip(archive) as content:
            yield _of_zip(content)
    else:
        with untrusted.open_tar(archive) as content:
            yield _of_tar(content)


def _of_zip(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        plain = (info.external_attr >> 28) in (0, 0o4, 0o10)  # Unix file type: none, folder or file
        with archive.open(info) as content:
            yield _Member(
                info.filename,
                info.file_size,
                plain,
                info.is_dir(),
                content,
                info.header_offset + info.compress_size,
            )


def _of_tar(archive: tarfile.TarFile) -> Iterator[_Member]:
    while info := archive.next():
        content = archive.extractfile(info) if info.isreg() else None
        yield _Member(
            info.name, info.size, info.isreg() or info.isdir(), info.isdir(), content, info.offset
        )
        archive.members = []  # type: ignore[attr-defined]  # tarfile would keep a million of them
