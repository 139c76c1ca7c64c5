"""Detections of several methods beside the truth, small enough to lie inside the page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from triplet import paths
from triplet.images import open_file
from triplet.runs import Run

PIXELS = 16 << 20
"""Most pixels of a picture. Those of eval have some 300 000, but a record may name any file."""
WIDTHS = (638, 480, 318)
"""Widths in pixels of a panel, the first as eval draws it; that is taken at which ENOUGH images fit."""
ENOUGH = 3
GAP = 4
"""Pixels between the truth and the detections, which eval writes into one file."""
EACH = 8
"""Most runs of which each is shown; of more, one seed of each label."""
TOTAL = 700_000
"""Most characters of all pictures together, a third of the page's size."""


@dataclass(frozen=True)
class Found:
    """The detections of one method."""

    label: str
    run: str
    uri: str


@dataclass(frozen=True)
class Picture:
    """An image with its truth and the detections of each method."""

    name: str
    truth: str
    found: tuple[Found, ...]
    size: tuple[int, int]
    """Width and height in pixels, so that the page keeps room for it before it is decoded."""

    @property
    def runs(self) -> tuple[str, ...]:
        return tuple(each.run for each in self.found)


def pictures(runs: Sequence[Run]) -> list[Picture]:
    """Return pictures of each run, or of one seed of each label if there are many runs, with the same
    images for all; fewer if there are many labels.

    Methods evaluated on other images, such as those of another data set, are shown separately.
    """
    drawn = [run for run in runs if "eval" in run.stages and "pictures" in run.stages["eval"].outputs]
    first: dict[str, Run] = {}
    for run in sorted(drawn, key=lambda run: (run.name != run.label, run.name)):
        first.setdefault(run.label if len(drawn) > EACH else run.name, run)
    alike: dict[tuple[str, ...], list[Run]] = {}
    for run in first.values():
        data = run.stages["eval"].config.get("dataset", "")
        alike.setdefault((str(data), *_names(run)), []).append(run)
    images = [(name, same) for (_, *names), same in alike.items() for name in names]
    # The first image of each data set, then the second, as long as they fit.
    images.sort(key=lambda image: _names(image[1][0]).index(image[0]))
    found: list[Picture] = []
    for width in WIDTHS:
        if len(found) < min(ENOUGH, len(images)):
            found = _fitting(images, width)
    return found


def _fitting(images: Sequence[tuple[str, Sequence[Run]]], width: int) -> list[Picture]:
    """Return the first of these images with their runs, in panels of a width, as many as fit into TOTAL."""
    found: list[Picture] = []
    size = 0
    for name, same in images:
        halves = [(run, *pair) for run in same if (pair := _read(run, name, width))]
        if not halves:
            continue
        labels = [run.label for run, *_ in halves]
        shown = tuple(
            Found(run.label if labels.count(run.label) == 1 else run.name, run.name, detected)
            for run, _, detected, _ in halves
        )
        size += len(halves[0][1]) + sum(len(each.uri) for each in shown)
        if size > TOTAL:
            break
        found.append(Picture(name, halves[0][1], shown, halves[0][3]))
    return found


def _names(run: Run) -> list[str]:
    result: list[str] = run.stages["eval"].results.get("pictures", [])
    return result


def _read(run: Run, name: str, shown: int) -> tuple[str, str, tuple[int, int]] | None:
    """Return truth and detections, the two halves of a picture, as data URIs, and the size of a half."""
    path = paths.local(run.stages["eval"].outputs["pictures"].path) / name
    try:
        with open_file(path) as image:
            width, height = image.size
            if width * height > PIXELS:
                return None
            half = max(1, (width - GAP) // 2)
            whole = image.convert("RGB")
        left, right = whole.crop((0, 0, half, height)), whole.crop((width - half, 0, width, height))
        return _uri(left, shown), _uri(right, shown), (half, height)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # missing, or not an image
        return None


def _uri(image: Image.Image, width: int) -> str:
    image.thumbnail((width, 4 * width))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
