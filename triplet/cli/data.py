"""The user's own annotated images: the options that name them, and the command that checks them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from triplet.cli.options import Add, data_path
from triplet.commands import typed
from triplet.datasets import VAL_SHARE
from triplet.errors import KitError

if TYPE_CHECKING:
    from triplet.datasets.source import DataSource

COCO = "coco"
"""Folder of COCO 2017 below datasets/."""
CHECK = "check"


def add_commands(add: Add) -> None:
    """Add the command of this group."""
    data = add("data", _data, "look at annotated images before a training does: data check PATH")
    data.add_argument(
        "what",
        nargs="*",
        metavar="check PATH",
        help=f"a folder in a layout that finetune takes, or YOLO's YAML (default: {COCO}, below datasets/)",
    )
    data.set_defaults(words="what")
    add_source(data)
    add_split(data)
    data.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where to write twelve annotated images (default: below reports/data/)",
    )


def add_source(command: argparse.ArgumentParser, *, only_val: bool = False) -> None:
    """Add the options that name the data: a folder, or JSONs in COCO's format and their images."""
    command.add_argument(
        "--data",
        metavar="FOLDER",
        help="annotated images in COCO 2017's, Roboflow's, CVAT's, Label Studio's or YOLO's layout: a "
        f"path, or a name below datasets/ (default: {'what it was finetuned on' if only_val else COCO})",
    )
    for part in ("val",) if only_val else ("train", "val"):
        command.add_argument(
            f"--{part}", type=Path, metavar="FILE", help="instead of --data: a JSON in COCO's format"
        )
        command.add_argument(
            f"--{part}-images", type=Path, metavar="FOLDER", help="of its images (default: the JSON's own)"
        )


def add_split(command: argparse.ArgumentParser) -> None:
    """Add the options that split data without a validation part."""
    command.add_argument(
        "--val-share",
        type=_share,
        default=VAL_SHARE,
        metavar="SHARE",
        help="of the images, held out where the data has no val part; 0: none (default: %(default)s)",
    )
    command.add_argument(
        "--split-seed",
        type=int,
        default=0,
        metavar="N",
        help="which images these are (default: %(default)s)",
    )


def data_source(a: argparse.Namespace, default: str | None = None) -> "DataSource | None":
    """Return the data that the user named, or the default."""
    from triplet.datasets.source import DataSource

    train, train_images = getattr(a, "train", None), getattr(a, "train_images", None)
    name = a.data or (None if train or a.val else default)
    if not (name or train or a.val or train_images or a.val_images):
        return None
    share, seed = getattr(a, "val_share", 0.0), getattr(a, "split_seed", 0)
    return DataSource(
        data_path(name) if name else None, train, train_images, a.val, a.val_images, share, seed
    )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if 0 <= value < 1:
        return value
    raise argparse.ArgumentTypeError(f"found {text}, expected a share from 0 to below 1")


def _data(a: argparse.Namespace) -> None:
    from benchmarks.detection.visualize import draw_sheet
    from triplet.datasets.check import check

    words = a.what[1:] if a.what[:1] == [CHECK] else a.what
    if len(words) > 1 or (words and a.data):
        raise KitError(f"found {' '.join(a.what)}, expected one folder: {typed('data', 'PATH')}")
    a.data = words[0] if words else a.data
    source = data_source(a, COCO)
    assert source
    check(source, draw_sheet, a.picture)
