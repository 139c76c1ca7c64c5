"""Folders in COCO 2017's layout as Detectron2 data sets."""

import os
from pathlib import Path

from benchmarks.detection import compat  # noqa: F401
from triplet import coco
from triplet.errors import KitError

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances


def register(folder: Path, split: str) -> tuple[str, list[str]]:
    """Make a split known to Detectron2.

    Returns:
        The data set's name there, and the names of its categories.

    Raises:
        KitError: another layout, damaged annotations, or images that are missing.
    """
    truth = coco.read(folder, split)
    names = [image["file_name"] for image in truth["images"]]
    there = set(os.listdir(folder / split))
    missing = [name for name in names if name not in there]
    if missing:
        raise KitError(
            f"{folder / split}: {len(missing)} of {len(names)} annotated images are missing, "
            f"{missing[0]} first"
        )
    name = f"{folder.absolute()}/{split}"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(coco.annotations(folder, split)), str(folder / split))
    return name, [category["name"] for category in truth["categories"]]
