"""Commands for a backbone: pretrain, with the kit's engine or OpenSelfSup's, and export."""

import argparse
from pathlib import Path

from triplet.cli.options import TRAIN, Add, add_overrides, add_run, add_weights, data_path, weights_path

ENGINES = {"kit": "pretrain", "openselfsup": "openselfsup"}
"""Name of an engine -> folder of its configs below configs/."""


def add_commands(add: Add) -> None:
    """Add the commands of this group."""
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
        help="one of configs/pretrain/, or of configs/openselfsup/ (default: the method's recipe)",
    )
    pretrain.add_argument(
        "--data",
        default=TRAIN,
        metavar="FOLDER",
        help="a folder of images, a list of them, or packed shards: a path, or a name below datasets/ "
        "(default: %(default)s)",
    )
    pretrain.add_argument(
        "--weights", metavar="FILE", help="start from these (a file, or hf://...), not from the seed"
    )
    add_overrides(pretrain, "schedule.epochs=200")
    export = add(
        "export", _export, "write a backbone for other libraries, by torchvision's names or as ONNX"
    )
    add_run(export)
    add_weights(export)
    export.add_argument(
        "--format",
        choices=("safetensors", "pth", "onnx"),
        default="safetensors",
        help="tensors as safetensors or by torch.save, or the network itself (default: %(default)s)",
    )


def _pretrain(a: argparse.Namespace) -> None:
    from triplet.defaults import recipe
    from triplet.pretrain.stage import PretrainOptions

    if a.engine == "openselfsup":
        from triplet.openselfsup.train import pretrain
    else:
        from triplet.pretrain.stage import pretrain
    config = a.config or recipe(Path(a.run).name, ENGINES[a.engine])
    source, weights = data_path(a.data), weights_path(a.weights)
    pretrain(PretrainOptions(a.run, config, source, a.overrides, weights, a.force))


def _export(a: argparse.Namespace) -> None:
    from triplet.export import export

    export(a.run, weights_path(a.weights), a.format, force=a.force)
