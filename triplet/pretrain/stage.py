"""The pretrain stage: train a checkpoint from a config and a folder of images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triplet import paths, records
from triplet.config import load
from triplet.errors import KitError
from triplet.images import Images, open_images, pixel_formats
from triplet.pretrain.config import Pretrain
from triplet.pretrain.estimate import fit
from triplet.pretrain.layout import make_layout
from triplet.pretrain.methods import check
from triplet.pretrain.trainer import pretrain as train
from triplet.progress import say
from triplet.training import checkpoint, distributed
from triplet.training.distributed import Processes, join

# Settings that do not change the result.
NEUTRAL = {"workers", "unreadable", "checkpoint_every", "max_to_keep", "monitor"}


def pretrain(
    run: str,
    config: Path,
    source: Path,
    overrides: Sequence[str] = (),
    *,
    weights: Path | None = None,
    force: bool = False,
) -> None:
    """Pretrain into ``checkpoints/<run>/pretrain``; see ``trainer.pretrain``.

    Under torchrun every process calls this; the main process keeps the record.

    Args:
        run: name of the folder below checkpoints/.
        config: a file of configs/pretrain/.
        source: the images, see ``images.open_images``.
        overrides: settings as ``key.sub=value``.
        weights: file to start from, see ``weights.initial``.
        force: whether to start over.

    Raises:
        KitError: bad settings or data, or processes that disagree.
    """
    settings = load(config, Pretrain, overrides)
    try:
        check(settings)
    except KitError as error:
        raise KitError(f"{config}: {error}") from None
    output = paths.stage_folder(run, "pretrain")
    with join() as processes:
        make_layout(settings, processes.size)
        processes.assert_same("config", settings.model_dump(mode="json"))
        if memory := processes.memory:
            settings = fit(settings, processes.size, memory)

        def work(images: Images, job: records.Job) -> None:
            train(settings, images, job, processes, weights)

        perform(
            output,
            settings.model_dump(mode="json", exclude=NEUTRAL),
            source,
            work,
            processes,
            weights=weights,
            force=force,
            seed=settings.seed,
        )


def perform(  # noqa: PLR0913 - as records.perform, by keyword where two have one type
    folder: Path,
    config: dict[str, Any],
    source: Path,
    train: Callable[[Images, records.Job], None],
    processes: Processes,
    *,
    weights: Path | None,
    force: bool,
    seed: int,
) -> None:
    """Perform a pretraining; every process calls this, and the main process keeps the record.

    Args:
        folder: the stage's folder.
        config: see ``records.perform``.
        source: the images.
        train: runs in every process, or in none if the stage is done already.
        processes: the processes that train together.
        weights: file to start from.
        force: whether to start over.
        seed: for the record.
    """
    inputs = {"images": source, **({"weights": weights} if weights else {})}
    seen = records.identities(inputs)
    images = open_images(source)
    processes.assert_same("set of images", images.names())
    if (said := pixel_formats(images)) and processes.is_main_process:
        say(f"pretrain: {said}")
    if processes.nodes > 1:  # a node's copy may have the right names and truncated files
        processes.assert_same("copy of the images", records.Artifact.of(source).sha256)
    if weights:
        processes.assert_same("file of initial weights", records.Artifact.of(weights).sha256)

    distributed.perform(
        processes,
        "pretrain",
        folder,
        work=lambda job: train(images, job),
        config=config,
        inputs=inputs,
        seen=seen,
        force=force,
        scratch=checkpoint.SCRATCH,
        trained=checkpoint.trained,
        planned=checkpoint.planned,
        seed=seed,
    )
