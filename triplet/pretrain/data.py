"""Unlabelled images as batches of two views each."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triplet import files
from triplet.errors import KitError
from triplet.pretrain.config import Pretrain, Views
from triplet.pretrain.views import draw_view, render_view, view_rng

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


def list_images(folder: Path) -> list[Path]:
    """Every image below a folder, sorted by name; KitError when there is none."""
    if not folder.is_dir():
        raise KitError(f"no folder of images at {folder}; draw or fetch one with: triplet pull")
    images = [folder / n for n, _ in files.walk(folder) if Path(n).suffix.lower() in SUFFIXES]
    if not images:
        raise KitError(f"{folder} holds no image ({', '.join(sorted(SUFFIXES))})")
    return images


class ViewPairs(Dataset[Tensor]):
    """Item (epoch, index) is the (2, 3, size, size) uint8 views of image ``index`` in that epoch."""

    def __init__(self, images: list[Path], config: Views, seed: int) -> None:
        self.images, self.config, self.seed = images, config, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: tuple[int, int]) -> Tensor:
        epoch, index = item
        path = self.images[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise KitError(f"{path} cannot be read as an image: {error}") from None
        views = []
        for view in (0, 1):
            rng = view_rng(self.seed, epoch, index, view)
            draws = draw_view(self.config, image.size, view, rng)
            views.append(render_view(image, draws, self.config.size))
        return torch.stack(views)


class Batches:
    """Micro-batches of (epoch, index) from an iteration on: a function of the seed alone.

    Each epoch is a permutation of all images; the remainder that does not fill a micro-batch is
    left out, another one each epoch.
    """

    def __init__(self, images: int, config: Pretrain, start: int = 0) -> None:
        self.images, self.config, self.start = images, config, start
        self.per_epoch = images // config.micro_batch
        if self.per_epoch == 0:
            raise KitError(
                f"found {images} images, fewer than one micro-batch of {config.micro_batch} "
                f"(loss.group {config.loss.group} x optimizer.groups {config.optimizer.groups}); "
                "give more images or lower optimizer.groups"
            )

    @property
    def total(self) -> int:
        """Iterations of the whole run: whole optimiser steps only."""
        iterations = self.per_epoch * self.config.schedule.epochs
        return iterations - iterations % self.config.optimizer.accumulate

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, known = self.config.micro_batch, -1
        for iteration in range(self.start, self.total):
            epoch, place = divmod(iteration, self.per_epoch)
            if epoch != known:
                rng = np.random.default_rng((self.config.seed, epoch, 0x0DE5))
                order, known = rng.permutation(self.images).tolist(), epoch
            yield [(epoch, index) for index in order[place * size : (place + 1) * size]]


def load(images: list[Path], config: Pretrain, start: int) -> Iterator[Tensor]:
    """(n, 2, 3, size, size) uint8 micro-batches from iteration ``start`` to the end of the run."""
    loader = DataLoader(
        ViewPairs(images, config.views, config.seed),
        batch_sampler=Batches(len(images), config, start),
        num_workers=config.workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=config.workers > 0,
        prefetch_factor=4 if config.workers else None,
    )
    try:
        yield from loader
    except KitError as error:  # a worker's arrives with its traceback in the message
        raise KitError(str(error).rpartition("KitError: ")[2].strip()) from None
