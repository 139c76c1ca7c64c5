"""The checkpoints that a training writes and resumes from."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from triplet import files, untrusted
from triplet.artifacts import Plan
from triplet.errors import KitError, message_of
from triplet.progress import say
from triplet.records import Upkeep
from triplet.training.distributed import Processes
from triplet.weights import torch_file
from triplet.weights.read import FORMAT

FINALS = ("checkpoint.pth", "model_final.pth")
"""Final files of finished runs."""
_BROKEN = (
    KitError,
    OSError,
    RuntimeError,
    pickle.UnpicklingError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
)


def save(
    path: Path,
    networks: nn.Module,
    optimizer: Optimizer | None,
    step: int,
    epoch: int,
    plan: Plan | None = None,
) -> None:
    """Write a checkpoint atomically, and its SHA-256 beside it as sha256sum does.

    Its keys are ``format``; ``step`` (of the optimiser) and ``epoch``, the numbers of finished ones;
    ``networks``, in a pretraining with ``online.backbone.*``, ``online.projector.*`` and the method's other
    parts (``predictor.*``, ``target.*``, ``queue``, ``bank``); ``optimizer`` (None for a finished run);
    ``plan``, see ``write``.

    Raises:
        KitError: a tensor is not finite, or the file cannot be written (a full disk); an earlier file is
            left untouched.
    """
    refuse_not_finite(networks.state_dict(), path.parent, step)
    state = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "networks": networks.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
    }
    write(path, state, plan)


def refuse_not_finite(state: dict[str, Tensor], folder: Path, step: int) -> None:
    """Raise KitError naming the last good checkpoint in ``folder`` if a tensor holds a NaN or infinity."""
    if odd := [name for name, value in state.items() if not value.isfinite().all()]:
        good = next((found.name for found in checkpoints(folder)), "none")
        raise KitError(
            f"{odd[0]} is not finite after step {step}: not saved; last good checkpoint: {good}; "
            "lower the learning rate"
        )


def write(path: Path, state: dict[str, Any], plan: Plan | None = None) -> None:
    """Write tensors and plain values atomically, and their SHA-256 beside them as sha256sum does.

    Args:
        path: path of the file.
        state: tensors and plain values by name.
        plan: the stage's plan, stored as ``plan``; a stage with another plan does not resume from the file.

    Raises:
        KitError: the file cannot be written (a full disk); an earlier file is left untouched.
    """
    if plan:
        state = {**state, "plan": plan.model_dump_json()}
    try:
        with files.atomic(path) as temporary:
            torch.save(state, temporary)
            # Write the SHA-256 first, so that no checkpoint is without one.
            files.write_text(_digest(path), f"{files.sha256(temporary)}  {path.name}\n")
    except (OSError, RuntimeError) as error:  # torch raises the latter when a write fails
        reason = message_of(error)
        raise KitError(f"{path} could not be written ({reason}); free disk space, then go on") from None


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints of an unfinished run, newest first."""
    found = (path for path in folder.glob("step_*.pth") if re.fullmatch(r"step_\d+\.pth", path.name))
    return sorted(found, key=step_of, reverse=True)


ASIDE = ".copy_of_step_"
SCRATCH = (
    "step_*.pth",
    "step_*.pth.sha256",
    f"step_*.pth{ASIDE}*",
    ".step_*.tmp",
    ".checkpoint.pth*.tmp",
)
"""Patterns of the files of an unfinished run."""


def step_of(path: Path) -> int:
    """Return the step in a checkpoint's name, which may differ from that in its content."""
    return int(path.stem.removeprefix("step_"))


def step_in(state: Any) -> int:
    """Return the optimiser step in a checkpoint's content; ValueError if it has none."""
    step = state["step"] if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        raise ValueError(f"it says no number of steps: {step!r:.40}")
    return step


