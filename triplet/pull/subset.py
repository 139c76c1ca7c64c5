"""A small part of a data set in COCO 2017's layout, for trying things out."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from triplet import coco, files
from triplet.config import Settings
from triplet.datasets.layouts import is_standard
from triplet.datasets.source import DataSource
from triplet.datasets.source import read as read_own
from triplet.errors import KitError
from triplet.progress import Bar

VAL_SHARE = 0.2
"""Share of the images for validation if the data set has no validation part."""


class Subset(Settings):
    """Number of annotated images of each split."""

    train: Annotated[int, Field(ge=1)]
    val: Annotated[int, Field(ge=1)]
    classes: Annotated[int, Field(ge=1)] | None = None
    """Number of most frequent classes to keep; None keeps all."""


def take_subset(source: Path, folder: Path, config: Subset) -> None:
    """Take the first annotated images of each split, with their annotations, into COCO 2017's layout.

    Images are hard links if the file system allows it, else copies.

    Args:
        source: folder with train2017/, val2017/ and annotations/instances_*2017.json, or in another known
            layout.
        folder: the destination.
        config: the number of images; fewer are taken if there are no more.

    Raises:
        KitError: the layout is unknown, or an annotated image is missing.
    """
    counts = {"train2017": config.train, "val2017": config.val}
    contents = _read(source)
    if config.classes:
        _keep_most_frequent(contents, config.classes)
    with Bar("pull: subset", sum(counts.values())) as bar:
        for split, (where, content) in contents.items():
            annotated = {annotation["image_id"] for annotation in content["annotations"]}
            images = [image for image in content["images"] if image["id"] in annotated]
            images = images[: counts[split]]
            kept = {image["id"] for image in images}
            (folder / split).mkdir(parents=True, exist_ok=True)
            for image in images:
                _link(where / image["file_name"], folder / split / image["file_name"])
                bar.step()
            subset = {
                **content,
                "images": images,
                "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
            }
            files.write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(subset))


def _read(source: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the folder of images and the annotations of each split."""
    if is_standard(source):
        return {split: (source / split, coco.read(source, split)) for split in ("train2017", "val2017")}
    parts = read_own(DataSource(source, val_share=VAL_SHARE)).parts
    return {f"{name}2017": (part.images, part.content) for name, part in parts.items()}


def _keep_most_frequent(contents: dict[str, tuple[Path, dict[str, Any]]], count: int) -> None:
    """Drop all classes but those with the most training objects."""
    _, train = contents["train2017"]
    objects = Counter(each["category_id"] for each in train["annotations"])
    kept = {id for id, _ in objects.most_common(count)}
    for _, content in contents.values():
        content["categories"] = [each for each in content["categories"] if each["id"] in kept]
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] in kept]


def _link(source: Path, target: Path) -> None:
    if not source.is_file():
        raise KitError(f"{source} is annotated but missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.link_or_copy(source, target)
