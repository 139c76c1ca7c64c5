"""What the stages on ImageNet share: who takes part, on which images, with which weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.linear.config import NEUTRAL, Common
from benchmarks.linear.data import Labelled, open_sets
from triplet import paths, records
from triplet.published.defaults import weights_of
from triplet.training import checkpoint
from triplet.training.distributed import Processes, join, perform


@dataclass(frozen=True)
class Task:
    """What the work of a stage is given."""

    run: str
    train: Labelled
    test: Labelled
    inputs: dict[str, Path]
    """Files and folders by name; ``weights`` is the file that is evaluated."""
    processes: Processes
    job: records.Job


def run_stage(
    stage: str,
    run: str,
    config: Path,
    settings: Common,
    work: Callable[[Task], None],
    *,
    train: Path,
    test: Path,
    weights: Path | None,
    classes: Path | None,
    force: bool,
    more: Mapping[str, Path] | None = None,
) -> None:
    """Do the work of a stage in ``checkpoints/<run>/<stage>/<config's name>`` and leave its record.

    Args:
        stage: its name.
        run: folder below checkpoints/, whose pretraining is evaluated.
        config: the file of the settings.
        settings: read from it.
        work: of every process.
        train: images, see ``data.open_sets``.
        test: images.
        weights: a file; default: the run's own pretraining, or the row's pulled weights.
        classes: a list of classes to keep.
        force: start over.
        more: further inputs.

    Raises:
        KitError: no weights, unfit images, processes that do not fit together, or what the work raises.
    """
    path = weights or weights_of(run)
    inputs = {"train": train, "test": test, "weights": path, **(more or {})}
    if classes:
        inputs["classes"] = classes
    with join() as processes:
        processes.assert_same("config", settings.model_dump(mode="json"))
        processes.use_cores(settings.loaders)
        processes.assert_same("file of weights", records.Artifact.of(path).sha256)
        ours, theirs = open_sets(train, test, classes)
        processes.assert_same(
            "set of images",
            [[s.images.names(), s.indices.tolist(), s.labels.tolist()] for s in (ours, theirs)],
        )
        for name, file in (more or {}).items():
            processes.assert_same(name, records.Artifact.of(file).sha256)
        if processes.nodes > 1:  # names may agree where files are cut short
            processes.assert_same(
                "copy of the images", [records.Artifact.of(p).sha256 for p in (train, test)]
            )
        perform(
            processes,
            stage,
            paths.stage_folder(run, stage) / config.stem,
            lambda job: work(Task(run, ours, theirs, inputs, processes, job)),
            config=settings.model_dump(mode="json", exclude=NEUTRAL),
            inputs=inputs,
            force=force,
            scratch=checkpoint.SCRATCH,
            seed=settings.seed,
        )
