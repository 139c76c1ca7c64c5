"""Unlabelled images as batches of two views each."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triplet import files
from triplet.errors import KitError
from triplet.pretrain.config import Views
from triplet.pretrain.layout import Layout, Order
from triplet.pretrain.views import draw_view, render_view, view_rng
from triplet.signals import ignore_in_worker

MOST_REPLACED = 10
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by name; KitError when there is none."""
    if not folder.is_dir():
        raise KitError(f"no folder of images at {folder}; draw or fetch one with: triplet pull")
    images = [folder / n for n, _ in files.walk(folder) if Path(n).suffix.lower() in SUFFIXES]
    if not images:
        raise KitError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return images


class ViewPairs(Dataset[tuple[Tensor, list[int]]]):
    """Item (epoch, index): the (2, 3, size, size) uint8 views of image ``index`` in that epoch.

    An image that cannot be read is replaced by the next one in the list that can, and its index is given
    beside the views.
    """

    def __init__(self, images: list[Path], config: Views, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, list[int]]:
        epoch, index = item
        unreadable: list[int] = []
        while (image := self._read(index)) is None:
            unreadable.append(index)
            if len(unreadable) == min(len(self), MOST_REPLACED):
                raise KitError(
                    f"{len(unreadable)} images in a row cannot be read, from {self.images[item[1]]} on"
                )
            index = (index + 1) % len(self)
        views = []
        for view in (0, 1):
            rng = view_rng(self.seed, epoch, index, view)
            draws = draw_view(self.config, image.size, view, rng)
            views.append(render_view(image, draws, self.config.size))
        return torch.stack(views), unreadable

    def _read(self, index: int) -> Image.Image | None:
        try:
            with Image.open(self.images[index]) as file:
                return file.convert("RGB")
        except Exception:  # Pillow's plug-ins raise whatever a damaged file makes them
            return None


class _Items:
    """Batch sampler: the images of each pass."""

    def __init__(self, layout: Layout, order: Order, rank: int, start: int) -> None:
        self.layout, self.order, self.rank, self.start = layout, order, rank, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for passes in self.layout.steps(self.order, self.rank, self.start):
            for each in passes:
                yield list(each.items)


def _collate(items: list[tuple[Tensor, list[int]]]) -> tuple[Tensor, list[int]]:
    return torch.stack([views for views, _ in items]), [i for _, bad in items for i in bad]


def load(
    images: list[Path], layout: Layout, order: Order, rank: int, start: int
) -> Generator[tuple[Tensor, list[int]], None, None]:
    """For each pass of a process from optimiser step ``start`` to the end of the run: its
    (n, 2, 3, size, size) uint8 views, and the indices of images that could not be read."""
    config = layout.config
    loader = DataLoader(
        ViewPairs(images, config.views, config.seed),
        batch_sampler=_Items(layout, order, rank, start),
        collate_fn=_collate,
        num_workers=config.workers,
        worker_init_fn=ignore_in_worker,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
        prefetch_factor=4 if config.workers else None,
    )
    iterator: Any = iter(loader)
    try:
        yield from iterator
    except KitError as error:  # a worker's arrives with its traceback in the message
        raise KitError(str(error).rpartition("KitError: ")[2].strip()) from None
    finally:
        # At exit Python ends its children by SIGTERM and waits; these ignore it, so they end here.
        if config.workers:
            iterator._shutdown_workers()
