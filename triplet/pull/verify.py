"""Verify that a data set is complete: counts, annotated images, images that decode."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from triplet import coco, files, untrusted
from triplet.annotations import image_files
from triplet.errors import KitError
from triplet.images import SUFFIXES, open_file
from triplet.pull.sources import Expect

SAMPLE = 64
"""Number of images to decode in a folder, evenly spread over it."""


def problems(folder: Path, expect: Expect) -> Iterator[str]:
    """Yield a line for everything that is missing or wrong.

    Args:
        folder: the data set.
        expect: its expected content.
    """
    for place, count in expect.folders.items():
        found = sum(path.is_dir() for path in _entries(folder / place))
        if found != count:
            yield f"{place}: {found} folders, expected {count}"
    for place, count in expect.images.items():
        yield from _images(folder / place, place, count)
    for split, count in expect.annotations.items():
        yield from _annotations(folder, split, count, expect.images.get(split))
    for place, count in expect.lists.items():
        yield from _listed(folder / place, place, count)


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _images(folder: Path, place: str, count: int) -> Iterator[str]:
    if not folder.is_dir():
        yield f"{place} is missing"
        return
    names = [(name, size) for name, size in files.walk(folder) if Path(name).suffix.lower() in SUFFIXES]
    if len(names) != count:
        yield f"{place}: {len(names)} images, expected {count}"
    if empty := [name for name, size in names if not size]:
        yield f"{place}: {len(empty)} empty images: {_some(empty)}"
    sample = [name for name, _ in names[:: max(1, len(names) // SAMPLE)]]
    if broken := [name for name in sample if not _decodes(folder / name)]:
        yield f"{place}: {len(broken)} of {len(sample)} images tried do not decode: {_some(broken)}"


def _decodes(path: Path) -> bool:
    try:
        with open_file(path) as image:
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def _annotations(folder: Path, split: str, count: int, images: int | None) -> Iterator[str]:
    try:
        truth = coco.read(folder, split)
    except KitError as error:
        yield str(error)
        return
    if len(truth["annotations"]) != count:
        yield f"{split}: {len(truth['annotations'])} annotations, expected {count}"
    if images is not None and len(truth["images"]) != images:
        yield f"{split}: its annotations list {len(truth['images'])} images, expected {images}"
    if missing := sorted(
        image_files.missing(folder / split, [image["file_name"] for image in truth["images"]])
    ):
        yield f"{split}: {len(missing)} annotated images are missing: {_some(missing)}"


def _listed(path: Path, place: str, count: int) -> Iterator[str]:
    """Check a list such as ``VOC2007/ImageSets/Main/test.txt``, where each line is the number of an image
    and its annotation."""
    if not path.is_file():
        yield f"{place} is missing"
        return
    names = untrusted.read_text(path, untrusted.NAMES, "list of names").split()
    if len(names) != count:
        yield f"{place}: {len(names)} lines, expected {count}"
    root = path.parents[2]
    for kind, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        there = {entry.name for entry in _entries(root / kind)}
        if missing := [name + suffix for name in names if name + suffix not in there]:
            yield f"{place}: {len(missing)} of {kind} are missing: {_some(missing)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if names[5:] else "")
