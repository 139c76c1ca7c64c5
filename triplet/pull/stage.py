"""The pull stage: what is named in, a folder below datasets/ or checkpoints/ out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triplet import coco, records
from triplet.errors import KitError
from triplet.pull.drawn import Drawn, draw_dataset
from triplet.pull.fetch import fetch, load_sources
from triplet.pull.subset import Subset, take_subset

COCO = ("train2017", "val2017", "annotations")


def pull_drawn(name: str, config: Drawn, *, force: bool = False) -> None:
    """Draw the demo's data set into ``datasets/<name>``."""
    folder = records.root("datasets") / name
    _pull(
        folder, {"drawn": config.model_dump(mode="json")}, (*COCO, "unlabelled"),
        lambda: draw_dataset(folder, config), force=force,
    )  # fmt: skip


def pull_subset(name: str, source: Path, config: Subset, *, force: bool = False) -> None:
    """Take a part of a folder in COCO 2017's layout into ``datasets/<name>``."""
    folder = records.root("datasets") / name
    if source.resolve() == folder.resolve():  # before anything is written there
        raise KitError(f"{source} cannot be a subset of itself; give another --name")
    _pull(
        folder, {"subset": config.model_dump(mode="json")}, COCO,
        lambda: take_subset(source, folder, config), force=force,
        inputs={split: coco.annotations(source, split) for split in ("train2017", "val2017")},
    )  # fmt: skip


def pull_source(name: str, *, force: bool = False) -> None:
    """Fetch one of configs/sources.yaml."""
    sources = load_sources()
    if name not in sources:
        raise KitError(f"unknown source {name!r}; known: demo, subset, {', '.join(sources)}")
    source = sources[name]
    folder = records.local(source.into)
    _pull(
        folder, {"source": source.model_dump(mode="json")}, source.provides,
        lambda: fetch(source, folder), force=force,
    )  # fmt: skip


def _pull(
    folder: Path,
    config: dict[str, Any],
    provides: Sequence[str],
    work: Callable[[], None],
    *,
    force: bool,
    inputs: dict[str, Path] | None = None,
) -> None:
    def fill(job: records.Job) -> None:
        work()
        job.outputs.update({item: folder / item for item in provides})

    records.perform("pull", folder, config=config, inputs=inputs or {}, work=fill, force=force)
