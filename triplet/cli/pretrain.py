"""Training a backbone: pretrain, by the kit's engine or by OpenSelfSup's."""

import argparse
from pathlib import Path

from triplet.cli.options import TRAIN, Add, add_overrides, add_run, data_path

ENGINES = {"kit": "pretrain", "openselfsup": "openselfsup"}
"""Whose training loop, and the folder of its configs below configs/."""


def add_commands(add: Add) -> None:
    """Add the command of this group."""
    pretrain = add("pretrain", _pretrain, "pretrain a backbone by the run's method")
    add_run(pretrain)
    pretrain.add_argument(
        "--engine",
        choices=tuple(ENGINES),
        default="kit",
        help="whose training loop: the kit's own, or OpenSelfSup's for comparison (default: %(default)s)",
    )
    pretrain.add_argument(
        "--config",
        type=Path,
        help="one of configs/pretrain/, or of configs/openselfsup/ (default: the recipe of the run's row)",
    )
    pretrain.add_argument(
        "--data",
        default=TRAIN,
        metavar="FOLDER",
        help="a folder of images, a list of them, or packed shards: a path, or a name below datasets/ "
        "(default: %(default)s)",
    )
    pretrain.add_argument(
        "--weights", type=Path, metavar="FILE", help="start from these, not from the seed"
    )
    add_overrides(pretrain, "schedule.epochs=200")


def _pretrain(a: argparse.Namespace) -> None:
    from triplet.published.defaults import recipe

    if a.engine == "openselfsup":
        from triplet.openselfsup.train import pretrain
    else:
        from triplet.pretrain.stage import pretrain
    config = a.config or recipe(Path(a.run).name, ENGINES[a.engine])
    pretrain(a.run, config, data_path(a.data), a.overrides, weights=a.weights, force=a.force)
