"""Detections beside the truth, small enough to lie inside the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from triplet import paths, untrusted
from triplet.runs import Run

WIDTH = 480
"""Pixels."""
TOTAL = 700_000
"""Characters of all pictures together: a third of what the page may have."""


@dataclass(frozen=True)
class Picture:
    run: str
    name: str
    """Of the image."""
    uri: str


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """Of one seed of each label, the same images of all; fewer images where there are many labels."""
    first: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: (run.name != run.label, run.name)):
        if "eval" in run.stages and "pictures" in run.stages["eval"].outputs:
            first.setdefault(run.label, run)
    drawn = [[picture for name in _names(run) if (picture := _read(run, name))] for run in first.values()]
    found: list[Picture] = []
    size = 0
    for picture in (picture for alike in zip(*drawn, strict=False) for picture in alike):
        size += len(picture.uri)
        if size > TOTAL:
            break
        found.append(picture)
    return found


def _names(run: Run) -> list[str]:
    result: list[str] = run.stages["eval"].results.get("pictures", [])
    return result


def _read(run: Run, name: str) -> Picture | None:
    path = paths.local(run.stages["eval"].outputs["pictures"].path) / name
    try:
        with Image.open(path, formats=untrusted.IMAGE_FORMATS) as image:
            image.thumbnail((WIDTH, WIDTH))
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=70)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # gone, or no picture
        return None
    return Picture(run.name, name, f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
