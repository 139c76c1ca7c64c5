"""Records: what each stage leaves behind, and how the next one reads it.

A stage works in a folder of its own. ``started.json`` there has its plan; ``record.json`` is written last
and atomically, so its presence means that the stage is done.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import triplet
from triplet import energy, environment, files, untrusted
from triplet.artifacts import Artifact as Artifact
from triplet.artifacts import Job as Job
from triplet.artifacts import Plan as Plan
from triplet.artifacts import Record as Record
from triplet.commands import again, typed
from triplet.errors import KitError
from triplet.inputs import Inputs
from triplet.inputs import identities as identities
from triplet.paths import PLACES, local, portable, printable, root, stage_folder
from triplet.progress import say

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R")
command = ContextVar("command", default="")
"""The command that the user typed; the command line sets it."""
MARKERS = ("record.json", "started.json")
OLD_FORM = re.compile(r"0\.1(\.|$)")
"""Versions of the kit whose records have other names for settings; see CHANGELOG.md."""
SAME_FORM = ("pull", "pack")
"""Stages whose records have not changed since those versions."""
NAMED = ("pull", "pack", "predict")
"""Stages whose results each have a name of their own, besides or instead of the run's."""
LITTER = re.compile(
    r"\.lock|started\.json|record\.json|tensorboard|log(\.\d+)?\.txt|metrics\.jsonl?|unreadable\.txt|"
    r"not_finite\.txt|\..*\.tmp"
)
"""Files that a failed start leaves behind, which contain no work."""
FOREIGN = ".foreign"
"""File that marks a folder with files from before a stage first worked there: it is never emptied."""


@dataclass(frozen=True)
class Upkeep:
    """How an unfinished stage's folder is read, and what is deleted from it at the end."""

    scratch: Sequence[str] = ()
    """Patterns of files that only an unfinished stage needs, deleted once the record is written."""
    trained: Callable[[Path], str] = lambda folder: ""
    """Says in a phrase what starting over would delete from the folder, '' for nothing."""
    planned: Callable[[Path], Plan | None] = lambda folder: None
    """Returns the plan of the unfinished work in a folder, if started.json is not intact."""


