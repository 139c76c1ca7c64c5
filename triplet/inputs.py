"""The inputs of a stage, which must not change while it works."""

import hashlib
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from pathlib import Path

from triplet import files
from triplet.artifacts import Artifact
from triplet.errors import KitError
from triplet.paths import portable


def identities(inputs: Mapping[str, Path]) -> dict[str, tuple[int, ...]]:
    """Return for each input the values that change if the file is written or replaced; () if it is no
    file."""
    found = {name: path.stat() for name, path in inputs.items() if path.is_file()}
    kept = {
        # The time of the last change as well: a program can set the time of writing back.
        name: (each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns, each.st_ctime_ns)
        for name, each in found.items()
    }
    return {name: kept.get(name, ()) for name in inputs}


class Inputs:
    """The inputs of a stage as they were when it began.

    Files are identified by their content. A folder's artifact has only names and sizes, as hashing all of
    ImageNet takes a quarter of an hour; the times of writing are kept here as well, to notice a file that
    is replaced by one of the same size.

    Args:
        inputs: files or folders by name.
        seen: ``identities`` of the inputs before any of them was read.

    Raises:
        KitError: an input is missing, or was replaced since then.
    """

    def __init__(self, inputs: Mapping[str, Path], seen: Mapping[str, tuple[int, ...]] | None) -> None:
        self.paths, self.checked = inputs, False
        self.seen = identities(inputs)
        if odd := [inputs[name] for name, was in (seen or {}).items() if was != self.seen[name]]:
            raise KitError(f"{odd[0]} was replaced while it was read; run the same command again")
        self.folders = {name: _Folder(path) for name, path in inputs.items() if path.is_dir()}
        self.artifacts = {
            name: self.folders[name].artifact if name in self.folders else Artifact.of(path)
            for name, path in inputs.items()
        }

    def check_files(self) -> None:
        """Raise KitError if a file was replaced, as it is unknown which version was read."""
        self.checked = True
        now = identities(self.paths)
        if name := next((name for name, was in self.seen.items() if was and now[name] != was), None):
            self._compare(name, Artifact.of(self.paths[name]), "run the same command again")

    def check(self, folder: Path) -> None:
        """Raise KitError if an input has changed.

        Files that the stage has checked itself after reading them are not checked again, and new files in a
        folder do not matter to such a stage.

        Args:
            folder: folder of the stage.
        """
        advice = f"{portable(folder)} may be of either; add --force to start over"
        now = identities(self.paths)
        for name, path in self.paths.items():
            if name in self.folders:
                found, changed = self.folders[name].look_again()
                if not self.checked:
                    self._compare(name, found, advice)
                elif changed:
                    advice = (
                        "what was made is kept: run the same command again to take it as it is, or add "
                        "--force to start over"
                    )
                if changed:
                    raise KitError(
                        f"{path}: {changed} while the stage worked, so nothing is recorded: {advice}"
                    )
            elif not self.checked and (not now[name] or now[name] != self.seen[name]):
                self._compare(name, Artifact.of(path), advice)

    def _compare(self, name: str, now: Artifact, advice: str) -> None:
        before = self.artifacts[name].sha256
        if now.sha256 != before:
            raise KitError(
                f"{self.paths[name]} was replaced while the stage worked (SHA-256 {before[:12]} -> "
                f"{now.sha256[:12]}), so nothing is recorded: {advice}"
            )


class _Folder:
    """A folder's artifact, and for each file an 8-byte mark that changes if it is written or replaced."""

    def __init__(self, path: Path) -> None:
        self.path, self.marks = path, array("Q")
        self.artifact = Artifact.listed(portable(path), self._walk(self.marks, []))
        self.marks = array("Q", sorted(self.marks))

    def _walk(self, marks: "array[int]", names: list[str]) -> Iterator[tuple[str, int]]:
        """Yield names and sizes; collect each file's mark, and the name of the first new or changed
        file."""
        for name, size, written in files.walk_times(self.path):
            said = os.fsencode(f"{size} {written} {name}")
            mark = int.from_bytes(hashlib.blake2b(said, digest_size=8).digest())
            marks.append(mark)
            if not names and not self._knows(mark):
                names.append(name)
            yield name, size

    def _knows(self, mark: int) -> bool:
        place = bisect_left(self.marks, mark)
        return place < len(self.marks) and self.marks[place] == mark

    def look_again(self) -> tuple[Artifact, str]:
        """Return the present artifact, and what has changed in the earlier files; '' if nothing has."""
        marks, names = array("Q"), list[str]()
        found = Artifact.listed(self.artifact.path, self._walk(marks, names))
        lost = len(self.marks) - sum(map(self._knows, marks))
        such = f" ({names[0]} is another one, or new)" if names else ""
        return found, f"{lost} of {len(self.marks)} files were changed or removed{such}" if lost else ""
