"""The two recipes that these benchmarks train, in full, small or tiny size."""

from triplet.config import load
from triplet.paths import CONFIGS
from triplet.pretrain.config import Pretrain

RELEASED = CONFIGS / "pretrain" / "triplet_resnet50_8x196x4-larscos-1000e_imagenet.yaml"
FAST = CONFIGS / "pretrain" / "triplet_resnet50_8x196x4-larscos-1000e-fast_imagenet.yaml"

# For tests: every line runs, but the numbers mean nothing.
SMOKE = (
    "model.width=8",
    "model.hidden=32",
    "model.outputs=16",
    "views.size=64",
    "views.online.smallest=32",
    "views.online.largest=64",
    "views.target.smallest=32",
    "views.target.largest=64",
)
QUARTER = ("model.width=16",)
"""Overrides for the CPU, as a step of the full ResNet-50 takes one core minutes."""


def recipes(
    batch: int, *, groups: int = 1, accumulate: int = 1, model: tuple[str, ...] = ()
) -> tuple[Pretrain, Pretrain]:
    """Return the released recipe and the fast one, with micro-batches of ``batch * groups`` images.

    Args:
        batch: images in a negative group.
        groups: negative groups in a micro-batch.
        accumulate: micro-batches in an optimiser step.
        model: further overrides for both.
    """
    overrides = [
        f"loss.group={batch}",
        f"optimizer.groups={groups}",
        f"optimizer.accumulate={accumulate}",
        "optimizer.learning_rate=1e-3",  # the same batch repeats, so the weights must hardly change
        *model,
    ]
    return load(RELEASED, Pretrain, overrides), load(FAST, Pretrain, overrides)
