"""The pretrain stage: train a checkpoint from a config and a folder of images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class PretrainOptions:
    """Options of a pretraining, by either engine."""

    run: str
    """Folder below checkpoints/."""
    config: Path
    """A file of configs/pretrain/, or of the other engine's folder."""
    source: Path
    """The images, see ``images.open_images``."""
    overrides: Sequence[str] = ()
    """Settings as ``key.sub=value``."""
    weights: Path | None = None
    """File to start from; None to start from the seed."""
    force: bool = False
    """Whether to start over."""


def pretrain(options: PretrainOptions) -> None:
    """Pretrain into ``checkpoints/<run>/pretrain``; see ``trainer.pretrain``.

    Under torchrun every process calls this; the main process keeps the record.

    Raises:
        KitError: bad settings or data, or processes that disagree.
    """
    settings = load(options.config, Pretrain, options.overrides)
    try:
        check(settings)
    except KitError as error:
        raise KitError(f"{options.config}: {error}") from None
    with join() as processes:
        make_layout(settings, processes.size)
        processes.assert_same("config", settings.model_dump(mode="json"))
        if memory := processes.memory:
            settings = fit(settings, processes.size, memory)

        def work(images: Images, job: records.Job) -> None:
            train(settings, images, job, processes, options.weights)

        config = settings.model_dump(mode="json", exclude=NEUTRAL)
        perform(options, config, work, processes, seed=settings.seed)


def perform(
    options: PretrainOptions,
    config: dict[str, Any],
    train: Callable[[Images, records.Job], None],
    processes: Processes,
    *,
    seed: int,
) -> None:
    """Perform a pretraining; every process calls this, and the main process keeps the record.

    Args:
        options: the run, the images and the initial weights.
        config: see ``records.perform``.
        train: runs in every process, or in none if the stage is done already.
        processes: the processes that train together.
        seed: for the record.
    """
    folder, weights = paths.stage_folder(options.run, "pretrain"), options.weights
    inputs = {"images": options.source, **({"weights": weights} if weights else {})}
    seen = records.identities(inputs)
    images = open_images(options.source)
    processes.assert_same("set of images", images.names())
    if (said := pixel_formats(images)) and processes.is_main_process:
        say(f"pretrain: {said}")
    files = {"file of initial weights": weights} if weights else {}
    processes.assert_same_inputs(files, [options.source])
    distributed.perform(
        processes,
        "pretrain",
        folder,
        work=lambda job: train(images, job),
        config=config,
        inputs=inputs,
        seen=seen,
        force=options.force,
        upkeep=checkpoint.UPKEEP,
        seed=seed,
    )
