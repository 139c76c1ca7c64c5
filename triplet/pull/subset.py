"""A small part of a folder in COCO 2017's layout, for trying things out."""

import json
from pathlib import Path
from typing import Annotated

from pydantic import Field

from triplet import coco, files
from triplet.config import Settings
from triplet.errors import KitError
from triplet.progress import Bar


class Subset(Settings):
    """Number of annotated images of each split."""

    train: Annotated[int, Field(ge=1)]
    val: Annotated[int, Field(ge=1)]


def take_subset(source: Path, folder: Path, config: Subset) -> None:
    """Take the first annotated images of each split, with their annotations and all categories.

    Images are hard links where the file system allows it, else copies.

    Args:
        source: with train2017/, val2017/ and annotations/instances_*2017.json.
        folder: where to.
        config: how many; fewer are taken where there are no more.

    Raises:
        KitError: another layout, or an annotated image that is missing.
    """
    counts = {"train2017": config.train, "val2017": config.val}
    contents = {split: coco.read(source, split) for split in counts}
    with Bar("pull: subset", sum(counts.values())) as bar:
        for split, content in contents.items():
            annotated = {annotation["image_id"] for annotation in content["annotations"]}
            images = [image for image in content["images"] if image["id"] in annotated]
            images = images[: counts[split]]
            kept = {image["id"] for image in images}
            (folder / split).mkdir(parents=True, exist_ok=True)
            for image in images:
                _link(source / split / image["file_name"], folder / split / image["file_name"])
                bar.step()
            subset = {
                **content,
                "images": images,
                "annotations": [a for a in content["annotations"] if a["image_id"] in kept],
            }
            files.write_text(folder / "annotations" / f"instances_{split}.json", json.dumps(subset))


def _link(source: Path, target: Path) -> None:
    if not source.is_file():
        raise KitError(f"{source} is annotated but missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    files.link_or_copy(source, target)