def read(folder: Path) -> Record | None:
    """Read the record in a stage's folder; None if the stage is not done.

    Raises:
        KitError: it is damaged or of an old form, or names an output outside the kit's places: the kit
            never shows or packs other files, whatever a record made by others names.
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
        # Data sets may be links to another disk.
        inside = place == "datasets" or path.resolve().is_relative_to(root(place).resolve())
        if place not in PLACES or not inside:
            raise KitError(
                f"{folder / 'record.json'} names the output {artifact.path}, which lies outside of "
                f"{'/, '.join(PLACES)}/; remove that record"
            )
    return record


def begun(folder: Path, upkeep: Upkeep = Upkeep()) -> Plan | None:
    """Read the plan that a stage has finished or begun in a folder; None without an intact one."""
    done, _ = _unless_damaged(folder / "record.json", lambda: read(folder))
    started, _ = _unless_damaged(folder / "started.json", lambda: _load(folder / "started.json", _Started))
    return done or (started.plan if started else upkeep.planned(folder))


def resuming(folder: Path) -> str:
    """Return the command that goes on with the unfinished stage in a folder; '' if it is not known."""
    with suppress(KitError):
        if started := _load(folder / "started.json", _Started):
            return again(started.command, gpus=started.world_size)
    return ""


def require(run: str, stage: str) -> Record:
    """Read the record of a stage that must be done; if it is not, raise KitError saying what to run."""
    record = read(stage_folder(run, stage))
    if record is None:
        raise KitError(
            f"run {run!r} has no finished {stage} stage; run first: {typed(stage, '--run', run)}"
        )
    return record


def output(record: Record, name: str) -> Path:
    """Return the path of an output of a record; KitError if it is gone or differs from the record."""
    artifact = record.outputs[name]
    path = local(artifact.path)
    if not path.exists() or Artifact.of(path).sha256 != artifact.sha256:
        what = "changed since" if path.exists() else "gone though"
        raise KitError(f"{path} is {what} it was recorded; run again: {again(record.command, force=True)}")
    return path


def perform(  # noqa: PLR0913 - keyword arguments; a stage names the few that it needs
    stage: str,
    folder: Path,
    *,
    config: dict[str, Any],
    inputs: Mapping[str, Path],
    seen: Mapping[str, tuple[int, ...]] | None = None,
    work: Callable[[Job], None],
    force: bool = False,
    clear: bool = True,
    derived: bool = False,
    upkeep: Upkeep = Upkeep(),
    seed: int | None = None,
    world_size: int = 1,
) -> Record:
    """Run a stage, or find that it is done, and return its record.

    Done means that there is a record with the same config and inputs, and its outputs still exist. An
    interrupted stage resumes from the files in its folder. Files of another plan are refused if they are
    work, and replaced if they are not, see LITTER.

    Args:
        stage: name of the stage.
        folder: folder in which it works, which belongs to it alone.
        config: everything that the result depends on besides the inputs, as plain values.
        inputs: files or folders by name; they are hashed.
        seen: ``identities`` of inputs before they were read, if they were read before this call.
        work: does the work, given a Job to fill in.
        force: whether to start over in any case.
        clear: whether starting over empties the folder.
        derived: whether to replace the files of another plan without asking.
        upkeep: how the folder of unfinished work is read and tidied.
        seed, world_size: for the record, the latter the number of processes.

    Raises:
        KitError: see ``_find`` and ``Inputs``; or another process works in the folder.
    """
    with files.claimed(folder):
        given = Inputs(inputs, seen)
        plan = Plan(stage=stage, config=_plain(config), inputs=given.artifacts)
        _enter(folder, stage, upkeep, force=force, clear=clear)
        found = _Found() if force else _find(folder, plan, upkeep, derived=derived)
        if found.done:
            _tidy(folder, upkeep.scratch)
            say(f"{stage}: done already ({portable(folder)}, {found.done.seconds:.0f} s)")
            return found.done
        began = found.unfinished or _Started(plan=plan, started=_now(), energy_kwh=0)
        began = began.model_copy(update={"command": printable(command.get()), "world_size": world_size})
        job = Job(folder, plan=plan, lost_record=found.lost_record, check_inputs=given.check_files)
        with _timed(folder, began, job, keep_record=found.lost_record) as spent:
            work(job)
            given.check(folder)
        record = _describe(spent(), job, seed=seed, world_size=world_size)
        files.write_text(folder / "record.json", record.model_dump_json(indent=1))
        _tidy(folder, upkeep.scratch)
        return record


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they come back from a record's JSON: tuples as lists, every text printable."""
    plain: dict[str, Any] = json.loads(printable(json.dumps(values, ensure_ascii=False)))
    return plain


def _describe(spent: "_Started", job: Job, *, seed: int | None, world_size: int) -> Record:
    """Build the record of work that has just ended: its results and its environment."""
    return Record(
        **spent.plan.model_dump(),
        outputs={name: Artifact.of(path) for name, path in job.outputs.items()},
        results=_plain(job.results),
        kit=triplet.__version__,
        commit=environment.commit(),
        command=printable(command.get()),
        versions=environment.versions(),
        hardware=environment.hardware(),
        world_size=world_size,
        seed=seed,
        started=spent.started,
        ended=_now(),
        seconds=round(spent.seconds, 3),
        energy_kwh=spent.energy_kwh,
        images_per_second=job.images_per_second,
        image=environment.image(),
    )


def _enter(folder: Path, stage: str, upkeep: Upkeep, *, force: bool, clear: bool) -> None:
    """Make sure that a stage may work in a folder; empty it if ``perform`` starts over.

    Raises:
        KitError: the folder holds files of the user's or of another stage, which must not be lost.
    """
    ours = any((folder / name).exists() for name in MARKERS) or upkeep.planned(folder) is not None
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
    if not ours and (inner := next((each.parent for name in MARKERS for each in folder.rglob(name)), None)):
        raise KitError(
            f"{portable(folder)} is not a stage's folder but holds {portable(inner)}, which --force would "
            "delete; choose another name, or delete it by hand"
        )
    if ours or exclusive:
        _empty(folder)


@dataclass(frozen=True)
class _Found:
    """The traces of earlier sessions of a plan."""

    done: Record | None = None
    unfinished: "_Started | None" = None
    lost_record: bool = False
    """Whether there is a damaged record."""