def trained(folder: Path, unit: str = "steps") -> str:
    """Say how far a training is by the content of its checkpoints; '' if there are none."""
    done = reached(folder)
    return f"with {done} {unit} trained" if done else ""


def reached(folder: Path) -> int:
    """Return the highest optimiser step among the readable checkpoints of a folder, by their content."""
    return max((_peek(path) or 0 for path in checkpoints(folder)), default=0)


def planned(folder: Path) -> Plan | None:
    """Return the plan in a folder's newest or final checkpoint; None if neither has one."""
    for path in (*checkpoints(folder), *(folder / name for name in FINALS)):
        try:
            if found := plan_in(torch_file.read(path, checksums=False, mapped=True)):
                return found
        except _BROKEN:
            continue
    return None


UPKEEP = Upkeep(SCRATCH, trained, planned)
"""How the folder of a training is read and tidied."""


def plan_in(state: Any) -> Plan | None:
    """Return the plan in a checkpoint's content, None if it is too old to have one; ValueError if it is
    damaged."""
    said = state.get("plan") if isinstance(state, dict) else None
    return None if said is None else Plan.model_validate_json(said)


def _check_plan(state: Any, plan: Plan | None) -> None:
    """Raise ValueError if a checkpoint's content has a different plan."""
    theirs = plan_in(state)
    if plan and theirs and (changes := theirs.changes(plan)):
        raise ValueError(f"it is of another plan: {changes[0]}")


def keep(folder: Path, max_to_keep: int) -> None:
    """Delete all but the newest checkpoints, and the partial files of killed processes."""
    for unfinished in folder.glob(".step_*.tmp"):
        unfinished.unlink()
    for path in checkpoints(folder)[max_to_keep:]:
        _digest(path).unlink(missing_ok=True)
        path.unlink()


def resume(
    folder: Path,
    networks: nn.Module,
    optimizer: Optimizer,
    processes: Processes,
    steps: int,
    *,
    final: Path | None = None,
    plan: Plan | None = None,
) -> int:
    """Load the newest intact checkpoint in place on every process; return the optimiser steps done.

    Only the main process reads, so nodes need not share a file system. Missing momenta become zero.

    Args:
        folder: folder of the run.
        networks: networks to fill.
        optimizer: optimiser to fill.
        processes: all processes; each must call this.
        steps: number of steps of the whole run.
        final: a finished run's checkpoint, which may exist instead if the record is damaged.
        plan: plan of the run; see ``newest``.

    Raises:
        KitError: see ``newest``; or only a process other than the main one finds checkpoints.
    """
    found = None
    if processes.is_main_process:
        found = restore(folder, networks, optimizer, steps, final, plan)
    start: int = processes.broadcast_object(found)
    held = processes.gather(bool(checkpoints(folder)))
    if not start and any(held):
        raise KitError(
            f"process {held.index(True)} finds checkpoints in {folder} where process 0 finds none; "
            "copy them to the first node, or delete them to start over"
        )
    if start:
        momenta = [
            optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
            for group in optimizer.param_groups
            for p in group["params"]
        ]
        processes.broadcast([*networks.state_dict().values(), *momenta])
    return start


def restore(
    folder: Path,
    networks: nn.Module,
    optimizer: Optimizer,
    steps: int | None = None,
    final: Path | None = None,
    plan: Plan | None = None,
) -> int:
    """Load the newest intact checkpoint in place; return the optimiser steps done, 0 without one.

    Raises:
        KitError: there are checkpoints and none of them can be used.
    """

    def load(path: Path, state: dict[str, Any]) -> None:
        networks.load_state_dict(state["networks"])
        if state["optimizer"] is not None:  # a finished run's checkpoint has none
            optimizer.load_state_dict(state["optimizer"])

    if final and steps and (state := finished(final, steps, plan)):
        load(final, state)
        say(f"{folder.name}: {final.name} holds all {steps} steps")
        return steps
    return newest(folder, load, steps, plan)


