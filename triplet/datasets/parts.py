"""A part of a data set, such as the images to train on: its files, and what they say."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PartFiles:
    """Location of a part of a data set."""

    annotations: Path
    """The file that describes it: a JSON in COCO's format, or the YAML of a YOLO data set."""
    images: Path
    """The folder that the file names are below."""
    listed: tuple[Path, ...] = ()
    """YOLO: folders of images, or lists of them."""


@dataclass(frozen=True)
class AnnotatedPart:
    """Images and their annotations in the normal form."""

    content: dict[str, Any]
    """COCO's three tables, checked; ids are whole numbers."""
    images: Path
    """The folder that the file names are below."""
    source: Path
    """The user's file, which messages name."""
