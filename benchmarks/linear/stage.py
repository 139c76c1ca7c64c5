"""The common part of the stages on ImageNet: processes, images and weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.linear.config import NEUTRAL, Common
from benchmarks.linear.data import Labelled, open_sets
from triplet import paths, records
from triplet.defaults import weights_of
from triplet.training import checkpoint
from triplet.training.distributed import Processes, join, perform


@dataclass(frozen=True)
class Task:
    """Input for the work of a stage."""

    run: str
    train: Labelled
    test: Labelled
    inputs: dict[str, Path]
    """Files and folders by name; ``weights`` is the file to evaluate."""
    processes: Processes
    job: records.Job

    @property
    def title(self) -> str:
        """The stage's name, for progress lines."""
        return self.job.folder.parent.name


@dataclass(frozen=True)
class ImageNetOptions:
    """Options of every stage on ImageNet."""

    run: str
    """Folder below checkpoints/ whose pretraining is evaluated."""
    train: Path
    """Training images, see ``data.open_sets``."""
    test: Path
    """Test images."""
    weights: Path | None = None
    """Weights file; None for the run's own pretraining, or the method's pulled weights."""
    classes: Path | None = None
    """A list of the classes to keep; None for all."""
    force: bool = False
    """Whether to start over."""


def run_stage(
    stage: str,
    config: Path,
    settings: Common,
    options: ImageNetOptions,
    work: Callable[[Task], None],
    more: Mapping[str, Path] | None = None,
) -> None:
    """Do the work of a stage in ``checkpoints/<run>/<stage>/<config's name>`` and write its record.

    Args:
        stage: name of the stage.
        config: file of the settings.
        settings: the settings read from it.
        options: the run and the images.
        work: function that every process runs.
        more: further inputs.

    Raises:
        KitError: no weights, unsuitable images, processes that disagree, or an error of the work.
    """
    path = options.weights or weights_of(options.run)
    inputs = {"train": options.train, "test": options.test, "weights": path, **(more or {})}
    if options.classes:
        inputs["classes"] = options.classes
    seen = records.identities(inputs)
    with join() as processes:
        processes.assert_same("config", settings.model_dump(mode="json"))
        processes.use_cores(settings.loaders)
        train, test = open_sets(options.train, options.test, options.classes)
        processes.assert_same(
            "set of images",
            [[s.images.names(), s.indices.tolist(), s.labels.tolist()] for s in (train, test)],
        )
        processes.assert_same_inputs(
            {"file of weights": path, **(more or {})}, (options.train, options.test)
        )
        perform(
            processes,
            stage,
            paths.stage_folder(options.run, stage) / config.stem,
            lambda job: work(Task(options.run, train, test, inputs, processes, job)),
            config=settings.model_dump(mode="json", exclude=NEUTRAL),
            inputs=inputs,
            seen=seen,
            force=options.force,
            upkeep=checkpoint.UPKEEP,
            seed=settings.seed,
        )
