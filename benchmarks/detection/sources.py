"""The images that a prediction is of: files, folders, globs, and every so many frames of a video."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from benchmarks.detection import loading  # noqa: F401 - it teaches Detectron2 to read 16 bits
from triplet import files
from triplet.errors import KitError
from triplet.images import SUFFIXES, open_file

from detectron2.data import DatasetMapper, transforms

IMAGES = SUFFIXES | {".gif", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class Source:
    """An image file, or a video."""

    path: Path
    name: str
    """Below the folder that all of them lie in."""

    @property
    def bytes(self) -> int:
        """Its size; 0 of a link to nowhere, which is named as unreadable when its turn comes."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find(wanted: Sequence[str]) -> tuple[Path, list[Source]]:
    """The images and videos that are meant, each once, by name; and the folder that all of them lie in.

    Args:
        wanted: files, folders (with all below them) and patterns such as ``photos/*.jpg``.

    Raises:
        KitError: one of them is nothing, or holds no image.
    """
    found: set[Path] = set()
    for each in wanted:
        path = Path(os.path.expanduser(each))  # noqa: PTH111 - the method raises where nobody has that name
        if path.is_dir():
            below = [path / name for name, _ in files.walk(path)]
            here = {each for each in below if each.suffix.lower() in IMAGES | VIDEOS}
        elif path.is_file():
            here = {path}
        else:
            matches = glob.glob(os.path.expanduser(each), recursive=True)  # noqa: PTH111, PTH207 - a pattern
            here = {Path(match) for match in matches if Path(match).is_file()}
        if not here:
            what = "no image or video in" if path.is_dir() else "nothing at"
            raise KitError(f"{what} --images {each} ({', '.join(sorted(IMAGES | VIDEOS))})")
        found |= {Path(os.path.abspath(each)) for each in here}  # noqa: PTH100 - links stay what they are
    folder = Path(os.path.commonpath([path.parent for path in found]))
    names = {path.relative_to(folder).as_posix(): path for path in found}
    return folder, [Source(names[name], name) for name in sorted(names)]


class ImageFiles(Dataset[dict[str, Any] | KitError]):
    """Image files as Detectron2's mapper makes them for evaluation: turned by EXIF, RGB or BGR, resized."""

    def __init__(self, sources: Sequence[Source], mapper: DatasetMapper) -> None:
        self.sources, self.mapper = sources, mapper

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any] | KitError:
        """The image, or why it cannot be read."""
        path = self.sources[index].path
        try:
            with open_file(path):
                pass  # the mapper would let Pillow try every reader that it has
            result: dict[str, Any] = self.mapper({"file_name": str(path)})
        except Exception as error:  # decoders raise whatever they like
            return KitError(" ".join(f"{type(error).__name__}: {error}".split())[:160])
        return result


def frames(path: Path, every: int, start: int, mapper: DatasetMapper) -> Iterator[dict[str, Any]]:
    """Every so many frames of a video from frame ``start`` on, as the mapper makes images.

    Yields:
        What the mapper does, and ``frame``, its number, and ``rgb``, its pixels.

    Raises:
        KitError: OpenCV reads no frame of it.
    """
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while video.grab():  # to seek would miss the frame in many a file
            if number >= start and number % every == 0:
                whole, bgr = video.retrieve()
                if whole:
                    image = bgr if mapper.image_format == "BGR" else bgr[:, :, ::-1]
                    resized = transforms.AugInput(np.ascontiguousarray(image))
                    mapper.augmentations(resized)
                    yield {
                        "image": torch.as_tensor(np.ascontiguousarray(resized.image.transpose(2, 0, 1))),
                        "height": bgr.shape[0],
                        "width": bgr.shape[1],
                        "frame": number,
                        "rgb": np.ascontiguousarray(bgr[:, :, ::-1]),
                    }
            number += 1
    finally:
        video.release()
    if not number:
        raise KitError("OpenCV reads no frame of it")


def count_frames(path: Path, every: int) -> int:
    """About how many frames ``frames`` gives, by the video's header; 0 where that does not say."""
    video = cv2.VideoCapture(str(path))
    try:
        return max(0, -(-int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // every))
    finally:
        video.release()
