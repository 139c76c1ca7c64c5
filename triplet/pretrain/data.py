"""Unlabelled images as batches of views."""

from collections.abc import Callable, Generator, Iterator
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
from triplet.pretrain.methods.relative_loc import draw_patches
from triplet.pretrain.views import Pixels, draw_view, render_view, view_rng
from triplet.signals import Stop
from triplet.training.loading import stream

MOST_REPLACED = 10
Found = TypeVar("Found")


def read_or_next(
    images: Images, index: int, read: Callable[[int], Found | None]
) -> tuple[Found, int, list[int]]:
    """Read an image, or instead of one that cannot be read the next one in the list that can.

    Args:
        images: of the list.
        index: of the image that is wanted.
        read: gives what is read of an image by its index, None for one that cannot be read.

    Returns:
        What was read, the index that it is of, and the indices that it stands in for.

    Raises:
        KitError: MOST_REPLACED images in a row, or all, cannot be read.
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


class ViewPairs(Dataset[tuple[Pixels, list[int]]]):
    """Item (epoch, index): the (count, size, size, 3) uint8 views of image ``index`` in that epoch.

    Nine are the patches of relative location.

    An image that cannot be read is replaced by the next one in the list that can, and its index is given
    beside the views.
    """

    def __init__(self, images: Images, config: Views, seed: int, count: int = 2) -> None:
        self.images, self.config, self.seed, self.count = images, config, seed, count

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Pixels, list[int]]:
        epoch, index = item
        image, index, unreadable = read_or_next(self.images, index, self._read)
        if self.count == 9:
            return draw_patches(
                image, self.config.patches, view_rng(self.seed, epoch, index, 0)
            ), unreadable
        views = []
        for view in range(self.count):
            rng = view_rng(self.seed, epoch, index, view)
            draws = draw_view(self.config, image.size, view, rng)
            views.append(
                render_view(image, draws, self.config.size, self.config.backend, self.config.interpolation)
            )
        return np.stack(views), unreadable

    def _read(self, index: int) -> Image.Image | None:
        try:
            return decode(self.images.read(index))
        except Exception:
            return None


class _Items:
    """Batch sampler: the images of each pass."""

    def __init__(self, layout: Layout, order: Order, rank: int, start: int) -> None:
        self.layout, self.order, self.rank, self.start = layout, order, rank, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for passes in self.layout.steps(self.order, self.rank, self.start):
            for each in passes:
                yield list(each.items)


def _collate(items: list[tuple[Pixels, list[int]]]) -> tuple[Tensor, list[int]]:
    # Pixels stay interleaved, which is channels-last: nobody transposes them.
    pairs = torch.from_numpy(np.stack([views for views, _ in items])).permute(0, 1, 4, 2, 3)
    return pairs, [index for _, unreadable in items for index in unreadable]


def load(
    images: Images, layout: Layout, order: Order, rank: int, start: int, device: torch.device, stop: Stop
) -> Generator[tuple[Tensor, list[int]], None, None]:
    """For each pass of a process from optimiser step ``start`` to the end of the run: its
    (n, count, 3, size, size) uint8 views on ``device``, and the indices of images that could not be
    read."""
    config = layout.config
    views = ViewPairs(images, config.views, config.seed, config.views_per_image)
    count = config.views_per_image
    pixels = (config.views.patches.side if count == 9 else config.views.size) ** 2
    items = _Items(layout, order, rank, start)
    return stream(views, items, _collate, config.loaders, device, stop, layout.images * count * 3 * pixels)