def _find(folder: Path, plan: Plan, upkeep: Upkeep, *, derived: bool) -> _Found:
    """Find the traces of earlier sessions of a plan.

    Raises:
        KitError: the folder holds work of another plan, which is not ``derived``.
    """
    done, lost = _unless_damaged(folder / "record.json", lambda: read(folder))
    started, _ = _unless_damaged(folder / "started.json", lambda: _load(folder / "started.json", _Started))
    previous = done or (started.plan if started else upkeep.planned(folder))
    if previous and (changes := previous.changes(plan)):
        if not derived and (done or not all(LITTER.fullmatch(path.name) for path in folder.iterdir())):
            raise other(folder, plan.stage, changes, _loses(folder, done, upkeep))
        _empty(folder)
        return _Found()
    if done and not all(artifact.intact() for artifact in done.outputs.values()):
        done = None
    return _Found(done, started, lost)


def _loses(folder: Path, done: Record | None, upkeep: Upkeep) -> str:
    """Say what starting over would delete."""
    if done:
        unit = next((unit for unit in ("steps", "iterations") if done.results.get(unit)), None)
        return f"with {done.results[unit]} {unit} trained" if unit else ""
    return upkeep.trained(folder)


def _unless_damaged(path: Path, load: Callable[[], R | None]) -> tuple[R | None, bool]:
    """Load a marker, None without one; also return whether it is damaged, and say so."""
    try:
        return load(), False
    except _DamagedError:
        say(f"{path} is damaged: going on from what else is in {portable(path.parent)}")
        return None, True


@contextmanager
def _timed(
    folder: Path, began: "_Started", job: Job, *, keep_record: bool
) -> Iterator[Callable[[], "_Started"]]:
    """Mark a stage as started; if its work fails, save the seconds and the energy that it has taken.

    Yields:
        A function that returns both values so far, over all sessions.
    """
    clock = datetime.now(UTC)

    def spent() -> _Started:
        seconds = began.seconds + (datetime.now(UTC) - clock).total_seconds()
        used = energy.total((began.energy_kwh, job.energy_kwh))
        return began.model_copy(update={"seconds": seconds, "energy_kwh": used})

    if not keep_record:  # a damaged record, which the new one replaces
        (folder / "record.json").unlink(missing_ok=True)
    files.write_text(folder / "started.json", began.model_dump_json(indent=1))
    try:
        yield spent
    except BaseException:
        files.write_text(folder / "started.json", spent().model_dump_json(indent=1))
        raise


def other(folder: Path, stage: str, changes: list[str], holds: str = "") -> KitError:
    """Return the error for a folder that holds work of another plan.

    Args:
        folder: folder of the stage.
        stage: name of the stage.
        changes: see ``Plan.changes``.
        holds: what starting over would delete, if it is worth naming.
    """
    shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if changes[3:] else "")
    article = "an" if stage[0] in "aeiou" else "a"
    option = "--name" if stage in NAMED else "--run"
    return KitError(
        f"{portable(folder)} holds {article} {stage} of something else ({shown}){holds and f', {holds}'}; "
        f"add --force to {'delete that and start over' if holds else 'replace it'}, or "
        f"choose another {option}"
    )


class _Started(BaseModel):
    plan: Plan
    command: str = ""
    world_size: int = 1
    started: str
    seconds: float = 0.0
    energy_kwh: float | None = None


def _load(path: Path, schema: type[M]) -> M | None:
    try:
        return schema.model_validate_json(untrusted.read_bytes(path, untrusted.RECORD, "record"))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise _DamagedError(f"{path} is damaged; run its stage again") from None


class _DamagedError(KitError):
    """Raised if a marker exists but cannot be read."""


def _tidy(folder: Path, scratch: Sequence[str]) -> None:
    """Delete the files that a recorded stage no longer needs."""
    # A killed process leaves its temporary files, see ``files.atomic``.
    for pattern in ("started.json", files.LEFT_BEHIND, *scratch):
        for path in folder.glob(pattern):
            path.rmdir() if path.is_dir() else path.unlink()


def _stage_of(folder: Path) -> str | None:
    """Return the stage whose record or start a folder holds; None if none can be read."""
    with suppress(KitError):
        if done := _load(folder / "record.json", Plan):
            return done.stage
    with suppress(KitError):
        if started := _load(folder / "started.json", _Started):
            return started.plan.stage
    return None


def _empty(folder: Path) -> None:
    """Empty a stage's folder; delete the marker files last."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name in MARKERS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != ".lock":
            path.unlink()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
