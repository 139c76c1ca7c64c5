"""Check that annotated images exist, can be decoded, and have the annotated size."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from triplet.annotations.findings import Findings
from triplet.errors import KitError, message_of
from triplet.images import SIXTEEN_BITS, open_file, to_eight_bits

THOROUGH = 1000
"""Most images to decode completely; if there are more, only headers and last bytes are read."""
THREADS = 8
"""Number of threads that read files; they wait for the disk, not for each other."""
ORIENTATION = 0x0112
"""EXIF's tag for the orientation."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image as its annotations describe it."""

    path: str
    width: int
    height: int
    used: bool = True
    """Whether the image has annotations: Detectron2 trains on no image without them."""


def missing(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the names, or paths below the folder, of missing files, in their order."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    return [name for name in names if not (is_file(folder / name) if "/" in name else name in there)]


def is_file(path: Path) -> bool:
    """Return whether there is a file; False if the name is too long for a file."""
    try:
        return path.is_file()
    except OSError:
        return False


def check_images(images: Sequence[AnnotatedImage], total: int | None = None) -> tuple[Findings, Findings]:
    """Check that images, rotated by EXIF as in Detectron2, can be read and have the annotated size.

    Args:
        images: the images to check, such as one process's share.
        total: number of all images, which decides whether each is decoded; see THOROUGH.

    Returns:
        The problems, and the notes: 16-bit images, which are scaled to 8 bits.
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
    """Return the kind of an image's problem, and the rest of a sentence on it; ('', '') for none."""
    try:
        mode, (width, height), turned = look(annotated.path, decode=decode)
    except KitError as error:
        return "mode", str(error)
    except Exception as error:  # Pillow's plug-ins may raise anything
        reason = message_of(f"{type(error).__name__}: {error}", 120)
        return "unreadable", f"or its annotations cannot be read ({reason}); mend it"
    if (width, height) != (annotated.width, annotated.height):
        how = f" as its EXIF orientation {turned} turns it" if turned > 1 else ""
        said = f"{annotated.width} x {annotated.height}"
        return "size", f"has {width} x {height} pixels{how}, its annotations say {said}"
    wide = mode in SIXTEEN_BITS
    return ("16 bits", f"has pixels of 16 bits (mode {mode}), scaled to 8") if wide else ("", "")


def look(path: str | Path, *, decode: bool) -> tuple[str, tuple[int, int], int]:
    """Return an image's mode, width and height as ``upright`` does, and its orientation.

    Args:
        path: path of the image.
        decode: whether to decode its pixels in any case, not only if its last bytes do not show that it is
            whole.

    Raises:
        KitError: its pixels cannot be converted to 8 bits.
        Exception: Pillow's plug-ins may raise anything on a damaged file.
    """
    with open_file(path) as image:
        mode, (size, turned) = image.mode, upright(image)
        if decode or not _ends_well(path, image.format):
            image.load()
        if mode not in SIXTEEN_BITS:
            to_eight_bits(image)
    return mode, size, turned


def upright_size(path: Path) -> tuple[int, int]:
    """Return width and height of an image as Detectron2 reads it, rotated by EXIF.

    Raises:
        KitError: the image cannot be read.
    """
    try:
        with open_file(path) as image:
            return upright(image)[0]
    except Exception as error:  # Pillow's plug-ins may raise anything
        reason = message_of(f"{type(error).__name__}: {error}", 120)
        raise KitError(f"{path} cannot be read ({reason}); mend it") from None


def upright(image: Image.Image) -> tuple[tuple[int, int], int]:
    """Return width and height of an opened image rotated by EXIF, and EXIF's orientation, 1 for upright."""
    turned = _orientation(image)
    return (image.size[::-1] if turned in (5, 6, 7, 8) else image.size), turned


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 for upright."""
    try:
        # The method of PNG images would decode the pixels to search after them.
        exif = Image.Image.getexif(image)
    except Exception:  # damaged EXIF counts as none, as in Detectron2
        return 1
    value = exif.get(ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _ends_well(path: str | Path, format: str | None) -> bool:
    """Return whether a JPEG or PNG file has its last bytes; False for other formats, as it is unknown."""
    with open(path, "rb") as file:  # noqa: PTH123 - faster for a hundred thousand files
        file.seek(max(0, os.fstat(file.fileno()).st_size - 12))
        end = file.read()
    return (format == "JPEG" and end.endswith(b"\xff\xd9")) or (format == "PNG" and b"IEND" in end)
