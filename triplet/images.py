"""Sources of images: a folder, a list or tar shards. Each gives encoded files by number."""

import codecs
import io
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel

from triplet import files, untrusted
from triplet.commands import typed
from triplet.errors import KitError, message_of
from triplet.progress import say

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of gray images with more than 8 bits; its readers scale colours of 16 bits."""
SAMPLE = 64
"""Number of images whose pixel formats are checked before long work."""
# Pillow's warning is needless: it refuses images that are too large; see untrusted.IMAGE_FORMATS.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
ARCHIVES = {".tar", ".tgz", ".gz", ".xz", ".bz2", ".zip"}
_OWN_SHARD = re.compile(r"shard-\d+\.tar")
INDEX = "shards.json"
"""Name of the file that `triplet pack` writes last: a folder that has it holds complete tar shards."""


class Shard(BaseModel):
    """One tar file and the positions of its images, as in ``<shard>.json`` beside it."""

    name: str
    sha256: str
    bytes: int
    names: list[str]
    labels: list[str] | None
    """The class of each image, by name."""
    offsets: list[int]
    sizes: list[int]


class Index(BaseModel):
    """``shards.json``: the shards in order."""

    shards: list[str]
    images: int


def decode(data: bytes) -> Image.Image:
    """Decode an image to RGB; 16 bits are scaled to 8.

    Raises:
        KitError: its pixels cannot be converted to 8 bits, see ``to_eight_bits``.
        Exception: Pillow's plug-ins may raise anything on a damaged file.
    """
    with Image.open(io.BytesIO(data), formats=untrusted.IMAGE_FORMATS) as file:
        return to_eight_bits(file).convert("RGB")


def open_file(path: str | Path) -> Image.Image:
    """Open an image file; its pixels are not decoded yet.

    Raises:
        OSError: it is a folder, or a named pipe, which might block.
        Exception: Pillow's plug-ins may raise anything on a damaged file.
    """
    if (found := Path(path)).exists() and not found.is_file():
        raise OSError("it is not a file")
    return Image.open(path, formats=untrusted.IMAGE_FORMATS)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale an image of 16 bits to 0..255, where Pillow would clip everything above 255 to white.

    Raises:
        KitError: the pixels are 32-bit integers or floats, whose value of white is unknown.
    """
    if image.mode in SIXTEEN_BITS:
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise KitError(f"has pixels of mode {image.mode} (32 bits), expected 8 or 16 bits; convert it")
    return image


