"""A part of a data set, such as the training images: its files and their content."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from triplet.annotations.coco import bad_name
from triplet.annotations.image_files import is_file

NAMES = {
    "train": re.compile(r"train(ing)?(20\d\d)?", re.IGNORECASE),
    "val": re.compile(r"val(id|idation)?(20\d\d)?", re.IGNORECASE),
}
"""Names that tools give to the two parts."""
SEPARATORS = re.compile(r"[/\\]|\?d=")
"""Separators in paths that tools write; Label Studio puts ``/data/local-files/?d=`` before one."""


@dataclass(frozen=True)
class PartFiles:
    """Location of a part of a data set."""

    annotations: Path
    """File with the annotations: a JSON in COCO's format, or the YAML of a YOLO data set."""
    images: Path
    """Folder to which the file names are relative."""
    listed: tuple[Path, ...] = ()
    """For YOLO: folders of images, or lists of images."""


@dataclass(frozen=True)
class AnnotatedPart:
    """Images and their annotations in the normal form."""

    content: dict[str, Any]
    """COCO's three tables, checked; ids are integers."""
    images: Path
    """Folder to which the file names are relative."""
    source: Path
    """The user's file, for messages."""


LONGEST_PATH = 4096
"""Longest path in characters that Linux opens."""


def split_path(text: str) -> list[str]:
    """Return the folders and the name in a path that a tool has written."""
    return [part for part in SEPARATORS.split(text) if part not in ("", ".", "..")]


def name_below(folder: Path, name: str) -> str:
    """Find a file that a tool names by its own path; return its path below the folder, '' if it is missing.

    Tools write the path on their own machine, ``../../label-studio/data/upload/1/a.jpg``, an address, maybe
    with a query, backslashes, or ``%20`` for a blank, and macOS packs names with umlauts as two characters.
    """
    if len(name) > LONGEST_PATH:
        return ""
    address = name.partition("?")[0]
    for text in dict.fromkeys((name, unquote(name), address, unquote(address))):
        parts = split_path(text)
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        for below in (each for tail in tails for each in (tail, f"images/{tail}")):
            forms = (unicodedata.normalize(form, below) for form in ("NFC", "NFD"))
            for each in dict.fromkeys((below, *forms)):
                if not bad_name(each) and is_file(folder / each):
                    return each
    return ""
