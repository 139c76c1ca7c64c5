"""Classification with the backbone: linear, knn, semi on ImageNet; svm on VOC07."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triplet.cli.options import (
    TRAIN,
    VAL,
    Add,
    add_overrides,
    add_run,
    add_weights,
    data_path,
    weights_path,
)
from triplet.paths import kit_config

if TYPE_CHECKING:
    from benchmarks.linear.stage import ImageNetOptions


def add_commands(add: Add) -> None:
    """Add the commands of this group."""
    linear = add("linear", _linear, "linear classification of ImageNet on the frozen backbone")
    _add_images(linear)
    _add_config(linear, "resnet50_8x32-coslr0.04-100e_imagenet.yaml")
    add_overrides(linear, "training.epochs=90")

    knn = add("knn", _knn, "nearest neighbours among ImageNet's features")
    _add_images(knn)
    _add_config(knn, "knn_imagenet.yaml")
    add_overrides(knn, "neighbours=[20,200]")

    _add_semi(add)

    svm = add("svm", _svm, "VOC07 by support vector machines, on all images and on a few")
    add_run(svm)
    _add_config(svm, "svm_voc07.yaml")
    add_weights(svm)
    _add_folder(svm, "data", "voc/VOCdevkit/VOC2007", "a VOC2007 folder")
    add_overrides(svm, "layers=[4,5]")


def _add_semi(add: Add) -> None:
    semi = add("semi", _semi, "finetuning on one or ten percent of ImageNet's labels")
    _add_images(semi)
    semi.add_argument(
        "--percent", type=int, choices=(1, 10), default=1, help="which config (default: %(default)s)"
    )
    semi.add_argument("--config", type=Path, help="another one of configs/linear/")
    semi.add_argument("--list", type=Path, metavar="FILE", help="the images to train on, one a line")
    semi.add_argument("--draw", action="store_true", help="a share of each class by the seed, not a list's")
    add_overrides(semi, "training.head=10")


def _add_images(command: argparse.ArgumentParser) -> None:
    """Add the options of the commands on ImageNet."""
    add_run(command)
    add_weights(command)
    for name, default in (("data", TRAIN), ("val", VAL)):
        _add_folder(
            command,
            name,
            default,
            "images in a folder for each class, a list of 'path class', or packed shards",
        )
    command.add_argument("--classes", type=Path, metavar="FILE", help="only these, one name a line")


def _add_folder(command: argparse.ArgumentParser, name: str, default: str, what: str) -> None:
    command.add_argument(
        f"--{name}",
        default=default,
        metavar="FOLDER",
        help=f"{what}: a path, or a name below datasets/ (default: %(default)s)",
    )


def _add_config(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--config",
        type=Path,
        default=kit_config(f"linear/{default}"),
        help="one of configs/linear/ (default: %(default)s)",
    )


def _options(a: argparse.Namespace) -> "ImageNetOptions":
    from benchmarks.linear.stage import ImageNetOptions

    return ImageNetOptions(
        a.run, data_path(a.data), data_path(a.val), weights_path(a.weights), a.classes, force=a.force
    )


def _linear(a: argparse.Namespace) -> None:
    from benchmarks.linear.linear import linear

    linear(a.config, _options(a), a.overrides)


def _knn(a: argparse.Namespace) -> None:
    from benchmarks.linear.knn import knn

    knn(a.config, _options(a), a.overrides)


def _semi(a: argparse.Namespace) -> None:
    from benchmarks.linear.semi import semi

    default = f"semi_resnet50_4x64-steplr0.01-20e_imagenet-{a.percent}percent.yaml"
    config = a.config or kit_config(f"linear/{default}")
    semi(config, _options(a), a.overrides, listed=a.list, draw=a.draw)


def _svm(a: argparse.Namespace) -> None:
    from benchmarks.linear.svm import svm

    svm(a.run, a.config, data_path(a.data), a.overrides, weights=weights_path(a.weights), force=a.force)
