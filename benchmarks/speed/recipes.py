"""The recipes that the benchmarks of this folder train: both of them, whole, small or tiny."""

from triplet.config import load
from triplet.paths import CONFIGS
from triplet.pretrain.config import Pretrain

RELEASED = CONFIGS / "pretrain" / "triplet_resnet50_8x196x4-larscos-1000e_imagenet.yaml"
FAST = CONFIGS / "pretrain" / "triplet_resnet50_8x196x4-larscos-1000e-fast_imagenet.yaml"

# For tests: every line runs, no number means anything.
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
"""A step of the full ResNet-50 takes a core minutes."""


def recipes(
    batch: int, *, groups: int = 1, accumulate: int = 1, model: tuple[str, ...] = ()
) -> tuple[Pretrain, Pretrain]:
    """The released recipe and the fast one, with micro-batches of ``batch * groups`` images.

    Args:
        batch: images of a negative group.
        groups: of a micro-batch.
        accumulate: micro-batches of an optimiser step.
        model: further overrides, of both.
    """
    overrides = [
        f"loss.group={batch}",
        f"optimizer.groups={groups}",
        f"optimizer.accumulate={accumulate}",
        "optimizer.learning_rate=1e-3",  # one batch, over and over: the weights must stay where they are
        *model,
    ]
    return load(RELEASED, Pretrain, overrides), load(FAST, Pretrain, overrides)