def newest(
    folder: Path,
    load: Callable[[Path, dict[str, Any]], object],
    steps: int | None = None,
    plan: Plan | None = None,
) -> int:
    """Load the newest intact checkpoint; return its optimiser step, 0 if there is none.

    The content decides which one is the newest, see ``_rename_by_content``.

    Args:
        folder: folder of the run.
        load: called with a checkpoint's path and content.
        steps: number of steps of the whole run; a checkpoint with more belongs to another run.
        plan: plan of the run; a checkpoint with another plan is not used.

    Raises:
        KitError: there are checkpoints and none of them can be used.
    """
    _rename_by_content(folder)
    found = checkpoints(folder)
    for path in found:
        try:
            state = whole(path)
            step = step_in(state)
            if steps is not None and step > steps:
                raise ValueError(
                    f"it is of another run: it has {step} steps behind it, this one has {steps}"
                )
            _check_plan(state, plan)
            load(path, state)
        except _BROKEN as error:
            reason = message_of(str(error).removeprefix(f"{path} "), 120)
            say(f"{folder.name}: {path.name} is damaged ({reason}); trying the one before")
        else:
            return step
    if found:
        raise KitError(f"none of the {len(found)} checkpoints in {folder} can be used; add --force")
    return 0


def _rename_by_content(folder: Path) -> None:
    """Rename each checkpoint to the step in its content, and say so if its name was another.

    A duplicate is put aside, as it would count among the checkpoints that ``keep`` keeps.
    """
    for path in checkpoints(folder):
        if (step := _peek(path)) not in (None, step_of(path)):
            say(f"{folder.name}: {path.name} holds step {step}: that counts, and not its name")
            _rename(path, path.with_name(f"{path.name}{ASIDE}{step}"))
    # Two passes are needed, as names may have been exchanged.
    for path in folder.glob(f"step_*.pth{ASIDE}*"):
        if path.suffix != ".sha256":
            target = path.with_name(f"step_{int(path.name.rpartition(ASIDE)[2]):07d}.pth")
            if not target.exists() or _peek(target) is None:
                _rename(path, target)


def _rename(path: Path, target: Path) -> None:
    """Rename a checkpoint, its SHA-256 first, so that a kill in between leaves nothing unchecked."""
    if digest := _recorded(path):
        files.write_text(_digest(target), f"{digest}  {target.name}\n")
    path.replace(target)
    _digest(path).unlink(missing_ok=True)


def finished(path: Path, steps: int, plan: Plan | None = None) -> dict[str, Any] | None:
    """Return the intact final checkpoint of a run of ``steps`` steps; None if there is none, or if other
    checkpoints are left."""
    if checkpoints(path.parent) or _peek(path) != steps:
        return None
    try:
        state = whole(path)
        _check_plan(state, plan)
        return state
    except _BROKEN:
        return None


def _peek(path: Path) -> int | None:
    """Return the step in a checkpoint without reading its tensors; None for a damaged one."""
    try:
        return step_in(torch_file.read(path, checksums=False, mapped=True))
    except _BROKEN:
        return None


def whole(path: Path) -> dict[str, Any]:
    """Read a checkpoint within the bounds of ``triplet.weights.torch_file``.

    Raises:
        ValueError: its SHA-256 differs.
        KitError: a checksum inside differs, or it is not a checkpoint; see ``torch_file.read``.
    """
    digest = _recorded(path)
    if digest and digest != files.sha256(path):
        raise ValueError("its SHA-256 is another one")
    state: dict[str, Any] = torch_file.read(path, checksums=not digest)  # a copy may lack the digest
    return state


def _recorded(path: Path) -> str | None:
    """Return the SHA-256 that was written beside a checkpoint."""
    digest = _digest(path)
    said = untrusted.read_bytes(digest, untrusted.RECORD, "checksum") if digest.exists() else b""
    found = re.match(rb"[0-9a-f]{64}\b", said)
    return found[0].decode() if found else None


def _digest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
