"""COCO 2017's layout: train2017/, val2017/ and annotations/{instances,person_keypoints}_*2017.json."""

from pathlib import Path
from typing import Any

from triplet.annotations.coco import check
from triplet.commands import typed
from triplet.errors import KitError


def annotations(folder: Path, split: str, kind: str = "instances") -> Path:
    """Return the path of a split's annotations; KitError when the folder has another layout."""
    if not folder.exists():
        raise KitError(
            f"nothing at {folder}, expected a folder of annotated images; to fetch COCO 2017, run: "
            f"{typed('pull', 'coco')}"
        )
    path = folder / "annotations" / f"{kind}_{split}.json"
    for needed in (path, folder / split):
        if not needed.exists():
            raise KitError(
                f"{folder} is not in COCO 2017's layout: {needed.relative_to(folder)} is missing "
                f"(expected train2017/, val2017/ and annotations/{kind}_*2017.json); "
                f"see: {typed('pull', '--help')}"
            )
    return path


def read(folder: Path, split: str, kind: str = "instances") -> dict[str, Any]:
    """Read and check a split's annotations; see ``annotations.coco.check``.

    Raises:
        KitError: another layout or format, no annotations, or an unusable annotation.
    """
    return check(annotations(folder, split, kind)).content
