"""What a training writes and goes on from."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from triplet import files
from triplet.errors import KitError
from triplet.progress import say
from triplet.training.distributed import Processes

FORMAT = "triplet-kit/1"
_BROKEN = (OSError, RuntimeError, pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError)


def save(path: Path, networks: nn.Module, optimizer: Optimizer | None, step: int, epoch: int) -> None:
    """Write a checkpoint atomically, and its SHA-256 beside it as sha256sum does.

    Its keys: ``format``; ``step`` (of the optimiser) and ``epoch``, both counting what is done;
    ``networks``, of a pretraining with ``online.backbone.*``, ``online.projector.*`` and what else the
    method has (``predictor.*``, ``target.*``, ``queue``, ``bank``); ``optimizer`` (None in a finished
    run's).

    Raises:
        KitError: a tensor is not finite, or it cannot be written (a full disk); what was there before is
            untouched.
    """
    refuse_not_finite(networks.state_dict(), path.parent, step)
    state = {
        "format": FORMAT,
        "step": step,
        "epoch": epoch,
        "networks": networks.state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
    }
    write(path, state)


def refuse_not_finite(state: dict[str, Tensor], folder: Path, step: int) -> None:
    """KitError with the last good checkpoint in ``folder`` when a tensor has a NaN or infinity."""
    if odd := [name for name, value in state.items() if not value.isfinite().all()]:
        good = next((found.name for found in checkpoints(folder)), "none")
        raise KitError(
            f"{odd[0]} is not finite after step {step}: not saved; last good checkpoint: {good}; "
            "lower the learning rate"
        )


def write(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values atomically, and their SHA-256 beside them as sha256sum does.

    Raises:
        KitError: it cannot be written (a full disk); what was there before is untouched.
    """
    try:
        with files.atomic(path) as temporary:
            torch.save(state, temporary)
            # First, so that no checkpoint is without.
            files.write_text(_digest(path), f"{files.sha256(temporary)}  {path.name}\n")
    except (OSError, RuntimeError) as error:  # torch raises the latter when a write fails
        reason = " ".join(str(error).split())[:160]
        raise KitError(f"{path} could not be written ({reason}); free disk space, then go on") from None


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of an unfinished run, newest first."""
    found = (path for path in folder.glob("step_*.pth") if re.fullmatch(r"step_\d+\.pth", path.name))
    return sorted(found, key=step_of, reverse=True)


SCRATCH = ("step_*.pth", "step_*.pth.sha256", ".step_*.tmp", ".checkpoint.pth*.tmp")
"""Patterns of what an unfinished run keeps; see ``records.perform``."""


def step_of(path: Path) -> int:
    """How many steps a checkpoint of that name has behind it."""
    return int(path.stem.removeprefix("step_"))


def keep(folder: Path, max_to_keep: int) -> None:
    """Delete all but the newest checkpoints, and what killed processes left half-written."""
    for unfinished in folder.glob(".step_*.tmp"):
        unfinished.unlink()
    for path in checkpoints(folder)[max_to_keep:]:
        _digest(path).unlink(missing_ok=True)
        path.unlink()


def resume(folder: Path, networks: nn.Module, optimizer: Optimizer, processes: Processes) -> int:
    """Load the newest whole checkpoint in place, on every process; the number of optimiser steps done.

    The first process alone reads: nodes need not share a file system. Momenta that are missing are zero.

    Raises:
        KitError: see ``restore``; or only another process than the first one finds checkpoints.
    """
    found = restore(folder, networks, optimizer) if processes.is_main_process else None
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


def restore(folder: Path, networks: nn.Module, optimizer: Optimizer) -> int:
    """Load the newest whole checkpoint in place; the number of optimiser steps done, 0 without one.

    Raises:
        KitError: there are checkpoints and none of them can be used.
    """

    def load(path: Path) -> None:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])

    return newest(folder, load)


def newest(folder: Path, load: Callable[[Path], object]) -> int:
    """The step of the newest checkpoint that is whole and that ``load`` takes; 0 if none is there.

    Raises:
        KitError: there are checkpoints and none of them can be used.
    """
    found = checkpoints(folder)
    for path in found:
        try:
            if _digest(path).read_text().split()[0] != files.sha256(path):
                raise ValueError("its SHA-256 is another one")
            load(path)
        except _BROKEN as error:
            reason = " ".join(str(error).split())[:120]
            say(f"{folder.name}: {path.name} is damaged ({reason}); trying the one before")
        else:
            return step_of(path)
    if found:
        raise KitError(f"none of the {len(found)} checkpoints in {folder} can be used; add --force")
    return 0


def _digest(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
