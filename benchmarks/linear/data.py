"""Labelled images: two sets with the same classes, their crops, and the order of an epoch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from benchmarks.linear.config import ImageSettings as Config
from benchmarks.linear.config import Training
from triplet import untrusted
from triplet.commands import typed
from triplet.errors import KitError
from triplet.images import Images, decode, open_images, pixel_formats
from triplet.pretrain.config import Views
from triplet.pretrain.layout import permutation
from triplet.pretrain.views import Pixels, centre_view, render_view, sample_augmentation, view_rng
from triplet.progress import is_local_main, say


@dataclass(frozen=True)
class Labelled:
    """A selection from a sequence of images, with their classes."""

    images: Images
    indices: np.ndarray
    """(n,) int64 indices into the sequence."""
    labels: np.ndarray
    """(n,) int64 index of each image's class in ``classes``."""
    classes: list[str]

    def __len__(self) -> int:
        return len(self.indices)

    def only(self, places: Sequence[int] | np.ndarray) -> "Labelled":
        """Return the images at some places, with the same classes."""
        return Labelled(self.images, self.indices[places], self.labels[places], self.classes)


def open_sets(train: Path, test: Path, classes: Path | None = None) -> tuple[Labelled, Labelled]:
    """Open training and test images with the same classes.

    Args:
        train: see ``images.open_images``; each class in a folder of its own, or listed as ``path class``.
        test: the same for the test images.
        classes: a file with the names of the classes to keep, one per line; by default all.

    Raises:
        KitError: images without classes, or sets with different classes.
    """
    wanted = _names(classes) if classes else None
    sets = [_labelled(path, wanted, classes) for path in (train, test)]
    ours, theirs = (set(each.classes) for each in sets)
    if odd := sorted(ours ^ theirs):
        here, there = (train, test) if odd[0] in ours else (test, train)
        raise KitError(
            f"{train} has {len(ours)} classes and {test} has {len(theirs)}, expected the same ones; "
            f"{odd[0]!r} is in {here} and not in {there}"
        )
    return sets[0], sets[1]


def _names(path: Path) -> list[str]:
    try:
        text = untrusted.read_text(path, untrusted.NAMES, "list of classes")
        names = [word for line in text.splitlines() for word in line.split()[:1]]
    except (OSError, KitError) as error:
        raise KitError(f"no list of classes at {path}, one name a line: {error}") from None
    if len(set(names)) != len(names) or len(names) < 2:
        raise KitError(
            f"{path} lists {len(names)} classes, {len(set(names))} different; expected two or more"
        )
    return sorted(names)


def _labelled(path: Path, wanted: list[str] | None, listed: Path | None) -> Labelled:
    images = open_images(path)
    if (said := pixel_formats(images)) and is_local_main():
        say(f"{path}: {said}")
    if images.labels is None:
        raise KitError(
            f"{path} has images of no class, or of one: expected a folder for each class, or a list of "
            f"lines 'path class'; {typed('pull', 'imagenet', '--from', 'FOLDER')} sorts your tars of "
            "ImageNet by its development kit"
        )
    if wanted is None:
        return Labelled(images, np.arange(len(images)), images.labels, images.classes)
    if missing := sorted({*wanted} - {*images.classes}):
        raise KitError(
            f"{path} has no class {missing[0]!r}, which {listed} names "
            f"({len(missing)} of {len(wanted)} are missing)"
        )
    number = np.full(len(images.classes), -1)
    number[[images.classes.index(name) for name in wanted]] = np.arange(len(wanted))
    labels = number[images.labels]
    return Labelled(images, np.flatnonzero(labels >= 0), labels[labels >= 0], wanted)


def _decoded(images: Images, index: int) -> Image.Image:
    try:
        return decode(images.read(index))
    except KitError as error:  # unsupported pixels
        raise KitError(f"{images.name(index)} {error}") from None
    except Exception as error:  # Pillow's plug-ins may raise anything
        raise KitError(f"{images.name(index)} cannot be read ({error!r:.80}); fetch it again") from None


class Crops(Dataset[tuple[Pixels, int]]):
    """Data set that maps (epoch, place) to an image's random crop in that epoch, (size, size, 3) uint8, and
    its place.

    The draws depend only on (seed, epoch, image index); the resizing is torchvision's bilinear one.
    """

    def __init__(self, data: Labelled, config: Config, seed: int) -> None:
        self.data, self.seed = data, seed
        plain = dict(jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 0))
        self.views = Views.model_validate({"size": config.size, "scale": config.scale, **plain})

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Pixels, int]:
        epoch, place = item
        index = int(self.data.indices[place])
        image = _decoded(self.data.images, index)
        draws = sample_augmentation(self.views, image.size, 0, view_rng(self.seed, epoch, index, 0))
        return render_view(image, draws, self.views.size, interpolation="bilinear"), place


class CenterCrops(Dataset[tuple[Pixels, int]]):
    """Data set of the centres of images, (size, size, 3) uint8, and their places."""

    def __init__(self, data: Labelled, config: Config) -> None:
        self.data, self.config = data, config

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[Pixels, int]:
        image = _decoded(self.data.images, int(self.data.indices[place]))
        return centre_view(image, self.config.shorter, self.config.size), place


def collate(items: list[tuple[Pixels, int]]) -> tuple[Tensor, Tensor]:
    """Collate (n, 3, size, size) uint8 pixels, channels last, and (n,) int64 places."""
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in items])).permute(0, 3, 1, 2)
    return pixels, torch.tensor([place for _, place in items])


class EpochOrder:
    """The images of every step of a run, a function of the seed alone.

    An epoch is a permutation of all images, padded with its first ones to a multiple of ``num_replicas``;
    its last batch is smaller.
    """

    def __init__(self, images: int, config: Training, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed
        self.filled = math.ceil(images / config.num_replicas) * config.num_replicas
        self.per_epoch = math.ceil(self.filled / config.batch)

    @property
    def steps(self) -> int:
        """Number of steps in the whole run."""
        return self.per_epoch * self.config.epochs

    def batches(self, start: int, rank: int, processes: int) -> Iterator[list[tuple[int, int]]]:
        """Yield (epoch, place) of a process's equal share of the images of each step from ``start`` on."""
        epoch, places = -1, np.empty(0, dtype=np.int64)
        for step in range(start, self.steps):
            now, batch = divmod(step, self.per_epoch)
            if now != epoch:
                epoch = now
                places = np.resize(permutation(self.images, self.seed, epoch), self.filled)
            mine = places[batch * self.config.batch :][: self.config.batch][rank::processes]
            yield [(epoch, place) for place in mine.tolist()]


def share(images: int, rank: int, processes: int, batch: int) -> list[list[int]]:
    """Return one process's places in a pass over all images, a list for each batch."""
    mine = range(rank, images, processes)
    return [list(mine[first : first + batch]) for first in range(0, len(mine), batch)]