class Images:
    """A fixed sequence of encoded images, the same on every process.

    Names are kept in numpy arrays: the pages of a list of a million strings would be copied into each
    loader process, as reading changes the strings' reference counts.

    Attributes:
        labels: (n,) int64, the class of each image; None if the source has fewer than two classes.
        classes: names of the classes, by number.
    """

    def __init__(self, names: Sequence[str], labels: Sequence[str] | None) -> None:
        self._names = np.array([os.fsencode(name) for name in names])
        self.labels: np.ndarray | None = None
        self.classes: list[str] = []
        if labels is not None and len(found := sorted(set(labels))) > 1:
            numbers = {label: number for number, label in enumerate(found)}
            self.labels = np.array([numbers[label] for label in labels], dtype=np.int64)
            self.classes = found

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Return a name with which a person can find the image."""
        return os.fsdecode(bytes(self._names[index]))

    def names(self) -> list[str]:
        """Return the names of all images in order; equal lists mean the same images."""
        return [self.name(index) for index in range(len(self))]

    def read(self, index: int) -> bytes:
        """Read an encoded file; OSError if it cannot be read."""
        raise NotImplementedError


class Files(Images):
    """Images in the files below a folder."""

    def __init__(self, folder: Path, names: Sequence[str], labels: Sequence[str] | None) -> None:
        super().__init__(names, labels)
        self.folder = folder

    def read(self, index: int) -> bytes:
        """See Images."""
        path = self.folder / self.name(index)
        if not path.is_file() and path.exists():  # a pipe might block
            raise OSError(f"{path} is not a file")
        return untrusted.read_bytes(path, untrusted.IMAGE, "image")


class Shards(Images):
    """Images in tar files, read by position in any order."""

    def __init__(self, folder: Path, shards: list[Shard]) -> None:
        names = [name for shard in shards for name in shard.names]
        known = all(shard.labels for shard in shards)
        super().__init__(names, [n for s in shards for n in s.labels or ()] if known else None)
        self._shard = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self._offsets = np.array([offset for shard in shards for offset in shard.offsets])
        self._sizes = np.array([size for shard in shards for size in shard.sizes])
        # Positional reads share no state, so loader processes may inherit these.
        self._files = [os.open(folder / shard.name, os.O_RDONLY) for shard in shards]

    def read(self, index: int) -> bytes:
        """See Images."""
        size = int(self._sizes[index])
        data = os.pread(self._files[self._shard[index]], size, int(self._offsets[index]))
        if len(data) != size:
            raise OSError(f"{self.name(index)}: found {len(data)} bytes, expected {size}")
        return data

    def __del__(self) -> None:
        for file in getattr(self, "_files", []):
            os.close(file)


def open_images(source: Path) -> Images:
    """Open the folder, list or shards at a path.

    - A folder: every image below it, sorted by name. If all lie in sub-folders, like ImageNet's, the first
      part of an image's path is its class.
    - A text file: a line ``path`` or ``path class`` for each image, as in OpenSelfSup's lists; paths are
      absolute or relative to the list's folder.
    - A folder made by ``triplet pack``.

    Raises:
        KitError: there is no image, a line of a list is unreadable, or a shard is missing or truncated.
    """
    if source.is_file():
        return _listed(source)
    if (source / INDEX).exists():
        return Shards(source, read_shards(source))
    if not source.is_dir():
        raise KitError(f"no folder or list of images at {source}; draw or fetch one with: {typed('pull')}")
    names = [name for name, _ in files.walk(source) if Path(name).suffix.lower() in SUFFIXES]
    archives = sorted(path.name for path in source.iterdir() if path.suffix.lower() in ARCHIVES)
    if not names:
        raise _no_images(source, archives)
    if archives:
        say(f"{source}: {_some(archives)} beside the images: not looked into; unpack what belongs to them")
    return Files(source, names, _folder_labels(names))


def pixel_formats(images: Images) -> str:
    """Return a sentence on 16-bit images in a sample spread over all images; '' if there are none.

    Raises:
        KitError: an image has 32 bits; the message names it.
    """
    places = range(0, len(images), max(1, len(images) // SAMPLE))
    wide = []
    for place in places:
        try:
            with Image.open(io.BytesIO(images.read(place)), formats=untrusted.IMAGE_FORMATS) as file:
                if file.mode in SIXTEEN_BITS:
                    wide.append(f"{images.name(place)} (mode {file.mode})")
                else:
                    to_eight_bits(file)
        except KitError as error:
            raise KitError(f"{images.name(place)} {error}") from None
        except Exception:  # damaged images are counted and named when they are used
            continue
    if not wide:
        return ""
    count = f"{len(wide)} of {len(places)}"
    return f"{count} images looked at have pixels of 16 bits, which are scaled to 8: {wide[0]}"


def _no_images(source: Path, archives: Sequence[str]) -> KitError:
    """Say what a folder holds instead of images, and what to do."""
    if own := next((name for name in archives if _OWN_SHARD.fullmatch(name)), None):
        return KitError(
            f"{source} holds {own} but no {INDEX}: it was not packed completely; run {typed('pack')} "
            "again on the images that it is made from"
        )
    if archives:
        return KitError(f"{source} holds {_some(archives)} and no image; unpack it first (tar, unzip)")
    return KitError(f"{source} holds no image ({', '.join(sorted(SUFFIXES))})")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def read_shards(folder: Path) -> list[Shard]:
    """Read the index that ``triplet pack`` wrote; KitError unless each shard exists in full length."""
    try:
        index = Index.model_validate_json(_described(folder / INDEX))
        if odd := [name for name in index.shards if not _OWN_SHARD.fullmatch(name)]:
            raise ValueError(f"{INDEX} names the shard {odd[0]!r:.40}")
        shards = [Shard.model_validate_json(_described(side_car(folder / name))) for name in index.shards]
    except (OSError, ValueError) as error:
        reason = message_of(error)
        raise KitError(
            f"{folder}: its shards cannot be read ({reason}); make them again: {typed('pack')}"
        ) from None
    for name, shard in zip(index.shards, shards, strict=True):
        path = folder / name
        counts = {
            len(each) for each in (shard.names, shard.offsets, shard.sizes, shard.labels or shard.names)
        }
        ends = [*map(sum, zip(shard.offsets, shard.sizes, strict=False)), 0]
        low, largest = min([*shard.offsets, *shard.sizes, 0]), max([*shard.sizes, 0])
        fits = max(ends) <= shard.bytes and largest <= untrusted.IMAGE
        if shard.name != name or len(counts) > 1 or low < 0 or not fits:
            raise KitError(f"{side_car(path)} does not fit its shard; make it again: {typed('pack')}")
        found = path.stat().st_size if path.is_file() else 0
        if found != shard.bytes:
            raise KitError(
                f"{path} has {found} bytes, expected {shard.bytes}; make it again: {typed('pack')}"
            )
    return shards


def _described(path: Path) -> bytes:
    return untrusted.read_bytes(path, untrusted.LISTING, "description of shards")


def side_car(shard: Path) -> Path:
    """Return the path of the file that lists the images of a shard."""
    return shard.with_suffix(".json")


def _listed(source: Path) -> Images:
    content = untrusted.read_bytes(source, untrusted.LISTING, "list of images")
    content = content.removeprefix(codecs.BOM_UTF8)
    if b"\0" in content:
        raise KitError(f"{source} is neither a folder nor a list of images in text")
    # File names are bytes in an unknown encoding.
    lines = [os.fsdecode(line) for line in content.split(b"\n") if line.strip()]
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(" ")
        if not name or Path(label).suffix.lower() in SUFFIXES:  # no class; the path may have blanks
            name, label = line.strip(), ""
        if Path(name).suffix.lower() not in SUFFIXES:
            raise KitError(f"{source}, line {number}: expected 'path' or 'path class', found {line!r:.80}")
        names.append(name)
        labels.append(label)
    if not names:
        raise KitError(f"{source} lists no image")
    return Files(source.parent, names, labels if all(labels) else None)


def _folder_labels(names: Sequence[str]) -> list[str] | None:
    if not all("/" in name for name in names):
        return None
    return [name.partition("/")[0] for name in names]
