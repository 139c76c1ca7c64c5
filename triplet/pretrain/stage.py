"""The pretrain stage: a config and a folder of images become a checkpoint."""

from collections.abc import Sequence
from pathlib import Path

from triplet import records
from triplet.config import load
from triplet.pretrain.config import Pretrain
from triplet.pretrain.trainer import pretrain as train


def pretrain(
    run: str, config: Path, images: Path, overrides: Sequence[str] = (), *, force: bool = False
) -> None:
    """Pretrain into ``checkpoints/<run>/pretrain``; see ``trainer.pretrain``.

    Args:
        run: folder below checkpoints/.
        config: one of configs/pretrain/.
        images: folder of images, any depth.
        overrides: ``key.sub=value``.
        force: start over.
    """
    settings = load(config, Pretrain, overrides)
    # Where these two stand does not change the result.
    result = settings.model_dump(mode="json", exclude={"workers", "checkpoint_every"})
    records.perform(
        "pretrain",
        records.stage_folder(run, "pretrain"),
        config=result,
        inputs={"images": images},
        work=lambda job: train(settings, images, job),
        force=force,
        seed=settings.seed,
    )
