"""The images of a prediction: files, folders, globs, and every n-th frame of a video."""

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
from triplet.errors import KitError, message_of
from triplet.images import SUFFIXES, open_file

from detectron2.data import DatasetMapper, transforms

IMAGES = SUFFIXES | {".gif", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class ImageSource:
    """An image file, or a video."""

    path: Path
    name: str
    """Path below the folder that holds all sources."""

    @property
    def bytes(self) -> int:
        """Size of the file; 0 for a broken link, which is reported as unreadable later."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


def find(wanted: Sequence[str]) -> tuple[Path, list[ImageSource]]:
    """Return the folder that holds all named images and videos, and each of these once, sorted by name.

    Args:
        wanted: files, folders (with all below them) and patterns such as ``photos/*.jpg``.

    Raises:
        KitError: one of these does not exist, or holds no image.
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
    return folder, [ImageSource(names[name], name) for name in sorted(names)]


class ImageFiles(Dataset[dict[str, Any] | KitError]):
    """Image files as Detectron2's mapper prepares them for evaluation: rotated by EXIF, RGB or BGR,
    resized."""

    def __init__(self, sources: Sequence[ImageSource], mapper: DatasetMapper) -> None:
        self.sources, self.mapper = sources, mapper

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any] | KitError:
        """Return the image, or an error that says why it cannot be read."""
        path = self.sources[index].path
        try:
            with open_file(path):
                pass  # checked here, as the mapper would let Pillow try all its readers
            result: dict[str, Any] = self.mapper({"file_name": str(path)})
        except Exception as error:  # decoders may raise anything
            return KitError(message_of(f"{type(error).__name__}: {error}"))
        return result


def frames(path: Path, every: int, start: int, mapper: DatasetMapper) -> Iterator[dict[str, Any]]:
    """Yield every ``every``-th frame of a video from frame ``start`` on, prepared by the mapper.

    Yields:
        The mapper's dictionary, with the frame's number as ``frame`` and its pixels as ``rgb``.

    Raises:
        KitError: OpenCV cannot read any frame.
    """
    video = cv2.VideoCapture(str(path))
    try:
        number = 0
        while video.grab():  # seeking misses the frame in many files
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
    """Estimate the number of frames that ``frames`` gives from the video's header; 0 if it has none."""
    video = cv2.VideoCapture(str(path))
    try:
        return max(0, -(-int(video.get(cv2.CAP_PROP_FRAME_COUNT)) // every))
    finally:
        video.release()
