"""Files that are there whole or not at all, and what identifies them."""

import fcntl
import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from triplet.errors import KitError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; on success it takes the name ``path``, else it is removed.

    The data is on the disk before the name is: written, fsynced, renamed, the folder fsynced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish(temporary: Path, path: Path) -> None:
    """Give a file or folder its name, of the same disk; both are on the disk afterwards."""
    for place, moved in ((temporary, False), (path.parent, True)):
        if moved:
            temporary.replace(path)
        opened = os.open(place, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name: a hard link, or a copy where that is another disk. Whole or absent."""
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
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(path: Path) -> str:
    """What the checksums inside a ZIP file, such as torch writes, say is damaged; '' for nothing or no ZIP.

    torch.load does not look at them, and one wrong bit may change a weight by many orders of magnitude.
    """
    if not zipfile.is_zipfile(path):
        return ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.CRC == 0:  # torch.save can be told to leave them out
                    continue
                with archive.open(member) as file:
                    while file.read(1 << 20):
                        pass
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        return " ".join(str(error).split())[:160]
    return ""


def walk(folder: Path) -> Iterator[tuple[str, int]]:
    """(path relative to the folder, bytes) of every file below it, sorted, hidden ones left out."""
    for here, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                path = os.path.join(here, name)
                yield os.path.relpath(path, folder), os.stat(path).st_size


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a log, each with what it says; none without a file.

    A line that a kill left half written is left out.
    """
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            values = json.loads(line)
        except ValueError:
            continue
        yield line, values


def cut_lines(path: Path, key: str, last: int) -> dict[str, Any]:
    """Keep the JSON lines of a log whose ``key`` is at most ``last``: what a resumed run goes on from.

    A line that a kill left half written is dropped. Returns the last line kept, {} for none.
    """
    kept: list[str] = []
    found: dict[str, Any] = {}
    for line, values in json_lines(path):
        if values[key] <= last:
            kept.append(line + "\n")
            found = values
    write_text(path, "".join(kept))
    return found


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the lock of a stage's folder; KitError when another process does."""
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
