"""A part of a data set, such as the images to train on: its files, and what they say."""

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from triplet.annotations.coco import bad_name
from triplet.annotations.image_files import is_file

NAMES = {
    "train": re.compile(r"train(ing)?(2017)?", re.IGNORECASE),
    "val": re.compile(r"val(id|idation)?(2017)?", re.IGNORECASE),
}
"""Names that tools give to the two parts."""
SEPARATORS = re.compile(r"[/\\]|\?d=")
"""Between the parts of a path as tools write it; Label Studio has ``/data/local-files/?d=`` before one."""


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


LONGEST_PATH = 4096
"""Characters of a path that Linux opens."""


def name_below(folder: Path, name: str) -> str:
    """The path below a folder of a file that a tool names by a path of its own; '' where it is not there.

    Tools write the path on the machine that they ran on, ``../../label-studio/data/upload/1/a.jpg``, an
    address, backslashes, or ``%20`` for a blank, and macOS packs names whose umlauts are two characters.
    """
    if len(name) > LONGEST_PATH:
        return ""
    for text in dict.fromkeys((name, unquote(name))):
        parts = [part for part in SEPARATORS.split(text) if part not in ("", ".", "..")]
        tails = ["/".join(parts[first:]) for first in range(len(parts))]
        for below in (each for tail in tails for each in (tail, f"images/{tail}")):
            forms = (unicodedata.normalize(form, below) for form in ("NFC", "NFD"))
            for each in dict.fromkeys((below, *forms)):
                if not bad_name(each) and is_file(folder / each):
                    return each
    return ""
