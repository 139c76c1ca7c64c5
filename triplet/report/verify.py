"""Verification of records: hashes of the files, and numbers recomputed from stored predictions."""

import contextlib
import hashlib
import io
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, Any

from pydantic import ValidationError

from triplet import paths, untrusted
from triplet.commands import typed
from triplet.errors import KitError, message_of
from triplet.progress import Bar, amount
from triplet.records import Artifact, Record
from triplet.report import crate
from triplet.report.results import flat
from triplet.runs import assemble
from triplet.scores import ENGINES, FASTEST, NUMBERS, CocoGroundTruth

OK, WRONG, ABSENT = "matches", "DOES NOT MATCH", "cannot be checked"
TOLERANCE = 1e-6
"""Difference of AP in percent that rounding may cause if an engine adds in another order."""
RESULTS = "reports/results.json"
ODD = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, RecursionError)
"""Errors raised by reading well-formed JSON of an unexpected shape."""
SLACK = 10 << 20
"""Bytes by which a file of a crate, or all of them together, may exceed the limit."""


@dataclass(frozen=True)
class Finding:
    what: str
    verdict: str
    why: str = ""


def local() -> list[Finding]:
    """Check every record of this machine, against its own data sets."""
    known = crate.all_records()
    found: list[Finding] = []
    with Bar("verify", len(known)) as bar:
        for name, record in known.items():
            for output, artifact in record.outputs.items():
                found.append(_compare(f"{name}: {output}", artifact, _here(paths.local(artifact.path))))
            if "predictions" in record.outputs:
                path = paths.local(record.outputs["predictions"].path)
                found += _again(name, record, path.open("rb") if path.is_file() else None, anywhere=True)
            bar.step()
    return found


def archived(path: Path) -> list[Finding]:
    """Check an exported crate without writing any of it to the disk.

    Raises:
        KitError: there is no such archive, or it was not made by ``triplet report --export``.
    """
    try:
        with untrusted.open_zip(path) as archive:
            return list(_archived(archive, path))
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, *ODD) as error:
        raise KitError(f"{path} is damaged or not a crate of the kit: {message_of(error, 200)}") from None


def _archived(archive: zipfile.ZipFile, path: Path) -> Iterator[Finding]:
    names = [_safe(info, path) for info in archive.infolist()]
    if crate.METADATA not in names:
        raise KitError(f"{path} has no {crate.METADATA}; expected what triplet report --export wrote")
    if len(set(names)) != len(names):
        raise KitError(f"{path} holds a name twice")
    sizes = {info.filename: info.file_size for info in archive.infolist()}
    recorded = sorted(name for name in names if name.endswith("/record.json"))
    _check_sizes(path, sizes, recorded)
    metadata = _json(archive, crate.METADATA, untrusted.METADATA)
    try:
        said = {each["@id"]: each["sha256"] for each in metadata["@graph"] if each["@type"] == "File"}
    except (KeyError, TypeError):
        raise KitError(f"{path}: its {crate.METADATA} is not one of the kit's") from None
    yield from _files(archive, said)
    known: dict[PurePath, Record] = {}
    for name in recorded:
        try:
            record = Record.model_validate_json(_text(archive, name, untrusted.RECORD))
        except ValidationError:
            yield Finding(name, WRONG, "is not a record")
            continue
        yield from _recorded(archive, name, record, said, sizes)
        if name.startswith("checkpoints/"):
            known[PurePosixPath(name).parent.relative_to("checkpoints")] = record
    if RESULTS in names:
        same = _json(archive, RESULTS, untrusted.METADATA) == json.loads(json.dumps(flat(assemble(known))))
        yield Finding(RESULTS, OK if same else WRONG, "" if same else "is not what the records say")


def _files(archive: zipfile.ZipFile, said: dict[str, str]) -> Iterator[Finding]:
    """Check that an archive holds exactly the listed files, by their SHA-256."""
    names = set(archive.namelist())
    for name in sorted(said.keys() | names - {crate.METADATA}):
        if name not in said:
            yield Finding(name, WRONG, "is not in the list of files")
        elif name not in names:
            yield Finding(name, WRONG, "is listed and not there")
        else:
            with archive.open(name) as file:
                sha = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
            yield Finding(
                name, OK if sha == said[name] else WRONG, "" if sha == said[name] else "has changed"
            )


