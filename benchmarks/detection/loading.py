"""Batches of training images in the order of Detectron2's own loader; a resumed run keeps the order."""

import contextlib
import functools
import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.detection import compat  # noqa: F401
from benchmarks.detection.budget import per_process
from triplet.environment import usable_cores
from triplet.errors import KitError, message_of
from triplet.images import to_eight_bits
from triplet.signals import Stop, ignore_in_worker
from triplet.training.distributed import Processes
from triplet.training.loading import load

from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    detection_utils,
    get_detection_dataset_dicts,
)
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import TrainingSampler


def batches(
    cfg: CfgNode, processes: Processes, stop: Stop, start: int = 0
) -> Generator[list[dict[str, Any]], None, None]:
    """Yield this process's share of each batch, from iteration ``start`` on, without end.

    The order is that of Detectron2's own loader, except that a resumed run continues where it stopped.
    Close the generator when it is no longer needed: that ends the loader processes.

    Raises:
        KitError: the processes cannot share the batch, or a setting is not supported here; while
            iterating: an image or its annotations cannot be read.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler" or not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise KitError(
            "DATALOADER.SAMPLER_TRAIN and ASPECT_RATIO_GROUPING: only the defaults are supported"
        )
    share = per_process(cfg, processes.size)
    annotated, wide = _annotated(cfg)
    order = TrainingSampler(len(annotated), seed=cfg.SEED)
    images = load(
        MapDataset(annotated, SafeMapper(cfg, train=True)),
        _Grouped(order, wide, share, start),
        workers=loaders(cfg, processes),
        stop=stop,
        start_worker=_start_worker,
    )
    return _in_batches(images, share)


def loaders(cfg: CfgNode, processes: Processes) -> int:
    """Return the loader processes per training process: the config's number, or what the machine allows."""
    cores = usable_cores() * processes.nodes // processes.size
    chosen: int = cfg.DATALOADER.NUM_WORKERS
    if chosen == get_cfg().DATALOADER.NUM_WORKERS:  # the default: 4 do not keep up with a GPU
        return min(cores, chosen if processes.device.type == "cpu" else 8)
    return chosen


def data_size(cfg: CfgNode) -> int:
    """Return the number of images that a config trains on."""
    return len(_annotated(cfg)[0])


def _annotated(cfg: CfgNode) -> tuple[DatasetFromList, list[bool]]:
    """Return the training images, and for each whether it is wider than high.

    Raises:
        KitError: the config wants masks or keypoints of VOC, which has none; or no image is usable.
    """
    voc = [name for name in cfg.DATASETS.TRAIN if MetadataCatalog.get(name).get("year")]
    beyond = [key for key in ("MASK_ON", "KEYPOINT_ON") if cfg.MODEL[key]]
    if voc and beyond:
        raise KitError(f"{voc[0]} has boxes alone; add MODEL.{beyond[0]}=False")
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return _read(tuple(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, keypoints)


@functools.cache
def _read(
    names: tuple[str, ...], filter_empty: bool, min_keypoints: int
) -> tuple[DatasetFromList, list[bool]]:
    """Read and serialise the images once, for calibration, training and precise BN."""
    try:
        dicts = get_detection_dataset_dicts(names, filter_empty=filter_empty, min_keypoints=min_keypoints)
    except AssertionError as error:  # raised by Detectron2 if no image is left
        raise KitError(f"{message_of(error)}: no image is left to train on") from None
    return DatasetFromList(dicts, copy=False), [image["width"] > image["height"] for image in dicts]


def _start_worker(worker: int) -> None:
    ignore_in_worker(worker)
    worker_init_reset_seed(worker)


_convert = detection_utils.convert_PIL_to_numpy


def _convert_eight_bits(image: Image.Image, format: str | None) -> np.ndarray:
    """Convert as Detectron2 does, after scaling 16-bit pixels, which it would clip at 255."""
    result: np.ndarray = _convert(to_eight_bits(image), format)
    return result


detection_utils.convert_PIL_to_numpy = (
    _convert_eight_bits  # Detectron2's read_image calls it, wherever that is used
)


class SafeMapper(DatasetMapper):
    """A mapper that returns an error as a value, as an exception in a worker would print its traceback."""

    def __init__(self, cfg: CfgNode, *, train: bool) -> None:
        super().__init__(cfg, train)

    def __call__(self, image: dict[str, Any]) -> dict[str, Any] | KitError | None:
        try:
            result: dict[str, Any] | KitError | None = super().__call__(image)
            return result
        except Exception as error:  # decoders and damaged annotations may raise anything
            reason = message_of(f"{type(error).__name__}: {error}")
            return KitError(f"{image['file_name']} or its annotations cannot be read ({reason}); mend it")


class _Grouped(torch.utils.data.Sampler[int]):
    """A sampler's indices from batch ``start`` on, with wide and high images in separate batches.

    Detectron2's AspectRatioGroupedDataset does the same with loaded images.
    """

    def __init__(self, sampler: Iterable[int], wide: list[bool], share: int, start: int) -> None:
        self.sampler, self.wide, self.share, self.start = sampler, wide, share, start

    def __iter__(self) -> Iterator[int]:
        return itertools.chain.from_iterable(itertools.islice(self._batches(), self.start, None))

    def _batches(self) -> Iterator[list[int]]:
        groups: dict[bool, list[int]] = {True: [], False: []}
        for index in self.sampler:
            group = groups[self.wide[index]]
            group.append(index)
            if len(group) == self.share:
                yield group.copy()
                group.clear()


def _in_batches(
    images: Generator[Any, None, None], share: int
) -> Generator[list[dict[str, Any]], None, None]:
    """Collect images in lists of ``share``; KitError for an unreadable one."""
    with contextlib.closing(images):
        while batch := list(itertools.islice(images, share)):
            if broken := next((image for image in batch if isinstance(image, KitError)), None):
                raise broken
            yield batch
