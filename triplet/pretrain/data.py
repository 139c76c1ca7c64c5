"""Unlabelled images as batches of views."""

from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from triplet.errors import KitError
from triplet.images import Images, decode
from triplet.pretrain.config import Views
from triplet.pretrain.layout import Layout, Order
from triplet.pretrain.methods import METHODS
from triplet.pretrain.methods.common import Traits
from triplet.pretrain.views import Pixels, view_rng
from triplet.signals import Stop
from triplet.training.loading import stream

MOST_REPLACED = 10
T = TypeVar("T")


def read_or_next(images: Images, index: int, read: Callable[[int], T | None]) -> tuple[T, int, list[int]]:
    """Read an image, or the next readable one in the list if it is unreadable.

    Args:
        images: the list of images.
        index: of the requested image.
        read: function that reads the image with an index; it returns None for an unreadable one.

    Returns:
        The value that was read, the index of its image, and the indices of the images that it replaces.

    Raises:
        KitError: MOST_REPLACED images in a row, or all, are unreadable.
    """
    first, unreadable = index, list[int]()
    while (found := read(index)) is None:
        unreadable.append(index)
        if len(unreadable) == min(len(images), MOST_REPLACED):
            raise KitError(
                f"{len(unreadable)} images in a row cannot be read, from {images.name(first)} on"
            )
        index = (index + 1) % len(images)
    return found, index, unreadable


TWO_VIEWS = Traits(measures=())


class ViewPairs(Dataset[tuple[Pixels, list[int]]]):
    """Data set that maps (epoch, index) to the (views, side, side, 3) uint8 views of an image in an epoch.

    An unreadable image is replaced by the next readable one in the list; its index is returned with the
    views.

    Args:
        images: the images to read.
        config: augmentation of the views.
        seed: seed of all draws.
        traits: the method's traits, which give the number and kind of views.
    """

    def __init__(self, images: Images, config: Views, seed: int, traits: Traits = TWO_VIEWS) -> None:
        self.images, self.config, self.seed, self.traits = images, config, seed, traits

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Pixels, list[int]]:
        epoch, index = item
        image, index, unreadable = read_or_next(self.images, index, self._read)
        rng = partial(view_rng, self.seed, epoch, index)
        return self.traits.sample_views(image, self.config, rng, self.traits.views), unreadable

    def _read(self, index: int) -> Image.Image | None:
        try:
            return decode(self.images.read(index))
        except KitError as error:  # pixels of an unsupported kind must not be replaced silently
            raise KitError(f"{self.images.name(index)} {error}") from None
        except Exception:
            return None


class _Items:
    """Batch sampler that yields the images of each pass."""

    def __init__(self, layout: Layout, order: Order, rank: int, start: int) -> None:
        self.layout, self.order, self.rank, self.start = layout, order, rank, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for passes in self.layout.steps(self.order, self.rank, self.start):
            for each in passes:
                yield list(each.items)


def _collate(items: list[tuple[Pixels, list[int]]]) -> tuple[Tensor, list[int]]:
    # Pixels stay interleaved in memory, which is channels-last, so no copy is needed.
    pairs = torch.from_numpy(np.stack([views for views, _ in items])).permute(0, 1, 4, 2, 3)
    return pairs, [index for _, unreadable in items for index in unreadable]


def load(
    images: Images, layout: Layout, order: Order, rank: int, start: int, device: torch.device, stop: Stop
) -> Generator[tuple[Tensor, list[int]], None, None]:
    """Yield the views of each pass of a process, from optimiser step ``start`` to the end of the run:
    (n, views, 3, side, side) uint8 on ``device``, and the indices of unreadable images."""
    config = layout.config
    traits = METHODS[config.method].TRAITS
    views = ViewPairs(images, config.views, config.seed, traits)
    items = _Items(layout, order, rank, start)
    size = layout.images * traits.views * 3 * traits.view_side(config.views) ** 2
    return stream(views, items, _collate, config.loaders, device, stop, size)
