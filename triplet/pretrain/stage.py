"""The pretrain stage: a config and a folder of images become a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from triplet import records
from triplet.config import load
from triplet.images import open_images
from triplet.pretrain.config import Pretrain
from triplet.pretrain.distributed import join, perform
from triplet.pretrain.estimate import fit
from triplet.pretrain.layout import plan
from triplet.pretrain.trainer import pretrain as train

# Where these stand does not change the result.
NEUTRAL = {"workers", "unreadable", "checkpoint_every", "keep", "monitor"}


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

    Under torchrun every process calls this; the first one keeps the record.

    Args:
        run: folder below checkpoints/.
        config: one of configs/pretrain/.
        source: of images, see ``images.open_images``.
        overrides: ``key.sub=value``.
        weights: file to start from, see ``weights.initial``.
        force: start over.

    Raises:
        KitError: bad settings or data, or processes that do not fit together.
    """
    settings = load(config, Pretrain, overrides)
    output = records.stage_folder(run, "pretrain")
    with join() as processes:
        plan(settings, processes.size)
        processes.same("config", settings.model_dump(mode="json"))
        if memory := processes.memory:
            settings = fit(settings, processes.size, memory)
        images = open_images(source)
        processes.same("set of images", images.names())
        if processes.nodes > 1:  # names may agree where files are cut short
            processes.same("copy of the images", records.Artifact.of(source).sha256)
        inputs = {"images": source}
        if weights:
            inputs["weights"] = weights
            processes.same("file of initial weights", records.Artifact.of(weights).sha256)

        perform(
            processes,
            "pretrain",
            output,
            work=lambda job: train(settings, images, job, processes, weights),
            config=settings.model_dump(mode="json", exclude=NEUTRAL),
            inputs=inputs,
            force=force,
            seed=settings.seed,
        )
