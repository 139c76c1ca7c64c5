"""Turn a source into a folder: find or fetch its files, verify, unpack and check them, then rename."""

import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triplet import files
from triplet.commands import typed
from triplet.errors import KitError
from triplet.progress import Bar, amount, say
from triplet.pull import checksums
from triplet.pull.download import DownloadSpec, download
from triplet.pull.imagenet import Kaggle, sort_validation
from triplet.pull.sources import Source, SourceFile
from triplet.pull.unpack import unpack
from triplet.pull.verify import problems
from triplet.signals import Stop

DOWNLOADS = ".downloads"
"""Folder of partial downloads and of verified files that are not unpacked yet."""
TAKEN = ".taken"
"""Folder of the files linked so far from the user's unpacked data set."""
UNPACKING = ".unpacking"
UNPACKED = ".unpacked"
"""Name of that folder once it is complete, so that its content only has to move up. It is deleted once the
record exists."""


@dataclass(frozen=True)
class LocalSource:
    """Files that the user already has: ``--from``."""

    path: Path
    sole: bool
    """Whether the path is a single file for the only wanted file, whatever its name."""

    def find(self, file: SourceFile) -> Path | None:
        """Return the user's copy of a file: the path itself, or the file of that name in the folder."""
        if self.path.is_dir():
            return found if (found := self.path / file.name).is_file() else None
        return self.path if self.sole or self.path.name == file.name else None

    def laid_out(self, source: Source) -> bool:
        """Return whether the path is the unpacked data set."""
        return bool(source.provides) and all((self.path / place).exists() for place in source.provides)

    def kaggle(self, source: Source) -> Kaggle | None:
        """Return ImageNet in Kaggle's layout, if it is both wanted and given."""
        return Kaggle.find(self.path) if source.sort and self.path.is_dir() else None


def fetch_dataset(
    name: str, source: Source, folder: Path, given: LocalSource | None, stop: Stop
) -> dict[str, Any]:
    """Complete ``datasets/<name>``, without repeating the work of earlier sessions.

    Args:
        name: name of the source.
        source: the data set to make.
        folder: its folder, which shows either all of the data set or nothing.
        given: the user's own files, if any.
        stop: polled all the time.

    Returns:
        Results for the record.

    Raises:
        KitError: a file is unavailable or wrong, the disk is too small, or something is missing in the end.
        Interrupted: a signal stopped the call; the same call resumes.
    """
    own = given.path if given and given.laid_out(source) else None
    kaggle = given.kaggle(source) if given and not own else None
    downloads, taken = folder / DOWNLOADS, folder / TAKEN
    unpacking, unpacked = folder / UNPACKING, folder / UNPACKED
    if not unpacked.exists():
        there = [place for place in source.provides if (folder / place).exists()]
        if there == source.provides:  # put there by hand
            _look_through(name, source, folder)
            return _results(source, archives=False)
        if there:
            raise KitError(
                f"{folder} holds {there[0]} but not all of {', '.join(source.provides)}, and no pull made "
                "it; move it elsewhere, then run the same command"
            )
        if own or kaggle:
            if own:
                _look_through(name, source, own)  # before anything is copied
            shutil.rmtree(unpacking, ignore_errors=True)  # never mix other files with the user's
            shutil.rmtree(downloads, ignore_errors=True)
            if kaggle:
                _take(kaggle.files(), taken, stop)
                _look_through(name, source, taken)
            elif own:
                _take(_laid_out(source, own), taken, stop)
            os.sync()
            files.publish(taken, unpacked)
        else:
            shutil.rmtree(taken, ignore_errors=True)
            _unpack_all(name, source, folder, given, stop)
            _look_through(name, source, unpacking)
            os.sync()  # flush a million files before any of them counts as present
            files.publish(unpacking, unpacked)
    for entry in list(unpacked.iterdir()):
        entry.replace(folder / entry.name)
    shutil.rmtree(downloads, ignore_errors=True)
    # The empty folder stays until the record exists: without it, files that a killed pull has verified and
    # moved would look as if put there by hand.
    return _results(source, archives=not (own or kaggle))


def fetch_weights(
    name: str, source: Source, folder: Path, given: LocalSource | None, stop: Stop, *, untrained: bool
) -> dict[str, Any]:
    """Complete ``checkpoints/weights/<name>``: fetch its file, verify, load and inspect it.

    Args:
        name: name of the source.
        source: the weights to fetch.
        folder: their folder.
        given: the user's own file, if any.
        stop: polled all the time.
        untrained: whether the weights should be untrained.

    Returns:
        Results for the record: the content of the file, see ``describe``.

    Raises:
        KitError: the file is unavailable, differs from the published or recorded one, or is no usable
            ResNet-50.
        Interrupted: a signal stopped the call; the same call resumes.
    """
    from triplet.pull.backbone import describe  # imports torch, seconds that data sets need not wait

    lock, results = checksums.Lock(), {}
    for file in source.files:
        key, path = f"{folder.name}/{file.name}", folder / file.name
        known = file.checksum or lock.find(key)
        found, staged = path, folder / DOWNLOADS / file.name
        if not path.exists():
            found = _obtain(name, source, file, known, folder, given, stop)
            if found != staged:
                staged.parent.mkdir(exist_ok=True)
                files.link_or_copy(found, staged)
                found = staged
        try:
            verify(found, file, known, stop)
            results[file.name] = describe(found, untrained=untrained)
        except KitError:
            if found == staged:  # otherwise the next call would use this bad file again
                staged.unlink()
            raise
        if known is None:
            lock.record(key, files.sha256(found))
        if found == staged:
            files.publish(staged, path)
    shutil.rmtree(folder / DOWNLOADS, ignore_errors=True)
    return results


