"""The pull stage: make a folder below datasets/ or checkpoints/weights/ for each named source."""

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triplet import coco, files, paths, records
from triplet.datasets.layouts import find, is_standard
from triplet.errors import Interrupted, KitError
from triplet.progress import say
from triplet.published.methods import load_methods
from triplet.pull import checksums, hub
from triplet.pull.download import DownloadSpec, download
from triplet.pull.fetch import UNPACKED, LocalSource, fetch_dataset, fetch_weights
from triplet.pull.sources import Source, load_sources
from triplet.pull.subset import Subset, take_subset
from triplet.pull.synthetic import Drawn, draw_dataset
from triplet.signals import Stop, graceful

COCO = ("train2017", "val2017", "annotations")
AT_ONCE = 4
"""Number of sources that are fetched in parallel; with more connections servers refuse some."""


@dataclass(frozen=True)
class Target:
    """A source and its destination."""

    name: str
    """Name as typed after ``triplet pull``."""
    source: Source
    folder: Path
    method: str | None = None
    """Method of the table that weights belong to."""

    @property
    def outputs(self) -> dict[str, Path]:
        names = [file.name for file in self.source.files] if self.method else self.source.provides
        return {name: self.folder / name for name in names}

    @property
    def untrained(self) -> bool:
        method = load_methods().get(self.method or "")
        return bool(method and method.untrained)


def targets(names: Sequence[str], methods: Sequence[str] | None = None) -> list[Target]:
    """Return the named sources: data sets, ``weights`` (of some methods, else of all), ``all``.

    Raises:
        KitError: a name is unknown.
    """
    sources = load_sources()
    known = [*sources.datasets, "weights", "all"]
    if unknown := next((name for name in names if name not in known), None):
        raise KitError(f"unknown source {unknown!r}; known: demo, subset, {', '.join(known)}")
    wanted = set(known if "all" in names else names)
    if methods and "weights" not in wanted:
        raise KitError(f"--method goes with weights: found it with {', '.join(names)}")
    if unknown := next((name for name in methods or () if name not in sources.weights), None):
        raise KitError(f"no weights of {unknown!r}; known: {', '.join(sources.weights)}")
    found = [
        Target(name, source, paths.root("datasets") / name)
        for name, source in sources.datasets.items()
        if name in wanted
    ]
    if "weights" in wanted:
        found += [
            Target(
                f"weights --method {method}", source, paths.root("checkpoints") / "weights" / method, method
            )
            for method, source in sources.weights.items()
            if not methods or method in methods
        ]
    return found


def pull_sources(wanted: Sequence[Target], given: Path | None = None, *, force: bool = False) -> None:
    """Fetch sources in parallel, each into its folder and with its record.

    Args:
        wanted: see ``targets``.
        given: a file or folder of the user's, used instead of fetching as far as it goes.
        force: whether to start over.

    Raises:
        KitError: a source failed; the others are finished first.
        Interrupted: a signal stopped the call; the same call resumes.
    """
    own = _given(given, wanted) if given else None
    failures = []
    with graceful() as stop, ThreadPoolExecutor(AT_ONCE) as pool:
        running = {}
        for target in wanted:
            context = contextvars.copy_context()  # new threads lack the context with the user's command
            running[target.name] = pool.submit(context.run, _pull_source, target, own, stop, force)
        stopped = None
        for name, future in running.items():
            try:
                future.result()
            except Interrupted as interrupted:
                stopped = interrupted
            except (KitError, OSError) as error:
                failures.append(f"{name}: {error}")
        if stopped:
            raise stopped
    if len(failures) > 1:
        for failure in failures:
            say(f"pull {failure}")
        others = "; the others are done" if len(failures) < len(wanted) else ""
        raise KitError(f"{len(failures)} of {len(wanted)} failed, see above{others}")
    if failures:
        raise KitError(failures[0])


