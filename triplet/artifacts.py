"""The parts of a record: files and folders with their hashes, a plan, and its results."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from triplet import files
from triplet.errors import KitError
from triplet.paths import local, portable


class Artifact(BaseModel):
    """A file, or a folder of files, hashed by the sorted list of their names and sizes."""

    path: str
    sha256: str
    bytes: int
    files: int = 1

    @classmethod
    def of(cls, path: Path) -> "Artifact":
        """Describe the file or folder at a path; KitError if there is none."""
        if path.is_file():
            return cls(path=portable(path), sha256=files.sha256(path), bytes=path.stat().st_size)
        if path.is_dir():
            return cls.listed(portable(path), files.walk(path))
        raise KitError(f"nothing at {path}")

    @classmethod
    def listed(cls, path: str, names: Iterable[tuple[str, int]]) -> "Artifact":
        """Describe a folder by its files, (name, bytes) in the order of ``files.walk``."""
        listing, total, count = hashlib.sha256(), 0, 0
        for name, size in names:
            listing.update(os.fsencode(f"{size} {name}\n"))
            total, count = total + size, count + 1
        return cls(path=path, sha256=listing.hexdigest(), bytes=total, files=count)

    def intact(self) -> bool:
        """Return whether the folder still has the same listing, or the file the same size."""
        path = local(self.path)
        if path.is_dir():
            return Artifact.of(path).sha256 == self.sha256
        return path.is_file() and path.stat().st_size == self.bytes


class Plan(BaseModel):
    """The plan of a stage. Two equal plans have the same result."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, Artifact]

    def changes(self, other: "Plan") -> list[str]:
        """Return a phrase for each difference of ``other``, such as ``config.optimizer.lr 4.8 -> 3.2``."""
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
    """The record of a stage."""

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
    """Seconds of work, over all sessions of a stage that was interrupted and resumed."""
    energy_kwh: float | None = None
    """Energy of the GPUs by their own counters, over all sessions; None if a GPU or a session was not
    measured."""
    images_per_second: float | None = None
    image: str | None = None
    """Image of the container that it ran in, by its digest or ID."""


@dataclass
class Job:
    """The part of a record that the work of a stage fills in."""

    folder: Path
    outputs: dict[str, Path] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    check_inputs: Callable[[], None] = lambda: None
    """Raise KitError if an input was replaced since the stage began. Long work calls this once it has read
    all inputs; for other work it is called at the end."""
    plan: Plan | None = None
    """Plan of the stage, which goes into its checkpoints; None except on the main process."""
    lost_record: bool = False
    """Whether a damaged record shows that the stage was done, so that its outputs may be whole."""
    images_per_second: float | None = None
    energy_kwh: float | None = None
    """Energy of all processes' GPUs in this session; None if it was not measured."""