def left_to_fetch(
    source: Source, folder: Path, given: LocalSource | None = None
) -> dict[SourceFile, int | None]:
    """Return the files still to be fetched, with the missing bytes of each; None if unknown."""
    left: dict[SourceFile, int | None] = {}
    for file in source.files:
        staged = folder / DOWNLOADS / file.name
        if staged.exists() or _mark(folder, file).exists() or (given and given.find(file)):
            continue
        part = staged.with_name(f"{file.name}.part")
        came = part.stat().st_size if part.exists() else 0
        left[file] = file.bytes and max(0, file.bytes - came)
    return left


def _from_hand(name: str) -> str:
    return typed("pull", *name.split(), "--from", "FOLDER")


def _mark(folder: Path, file: SourceFile) -> Path:
    return folder / DOWNLOADS / f"{file.name}.unpacked"


def _unpack_all(name: str, source: Source, folder: Path, given: LocalSource | None, stop: Stop) -> None:
    """Fetch the archives in parallel, and unpack them in the order of the source."""
    if missing := [f.name for f in left_to_fetch(source, folder, given) if not source.urls(f)]:
        raise KitError(
            f"{', '.join(missing)} must be fetched by hand: {source.by_hand}; then run: {_from_hand(name)}"
        )
    _check_room(name, source, folder, given)
    (folder / DOWNLOADS).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(len(source.files)) as pool:
        coming = {
            file: pool.submit(_obtain, name, source, file, file.checksum, folder, given, stop)
            for file in source.files
            if not _mark(folder, file).exists()
        }
        for file, archive in coming.items():
            path = archive.result()
            if path.parent != folder / DOWNLOADS:
                verify(path, file, file.checksum, stop)
            if file.unpack:
                unpack(path, folder / UNPACKING, file.unpack, stop)
            _mark(folder, file).touch()
            if path.parent == folder / DOWNLOADS:
                path.unlink()
    if source.sort:
        sort_validation(folder / UNPACKING / source.sort.images, folder / UNPACKING / source.sort.devkit)


def _check_room(name: str, source: Source, folder: Path, given: LocalSource | None) -> None:
    left = sum(size or 0 for size in left_to_fetch(source, folder, given).values())
    needed = left + sum(f.bytes_unpacked for f in source.files if not _mark(folder, f).exists())
    needed -= sum(size for _, size in files.walk(folder / UNPACKING))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise KitError(
            f"{name} needs {amount(needed)} more, {folder} has {amount(free)} free; "
            "free some, or set TRIPLET_DATASETS to a larger disk"
        )


def _obtain(
    name: str,
    source: Source,
    file: SourceFile,
    checksum: str | None,
    folder: Path,
    given: LocalSource | None,
    stop: Stop,
) -> Path:
    """Return the path of a file: the user's own, or one that is fetched and verified."""
    staged = folder / DOWNLOADS / file.name
    if staged.exists():
        return staged
    if given and (own := given.find(file)):
        return own
    urls = source.urls(file)
    if checksum is None and urls[1:]:
        say(f"pull: {file.name}: its mirrors are not asked before its SHA-256 is known")
        urls = urls[:1]
    wanted = DownloadSpec(file.name, urls, checksum, file.bytes, source.token(urls[0]))
    try:
        download(wanted, staged, stop)
    except KitError as error:
        raise KitError(
            f"{error}; run the same command again, or fetch {file.name} with a browser and run: "
            f"{_from_hand(name)}; where else it may be, and how to add a mirror: docs/weights.md"
        ) from None
    return staged


def verify(path: Path, file: SourceFile, checksum: str | None, stop: Stop) -> None:
    """Raise KitError unless a file has the known length and checksum; Interrupted when stopped."""
    if file.bytes and path.stat().st_size != file.bytes:
        raise KitError(f"{path} has {path.stat().st_size} bytes, {file.name} as published has {file.bytes}")
    if checksum and (wrong := checksums.mismatch(path, checksum, stop, path.name)):
        raise KitError(f"{path}: its {wrong}; fetch it again")


def _laid_out(source: Source, given: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield each file of an unpacked data set, its path below the folder, and its size in bytes."""
    for place in source.provides:
        for name, size in files.walk(given / place):
            yield given / place / name, f"{place}/{name}", size


def _take(wanted: Iterable[tuple[Path, str, int]], folder: Path, stop: Stop) -> None:
    """Link or copy files into the folder."""
    found = list(wanted)
    with Bar("pull: linking or copying files", len(found)) as bar:
        for path, name, size in found:
            target = folder / name
            if stop:
                raise stop.interrupted(f"{bar.done} of {len(found)} files are taken over")
            if not target.exists() or target.stat().st_size != size:
                target.parent.mkdir(parents=True, exist_ok=True)
                files.link_or_copy(path, target)
            bar.step()


def _look_through(name: str, source: Source, folder: Path) -> None:
    say(f"pull: looking through {name}")
    wrong = [f"{place} is missing" for place in source.provides if not (folder / place).exists()]
    wrong = wrong or list(problems(folder, source.expect))
    for line in wrong:
        say(f"pull: {name}: {line}")
    if wrong:
        raise KitError(
            f"{folder} is not {source.about}: {wrong[0]}; start over with: "
            f"{typed('pull', *name.split(), '--force')}"
        )


def _results(source: Source, *, archives: bool) -> dict[str, Any]:
    verified = {file.name: file.checksum for file in source.files} if archives else {}
    return {"verified": verified, **source.expect.model_dump()}
