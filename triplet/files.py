"""Write files completely or not at all, and identify them."""

import fcntl
import hashlib
import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from triplet import untrusted
from triplet.errors import KitError, message_of
from triplet.progress import say

LEFT_BEHIND = ".*.[0-9]*.tmp"
"""Pattern of the temporary files of ``atomic``, which a killed process leaves."""
TEMPORARY = 230
"""Bytes of a name to keep in that of its temporary file; file systems allow 255."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write; on success it is renamed to ``path``, otherwise removed.

    The data reaches the disk before the name: the file is written, fsynced and renamed, then the folder is
    fsynced.

    Raises:
        KitError: the path is a folder or a device, which the file would replace.
    """
    if not path.name or (path.exists() and not path.is_file()):
        raise KitError(f"cannot write {path}: it is not a file; name another one")
    path.parent.mkdir(parents=True, exist_ok=True)
    short = os.fsdecode(os.fsencode(path.name)[:TEMPORARY])
    temporary = path.with_name(f".{short}.{os.getpid()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Rename a file or folder on the same disk, and sync both to the disk."""
    for place, moved in ((temporary, False), (path.parent, True)):
        if moved:
            temporary.replace(path)
        opened = os.open(place, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, or copy it to another disk, completely or not at all."""
    temporary = Path(target).with_name(f".{Path(target).name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(Path(source).resolve(), temporary)
    except OSError:
        shutil.copy(source, temporary)
    temporary.replace(target)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process or thread holds the lock at the path, then hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically in UTF-8; bytes of file names that are not UTF-8 stay as they are."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str:
    """Check the checksums inside a ZIP file, such as torch writes; return what is damaged, '' for nothing
    or no ZIP.

    torch.load ignores them, and one wrong bit may change a weight by many orders of magnitude.
    """
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC == 0:  # torch.save has an option to omit checksums
                    continue
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return message_of(error)
    return ""


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield (path relative to the folder, bytes) of every file below it; see ``walk_times``."""
    for name, size, _ in walk_times(folder):
        yield name, size


def walk_times(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Yield (path relative to the folder, bytes, time of the last writing in ns) of every file below it.

    They are sorted, without hidden files. Links are followed, except to a folder that contains the link; a
    broken link has 0 bytes and the time 0. A missing folder yields nothing.

    Raises:
        OSError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise error

    if not Path(folder).is_dir():
        return
    inside: dict[str, tuple[tuple[int, int], ...]] = {os.fspath(folder): (_identity(folder),)}
    for here, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        above = inside.pop(here)
        below = {name: _identity(os.path.join(here, name)) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, identity in below.items() if identity not in above)
        inside |= {os.path.join(here, name): (*above, below[name]) for name in folders}
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(here, name)
                yield os.path.relpath(path, folder), *_size_and_time(path)


def _identity(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:  # a broken link, or a link to itself
        return 0, 0
    return found.st_size, found.st_mtime_ns


def json_lines(path: Path, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a log, each with its JSON object; none if there is no file.

    Damaged lines (not UTF-8, no object, no ``key``) are skipped and counted in one message.

    Raises:
        KitError: the log is larger than ``untrusted.LOG``.
    """
    damaged = 0
    for raw in _lines(path) if path.exists() else ():
        try:
            values = untrusted.parse_json(raw, str(path), most=untrusted.LOG_LINE, finite=False)
            line = raw.decode()
        except (KitError, UnicodeDecodeError):
            values = None
        if isinstance(values, dict) and key in values:
            yield line, values
        else:
            damaged += bool(raw)
    say_damaged(path, damaged)


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a log without line ends, each cut to at most LOG_LINE + 1 bytes."""
    if (size := path.stat().st_size) > untrusted.LOG:
        raise KitError(f"{path} has {size} bytes, the most of a log is {untrusted.LOG}; remove it")
    with path.open("rb") as file:
        while raw := file.readline(untrusted.LOG_LINE + 1):
            yield raw.removesuffix(b"\n")
            cut = len(raw) > untrusted.LOG_LINE
            while cut and raw and not raw.endswith(b"\n"):  # skip the rest of a long line
                raw = file.readline(untrusted.LOG_LINE)


def say_damaged(path: Path, lines: int) -> None:
    """Say how many lines of a file are skipped; print nothing if none are."""
    if lines:
        say(f"{path}: {lines} damaged {'lines are' if lines > 1 else 'line is'} left out")


def is_number(value: Any) -> bool:
    """Return whether a value from JSON is a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def cut_lines(path: Path, key: str, last: int) -> dict[str, Any]:
    """Keep the JSON lines of a log whose ``key`` is at most ``last``, where a resumed run continues.

    Damaged lines, and those whose ``key`` is not a number, are dropped. Return the last line kept, {} if
    there is none.
    """
    found: dict[str, Any] = {}
    odd = 0
    with atomic(path) as temporary, temporary.open("w", encoding="utf-8") as kept:
        for line, values in json_lines(path, key):
            if not is_number(values[key]):
                odd += 1
            elif values[key] <= last:
                kept.write(line + "\n")
                found = values
    say_damaged(path, odd)
    return found


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make a stage's folder and hold its lock; KitError if another process holds it, or there is a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise KitError(
            f"{error.filename} is a file or a link to nothing, expected a folder; move it away"
        ) from None
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise KitError(f"another process is at work in {folder}; wait for it or stop it") from None
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


_held: set[IO[str]] = set()
# A loader process that outlives a killed stage for some seconds must not hold its lock.
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in _held])
