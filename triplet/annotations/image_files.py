"""Check that annotated images exist, can be decoded, and have the size that is annotated."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from triplet.annotations.findings import Findings
from triplet.errors import KitError
from triplet.images import SIXTEEN_BITS, open_file, to_eight_bits

THOROUGH = 1000
"""Number of images up to which each is decoded. Of more, only the headers and the last bytes are read."""
THREADS = 8
"""Threads that read files; they wait for the disk, not for each other."""
ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as its annotations describe it."""

    path: str
    width: int
    height: int
    used: bool = True
    """Whether the image has annotations: Detectron2 trains on no image without them."""


def missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the names, or paths below the folder, at which there is no file, in their order."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if not (is_file(folder / name) if "/" in name else name in there)]


def is_file(path: Path) -> bool:
    """Return whether there is a file; False for a name that is too long for one."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_images(images: Sequence[AnnotatedImage], total: int | None = None) -> tuple[Findings, Findings]:
    """Read headers as Detectron2 reads images: turned by EXIF, of the size that is annotated.

    Args:
        images: to look at, such as one process's share.
        total: how many there are in all, which decides whether each is decoded; see THOROUGH.

    Returns:
        What is wrong, and what is to be said: images of 16 bits, which are scaled to 8.
    """
    problems, notes = Findings(), Findings()
    decode = (total or len(images)) <= THOROUGH
    used = [image for image in images if image.used]
    with ThreadPoolExecutor(THREADS) as pool:
        for image, (kind, text) in zip(used, pool.map(lambda each: _look(each, decode), used), strict=True):
            if kind:
                (notes if kind == "16 bits" else problems).add(kind, f"{image.path} {text}")
    return problems, notes


def _look(annotated: AnnotatedImage, decode: bool) -> tuple[str, str]:
    """Return the kind of what is wrong with an image, and the rest of a sentence; ('', '') for nothing."""
    try:
        with open_file(annotated.path) as image:
            mode, ((width, height), turned) = image.mode, upright(image)
            if decode or not _ends_well(annotated.path, image.format):
                image.load()
            if mode in SIXTEEN_BITS:
                kind = "16 bits"
            else:
                kind = ""
                to_eight_bits(image)
    except KitError as error:
        return "mode", str(error)
    except Exception as error:  # Pillow's plug-ins raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        return "unreadable", f"or its annotations cannot be read ({reason}); mend it"
    if (width, height) != (annotated.width, annotated.height):
        how = f" as its EXIF orientation {turned} turns it" if turned > 1 else ""
        said = f"{annotated.width} x {annotated.height}"
        return "size", f"has {width} x {height} pixels{how}, its annotations say {said}"
    return kind, f"has pixels of 16 bits (mode {mode}), scaled to 8" if kind else ""


def upright_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as Detectron2 reads it, turned by EXIF.

    Raises:
        KitError: it cannot be read.
    """
    try:
        with open_file(path) as image:
            return upright(image)[0]
    except Exception as error:  # Pillow's plug-ins raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise KitError(f"{path} cannot be read ({reason}); mend it") from None


def upright(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Width and height of an opened image turned by EXIF, and EXIF's orientation, 1 for upright."""
    turned = _orientation(image)
    return (image.size[::-1] if turned in (5, 6, 7, 8) else image.size), turned


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 for upright."""
    try:
        # A PNG's own method would decode the pixels, to look behind them.
        exif = Image.Image.getexif(image)
    except Exception:  # damaged; Detectron2 takes it for none
        return 1
    value = exif.get(ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _ends_well(path: str, format: str | None) -> bool:
    """Return whether a file's last bytes show that it was cut off; False where that is not known."""
    with open(path, "rb") as file:  # noqa: PTH123 - a hundred thousand of them
        file.seek(max(0, os.fstat(file.fileno()).st_size - 12))
        end = file.read()
    return (format == "JPEG" and end.endswith(b"\xff\xd9")) or (format == "PNG" and b"IEND" in end)