def _given(path: Path, wanted: Sequence[Target]) -> LocalSource:
    """Return the user's file or folder; KitError unless it has something that is wanted."""
    path = path.expanduser()  # make passes ~ on unchanged
    if not path.exists():
        raise KitError(f"nothing at --from {path}")
    if inside := [t.folder for t in wanted if path.resolve().is_relative_to(t.folder.resolve())]:
        raise KitError(f"--from {path} lies in {inside[0]}, which the pull makes; move it elsewhere")
    names = [file.name for target in wanted for file in target.source.files]
    given = LocalSource(path, sole=len(names) == 1 and path.is_file())
    for target in wanted:
        laid_out = given.laid_out(target.source) or given.kaggle(target.source)
        if laid_out or any(given.find(file) for file in target.source.files):
            return given
    raise KitError(f"--from {path} is or holds none of {', '.join(names)}, and no unpacked data set")


def _pull_source(target: Target, given: LocalSource | None, stop: Stop, force: bool) -> None:
    def work(job: records.Job) -> None:
        if target.method:
            results = fetch_weights(
                target.name, target.source, target.folder, given, stop, untrained=target.untrained
            )
            if target.source.epochs is not None:
                results["epochs"] = target.source.epochs
        else:
            results = fetch_dataset(target.name, target.source, target.folder, given, stop)
        job.results.update(results)
        job.outputs.update(target.outputs)

    records.perform(
        "pull",
        target.folder,
        config={"source": target.source.identity()},
        inputs={},
        work=work,
        force=force,
        upkeep=records.Upkeep(scratch=(UNPACKED,)),
    )


def pull_hub(address: str, *, force: bool = False) -> Path:
    """Fetch a file of a model hub, ``hf://owner/name/file@revision``, to ``checkpoints/weights/hub/``.

    A local file that is named by its commit needs no network. Several processes may call this at once, such
    as the workers of one command: one fetches, the others wait.

    Returns:
        The path of the file.

    Raises:
        KitError: the file is unavailable, or has changed since it was recorded.
        Interrupted: a signal stopped the call; the same call resumes.
    """
    wanted = hub.parse(address)
    with files.locked(paths.root("checkpoints") / "weights" / "hub" / ".lock"), graceful() as stop:
        pinned = hub.pin(wanted)
        if not force and (found := hub.find(pinned)):
            return found
        folder, name = hub.folder_of(pinned), Path(pinned.file).name

        def work(job: records.Job) -> None:
            known = checksums.Lock().find(f"{pinned.repository}/{pinned.file}@{pinned.revision}")
            job.results["url"] = download(DownloadSpec(name, [str(pinned)], known), folder / name, stop)
            job.outputs[name] = folder / name

        records.perform("pull", folder, config={"hub": str(pinned)}, inputs={}, work=work, force=force)
    return folder / name


def pull_drawn(name: str, config: Drawn, *, force: bool = False) -> None:
    """Draw the demo's data set into ``datasets/<name>``."""
    folder = paths.dataset_folder(name)
    _pull(
        folder,
        {"drawn": config.model_dump(mode="json")},
        (*COCO, "unlabelled"),
        lambda: draw_dataset(folder, config),
        force=force,
    )


def pull_subset(name: str, source: Path, config: Subset, *, force: bool = False) -> None:
    """Copy a part of a folder in a known layout into ``datasets/<name>``, in COCO 2017's layout."""
    folder = paths.dataset_folder(name)
    if source.resolve() == folder.resolve():  # before anything is written there
        raise KitError(f"{source} cannot be a subset of itself; give another --name")
    _pull(
        folder,
        {"subset": config.model_dump(mode="json", exclude_none=True)},
        COCO,
        lambda: take_subset(source, folder, config),
        force=force,
        inputs=_annotations(source),
    )


def _annotations(source: Path) -> dict[str, Path]:
    """Return the annotation files of a folder in a known layout."""
    if is_standard(source):
        return {split: coco.annotations(source, split) for split in ("train2017", "val2017")}
    return {part: files.annotations for part, files in find(source)[1].items()}


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
