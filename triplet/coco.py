"""COCO 2017's layout: train2017/, val2017/ and annotations/instances_*2017.json."""

import json
from pathlib import Path
from typing import Any

from triplet.errors import KitError


def annotations(folder: Path, split: str) -> Path:
    """Path of a split's instance annotations; KitError when the folder's layout is another one."""
    path = folder / "annotations" / f"instances_{split}.json"
    for needed in (path, folder / split):
        if not needed.exists():
            raise KitError(
                f"{folder} is not in COCO 2017's layout: {needed.relative_to(folder)} is missing "
                "(expected train2017/, val2017/ and annotations/instances_*2017.json); "
                "see: triplet pull --help"
            )
    return path


def read(folder: Path, split: str) -> dict[str, Any]:
    """A split's instance annotations, with at least one of each kind.

    Raises:
        KitError: another layout or format, or nothing annotated.
    """
    path = annotations(folder, split)
    try:
        truth = json.loads(path.read_text())
        if all(truth[key] for key in ("images", "annotations", "categories")):
            return truth
    except (ValueError, KeyError, TypeError):
        pass
    raise KitError(f"{path} is not in COCO's annotation format, or annotates nothing")