def _recorded(
    archive: zipfile.ZipFile, name: str, record: Record, said: dict[str, str], sizes: dict[str, int]
) -> Iterator[Finding]:
    """Check the files in an archive against a record in it."""
    for output, artifact in record.outputs.items():
        there: Artifact | None = None
        if artifact.path in said:
            there = artifact.model_copy(update={"sha256": said[artifact.path]})
        elif inside := sorted((n for n in sizes if n.startswith(f"{artifact.path}/")), key=_walked):
            start = len(artifact.path) + 1
            there = Artifact.listed(artifact.path, ((n[start:], sizes[n]) for n in inside))
        if there is None:
            yield Finding(f"{name}: {output}", ABSENT, "is not in the archive")
        else:
            yield _compare(f"{name}: {output}", artifact, there)
    if "predictions" in record.outputs:
        path = record.outputs["predictions"].path
        # Paths that an archive names are not followed outside this machine's data sets.
        yield from _again(name, record, archive.open(path) if path in sizes else None, anywhere=False)


def _walked(name: str) -> list[tuple[bool, str]]:
    """Return the key that sorts names as ``files.walk`` does: a folder's files before its folders."""
    *folders, file = name.split("/")
    return [*((True, folder) for folder in folders), (False, file)]


def _here(path: Path) -> Artifact | None:
    return Artifact.of(path) if path.exists() else None


def _compare(what: str, recorded: Artifact, there: Artifact | None) -> Finding:
    if there is None:
        return Finding(what, WRONG, f"{recorded.path} is gone")
    same = there.sha256 == recorded.sha256
    return Finding(what, OK if same else WRONG, "" if same else f"{recorded.path} has changed")


def _again(
    name: str, record: Record, predictions: IO[bytes] | None, *, anywhere: bool
) -> Iterator[Finding]:
    """Evaluate stored predictions and compare every number with the one in the record."""
    what = f"{name}: numbers"
    truth = next((a for key, a in record.inputs.items() if key.endswith("annotations")), None)
    if predictions is None or truth is None:
        yield Finding(what, ABSENT, "its predictions are gone" if truth else "it names no annotations")
        return
    with predictions as file:
        inside = truth.path.startswith("datasets/") and ".." not in PurePosixPath(truth.path).parts
        path = paths.local(truth.path) if inside or anywhere else None
        if path is None or not path.is_file():
            yield Finding(what, ABSENT, f"{truth.path} is not here; run: {typed('pull')}")
            return
        if Artifact.of(path).sha256 != truth.sha256:
            yield Finding(what, ABSENT, f"{truth.path} is another file here")
            return
        engine = record.results.get("engine")
        tasks = [task for task in NUMBERS if task in record.results]
        try:
            detections = untrusted.parse_json(file.read(), what, most=untrusted.ANNOTATIONS)
            with contextlib.redirect_stdout(io.StringIO()):
                judge = CocoGroundTruth(path, engine if engine in ENGINES else FASTEST)
                scores = {task: judge.score(detections, task).numbers for task in tasks}
        except (KitError, *ODD):
            yield Finding(what, WRONG, "its predictions cannot be evaluated")
            return
    for task, numbers in scores.items():
        wrong = [key for key, value in numbers.items() if not _same(value, record.results[task].get(key))]
        shown = ", ".join(f"{key} {numbers[key]} not {record.results[task].get(key)}" for key in wrong[:3])
        yield Finding(f"{what} of {task}, evaluated again", WRONG if wrong else OK, shown)


def _same(value: float | None, recorded: Any) -> bool:
    if value is None or recorded is None:
        return value is recorded
    return isinstance(recorded, float | int) and abs(value - recorded) <= TOLERANCE


def _safe(info: zipfile.ZipInfo, path: Path) -> str:
    """Return the name of a member; KitError if it leads out of the folder or is not a plain file."""
    name = PurePosixPath(info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    odd = name.is_absolute() or ".." in name.parts or "\\" in info.filename or "\0" in info.filename
    bomb = info.file_size > untrusted.CRATE_EXPANSION * info.compress_size + SLACK
    if odd or bomb or info.is_dir() or kind not in (0, stat.S_IFREG):
        raise KitError(f"{path} holds {info.filename!r:.60}, which no crate of the kit does")
    return info.filename


def _check_sizes(path: Path, sizes: dict[str, int], recorded: list[str]) -> None:
    """Raise KitError if the files together, or the records, are larger than those of any crate."""
    most = untrusted.CRATE_EXPANSION * path.stat().st_size + SLACK
    if (total := sum(sizes.values())) > most:
        raise KitError(
            f"{path} unpacks to {amount(total)}, expected at most {amount(most)}: not a crate of the kit"
        )
    if (total := sum(sizes[name] for name in recorded)) > untrusted.METADATA:
        most = untrusted.METADATA
        raise KitError(
            f"{path}: its records have {amount(total)}, expected at most {amount(most)} together"
        )


def _text(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    size = archive.getinfo(name).file_size
    if size > most:
        raise KitError(f"{name} in the archive has {amount(size)}, expected at most {amount(most)}")
    return archive.read(name)


def _json(archive: zipfile.ZipFile, name: str, most: int) -> Any:
    return untrusted.parse_json(_text(archive, name, most), f"{name} in the archive", most=most)
