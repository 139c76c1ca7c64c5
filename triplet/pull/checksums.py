"""Checksums of files, published or recorded at the first download."""

import hashlib
from pathlib import Path, PurePosixPath

from triplet import files, paths, untrusted
from triplet.errors import KitError
from triplet.progress import Bar, say
from triplet.pull import sources
from triplet.signals import Stop

CHUNK = 1 << 20


def digest(path: Path, kind: str, stop: Stop, *, title: str) -> str:
    """Return a file's ``md5`` or ``sha256`` checksum, showing progress; Interrupted if asked to stop."""
    hasher = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file, Bar(title, path.stat().st_size, of_bytes=True) as bar:
        while chunk := file.read(CHUNK):
            if stop:
                raise stop.interrupted(f"{path.name} is not verified yet")
            hasher.update(chunk)
            bar.step(count=len(chunk))
    return hasher.hexdigest()


def mismatch(path: Path, checksum: str, stop: Stop, name: str) -> str:
    """Say how a file differs from a checksum ``md5:...`` or ``sha256:...``; '' if it does not.

    Args:
        path: path of the file.
        checksum: the expected checksum.
        stop: see ``digest``.
        name: name of the file, for the progress.
    """
    kind, _, expected = checksum.partition(":")
    found = digest(path, kind, stop, title=f"pull: verifying {name}")
    return "" if found == expected else f"{kind} is {found}, expected {expected}"


class Lock:
    """SHA-256 of files without a published checksum, in the format of `sha256sum`.

    They are recorded in ``checkpoints/weights/SHA256SUMS``. Lines committed to ``configs/SHA256SUMS`` take
    precedence, so that a group agrees on the files, and a later user gets the same ones or none.
    """

    def __init__(self) -> None:
        self.own = paths.root("checkpoints") / "weights" / "SHA256SUMS"
        self.shared = sources.CONFIGS / "SHA256SUMS"

    def find(self, name: str) -> str | None:
        """Return the checksum of ``<method>/<file>``; None if it was never recorded."""
        for path in (self.shared, self.own):
            if name in (known := _read_sums(path)):
                return f"sha256:{known[name]}"
        return None

    def record(self, name: str, sha256: str) -> None:
        """Record the checksum of the first download; entries that other processes add meanwhile are kept.

        Raises:
            KitError: it is the same file as another method's.
        """
        with files.locked(self.own.with_name(".SHA256SUMS.lock")):
            known = _read_sums(self.own)
            for twin, value in (_read_sums(self.shared) | known).items():
                if value == sha256 and twin != name:
                    raise KitError(
                        f"{name} would be byte for byte {twin}: it is not the file of this method"
                    )
            known[name] = sha256
            files.write_text(self.own, "".join(f"{known[key]}  {key}\n" for key in sorted(known)))
        say(f"pull: recorded the SHA-256 of {name} in {paths.portable(self.own)}")


def _read_sums(path: Path) -> dict[str, str]:
    known = {}
    text = untrusted.read_text(path, untrusted.NAMES, "list of checksums") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), 1):
        value, gap, name = line.partition("  ")
        if not gap or len(value) != 64:
            raise KitError(
                f"{path}, line {number}: expected a SHA-256, two blanks, method/file, found {line!r:.60}"
            )
        known[PurePosixPath(name).as_posix()] = value
    return known
