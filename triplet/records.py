"""What each stage leaves behind, and how the next one reads it.

A stage works in a folder of its own. ``started.json`` there says what it set out to do; ``record.json``
is written last and atomically, so its presence means done.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import triplet
from triplet import environment, files
from triplet.errors import KitError
from triplet.paths import PLACES, local, portable, root, stage_folder
from triplet.progress import say

M = TypeVar("M", bound=BaseModel)
command = ContextVar("command", default="")
"""What the user typed; the command line sets it."""
MARKERS = ("record.json", "started.json")
OLD_FORM = re.compile(r"0\.1(\.|$)")
"""Versions of the kit whose records name settings otherwise; see CHANGELOG.md."""
SAME_FORM = ("pull", "pack")
"""Stages whose records have not changed since."""
FOREIGN = ".foreign"
"""Marks a folder that held files before a stage first worked there: it is never emptied."""


class Artifact(BaseModel):
    """A file, or a folder of files (its hash is that of the sorted list of names and sizes)."""

    path: str
    sha256: str
    bytes: int
    files: int = 1

    @classmethod
    def of(cls, path: Path) -> "Artifact":
        """Describe what is at the path; KitError when nothing is."""
        if path.is_file():
            return cls(path=portable(path), sha256=files.sha256(path), bytes=path.stat().st_size)
        if path.is_dir():
            return cls.listed(portable(path), files.walk(path))
        raise KitError(f"nothing at {path}")

    @classmethod
    def listed(cls, path: str, names: Iterable[tuple[str, int]]) -> "Artifact":
        """A folder of these files, (name, bytes) in the order of ``files.walk``."""
        listing, total, count = hashlib.sha256(), 0, 0
        for name, size in names:
            listing.update(f"{size} {name}\n".encode())
            total, count = total + size, count + 1
        return cls(path=path, sha256=listing.hexdigest(), bytes=total, files=count)

    def intact(self) -> bool:
        """Whether it is still there: a folder with the same listing, a file of the same size."""
        path = local(self.path)
        if path.is_dir():
            return Artifact.of(path).sha256 == self.sha256
        return path.is_file() and path.stat().st_size == self.bytes


class Plan(BaseModel):
    """What a stage sets out to do. Two equal plans have the same result."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Artifact]

    def changes(self, other: "Plan") -> list[str]:
        """What differs in ``other``, one phrase each: ``config.optimizer.lr 4.8 -> 3.2``."""
        before, after = self._flat(), other._flat()
        return [
            f"{key} {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]

    def _flat(self) -> dict[str, Any]:
        flat: dict[str, Any] = {
            f"input {name}": artifact.sha256[:12] for name, artifact in self.inputs.items()
        }

        def visit(prefix: str, value: Any) -> None:
            if isinstance(value, dict):
                for key, inner in value.items():
                    visit(f"{prefix}.{key}", inner)
            else:
                flat[prefix] = value

        visit("config", self.config)
        return flat


class Record(Plan):
    """What a stage did."""

    outputs: dict[str, Artifact]
    results: dict[str, Any]
    kit: str
    commit: str
    command: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    world_size: int
    seed: int | None
    started: str
    ended: str
    seconds: float
    """Of work, over all sessions of a stage that was interrupted and resumed."""
    images_per_second: float | None = None
    image: str | None = None
    """Of the container that it ran in, by its digest or ID."""


@dataclass
class Job:
    """What the work of a stage fills in."""

    folder: Path
    outputs: dict[str, Path] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    images_per_second: float | None = None


def read(folder: Path) -> Record | None:
    """The record in a stage's folder, None if the stage is not done.

    Raises:
        KitError: it is damaged or of an old form, or names an output outside of the kit's places: what a
            record of others names is neither shown nor packed unless it lies there.
    """
    record = _load(folder / "record.json", Record)
    if record and OLD_FORM.match(record.kit) and record.stage not in SAME_FORM:
        raise KitError(
            f"{folder / 'record.json'} was made by version {record.kit} of the kit, whose settings have "
            f"other names than those of {triplet.__version__}; run its stage again with --force, or go on "
            "with that version"
        )
    for artifact in record.outputs.values() if record else ():
        place, path = artifact.path.partition("/")[0], local(artifact.path)
        # Data sets may well be links to another disk.
        inside = place == "datasets" or path.resolve().is_relative_to(root(place).resolve())
        if place not in PLACES or not inside:
            raise KitError(
                f"{folder / 'record.json'} names the output {artifact.path}, which lies outside of "
                f"{'/, '.join(PLACES)}/; remove that record"
            )
    return record


def begun(folder: Path) -> Plan | None:
    """What a stage has done there or is in the middle of, None if neither; KitError if damaged."""
    started = _load(folder / "started.json", _Started)
    return read(folder) or (started.plan if started else None)


def require(run: str, stage: str) -> Record:
    """The record of a stage that must be done; KitError that says what to run otherwise."""
    record = read(stage_folder(run, stage))
    if record is None:
        raise KitError(f"run {run!r} has no finished {stage} stage; run first: make {stage} RUN={run}")
    return record


def output(record: Record, name: str) -> Path:
    """Path of an output of a record; KitError when it is gone or no longer what was recorded."""
    artifact = record.outputs[name]
    path = local(artifact.path)
    if not path.exists() or Artifact.of(path).sha256 != artifact.sha256:
        what = "changed since" if path.exists() else "gone though"
        raise KitError(f"{path} is {what} it was recorded; run again: {record.command} --force")
    return path


def perform(  # noqa: PLR0913 - keyword arguments, of which a stage names the few that it needs
    stage: str,
    folder: Path,
    *,
    config: dict[str, Any],
    inputs: Mapping[str, Path],
    work: Callable[[Job], None],
    force: bool = False,
    clear: bool = True,
    derived: bool = False,
    scratch: Sequence[str] = (),
    seed: int | None = None,
    world_size: int = 1,
) -> Record:
    """Run a stage, or find that it is done, and return its record.

    Done means: a record with the same config and inputs, whose outputs are still there. A stage that
    was interrupted goes on from what is in its folder, as long as it is still the same plan.

    Args:
        stage: its name.
        folder: where it works; belongs to it alone.
        config: everything the result depends on besides the inputs, as plain values.
        inputs: files or folders by name; they are hashed.
        work: does the work, given a Job to fill in.
        force: start over, whatever is there.
        clear: whether starting over empties the folder.
        derived: what is there of another plan is replaced without asking: nobody's result.
        scratch: patterns of files in the folder that only an unfinished stage needs. They are deleted once
            the record is written, not before: a stage that is killed meanwhile goes on from them.
        seed: for the record.
        world_size: number of processes, for the record.

    Raises:
        KitError: the folder holds the result of another plan (it says what differs), an input is
            missing, or another process is at work in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.claimed(folder):
        plan = Plan(
            stage=stage,
            config=json.loads(json.dumps(config)),  # tuples as the lists they are stored as
            inputs={name: Artifact.of(path) for name, path in inputs.items()},
        )
        _enter(folder, stage, force=force, clear=clear)
        done, unfinished = (None, None) if force else _find(folder, plan, derived=derived)
        if done:
            _tidy(folder, scratch)
            say(f"{stage}: done already ({portable(folder)}, {done.seconds:.0f} s)")
            return done
        began = unfinished or _Started(plan=plan, started=_now(), seconds=0.0)
        job = Job(folder)
        with _timed(folder, began) as spent:
            work(job)
        record = _describe(plan, job, began.started, spent(), seed=seed, world_size=world_size)
        files.write_text(folder / "record.json", record.model_dump_json(indent=1))
        _tidy(folder, scratch)
        return record


def _describe(
    plan: Plan, job: Job, started: str, seconds: float, *, seed: int | None, world_size: int
) -> Record:
    """The record of work that has ended just now: its results, and on what it was done."""
    return Record(
        **plan.model_dump(),
        outputs={name: Artifact.of(path) for name, path in job.outputs.items()},
        results=job.results,
        kit=triplet.__version__,
        commit=environment.commit(),
        command=command.get(),
        versions=environment.versions(),
        hardware=environment.hardware(),
        world_size=world_size,
        seed=seed,
        started=started,
        ended=_now(),
        seconds=round(seconds, 3),
        images_per_second=job.images_per_second,
        image=environment.image(),
    )


def _enter(folder: Path, stage: str, *, force: bool, clear: bool) -> None:
    """Make sure that a stage may work in a folder; empty it where ``perform`` is to start over.

    Raises:
        KitError: the folder holds files that are not the kit's, or another stage's, and may not be lost.
    """
    ours = any((folder / name).exists() for name in MARKERS)
    exclusive = folder.is_relative_to(root("checkpoints"))
    if not ours and any(path.name != ".lock" for path in folder.iterdir()):
        if exclusive and not force:
            raise KitError(f"{folder} holds files of unknown origin; add --force to empty it")
        if not exclusive:
            (folder / FOREIGN).touch()
    if not (force and clear):
        return
    if (theirs := _stage_of(folder)) not in (None, stage):
        raise KitError(
            f"{portable(folder)} holds a {theirs}, which --force would delete; choose another name, or "
            "delete the folder by hand"
        )
    if ours and (folder / FOREIGN).exists():
        raise KitError(
            f"{folder} held files before the kit worked there, which --force would delete; "
            "move them elsewhere, or delete the folder by hand"
        )
    if ours or exclusive:
        _empty(folder)


def _find(folder: Path, plan: Plan, *, derived: bool) -> tuple[Record | None, "_Started | None"]:
    """The record of a plan that is done, and what is left of an unfinished session of it.

    Raises:
        KitError: the folder holds something of another plan, which is not ``derived``.
    """
    done, unfinished = read(folder), _load(folder / "started.json", _Started)
    previous = done or (unfinished.plan if unfinished else None)
    if previous and (changes := previous.changes(plan)):
        if not derived:
            raise other(folder, plan.stage, changes)
        _empty(folder)
        return None, None
    if done and not all(artifact.intact() for artifact in done.outputs.values()):
        done = None
    return done, unfinished


@contextmanager
def _timed(folder: Path, began: "_Started") -> Iterator[Callable[[], float]]:
    """Mark a stage as started; when its work fails, keep the seconds that it has taken.

    Yields:
        A function that returns the seconds of work so far, over all sessions.
    """
    clock = datetime.now(UTC)

    def spent() -> float:
        return began.seconds + (datetime.now(UTC) - clock).total_seconds()

    (folder / "record.json").unlink(missing_ok=True)
    files.write_text(folder / "started.json", began.model_dump_json(indent=1))
    try:
        yield spent
    except BaseException:
        stopped = began.model_copy(update={"seconds": spent()})
        files.write_text(folder / "started.json", stopped.model_dump_json(indent=1))
        raise


def other(folder: Path, stage: str, changes: list[str], holds: str = "") -> KitError:
    """That a folder holds something of another plan.

    Args:
        folder: of the stage.
        stage: its name.
        changes: see ``Plan.changes``.
        holds: what starting over would delete, where it is worth naming.
    """
    shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if changes[3:] else "")
    return KitError(
        f"{portable(folder)} holds a {stage} of something else ({shown}){holds and f', {holds}'}; "
        "add --force to replace it (make: FORCE=1), or choose another --run"
    )


class _Started(BaseModel):
    plan: Plan
    started: str
    seconds: float


def _load(path: Path, schema: type[M]) -> M | None:
    try:
        return schema.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise KitError(f"{path} is damaged; run its stage again with --force") from None


def _tidy(folder: Path, scratch: Sequence[str]) -> None:
    """Delete what a stage that is on record needs no more."""
    unfinished = (f".{name}.*.tmp" for name in MARKERS)  # what a killed process was writing
    for pattern in ("started.json", *unfinished, *scratch):
        for path in folder.glob(pattern):
            path.unlink()


def _stage_of(folder: Path) -> str | None:
    """The stage whose record, or beginning, a folder holds; None for none that can be read."""
    with suppress(KitError):
        if done := _load(folder / "record.json", Plan):
            return done.stage
    with suppress(KitError):
        if started := _load(folder / "started.json", _Started):
            return started.plan.stage
    return None


def _empty(folder: Path) -> None:
    """Delete everything in a stage's folder, what says whose it is last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name in MARKERS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
