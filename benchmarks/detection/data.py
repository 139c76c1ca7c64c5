"""Folders in COCO 2017's layout as Detectron2 data sets."""

import json
import os
from pathlib import Path

from benchmarks.detection import compat  # noqa: F401  (before detectron2)
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from triplet.errors import KitError

SPLITS = ("train2017", "val2017")


def annotations(folder: Path, split: str) -> Path:
    """Path of a split's instance annotations; KitError when the layout is another one."""
    path = folder / "annotations" / f"instances_{split}.json"
    for needed in (path, folder / split):
        if not needed.exists():
            raise KitError(
                f"{folder} is not in COCO 2017's layout: {needed.relative_to(folder)} is missing "
                "(expected train2017/, val2017/ and annotations/instances_*2017.json); "
                "see: triplet pull --help"
            )
    return path


def register(folder: Path, split: str) -> tuple[str, int]:
    """Make a split known to Detectron2.

    Returns:
        The data set's name there, and its number of categories.

    Raises:
        KitError: another layout, damaged annotations, or images that are missing.
    """
    path = annotations(folder, split)
    try:
        truth = json.loads(path.read_text())
        names = [image["file_name"] for image in truth["images"]]
        categories = len(truth["categories"])
    except (ValueError, KeyError, TypeError) as error:
        raise KitError(f"{path} is not COCO's annotation format: {error!r}") from None
    there = set(os.listdir(folder / split))
    missing = [name for name in names if name not in there]
    if missing or not names:
        raise KitError(
            f"{folder / split}: {len(missing)} of {len(names)} annotated images are missing"
            + (f", {missing[0]} first" if missing else "")
        )
    name = f"{folder.absolute()}/{split}"
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_coco_instances(name, {}, str(path), str(folder / split))
    return name, categories
