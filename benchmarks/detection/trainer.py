"""Detectron2's training on the user's GPUs: the config's batch, in as many passes as memory wants."""

import contextlib
import functools
import itertools
import math
import os
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.detection import compat, model  # noqa: F401
from benchmarks.detection.budget import per_process
from triplet.errors import KitError
from triplet.progress import Bar
from triplet.signals import Stop, ignore_in_worker
from triplet.training import checkpoint
from triplet.training.distributed import Processes
from triplet.training.loading import load

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import worker_init_reset_seed
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import build_lr_scheduler, build_optimizer

PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Of autocast. What it leaves in float32, and everything in tf32, may round factors to TF32 on a GPU."""
SAVE_EVERY = 600.0
"""Seconds between checkpoints at most."""


def best_precision() -> str:
    """The GPU's fastest: bfloat16, float16 before Ampere, float32 before Volta or without a GPU."""
    if not torch.cuda.is_available() or (capability := torch.cuda.get_device_capability()) < (7, 0):
        return "float32"
    return "bfloat16" if capability >= (8, 0) else "float16"


def build(cfg: CfgNode, processes: Processes, precision: str) -> nn.Module:
    """The model of a config as these processes train it.

    BN over all GPUs is torch's SyncBatchNorm; the CPU, where torch has none, takes Detectron2's own. Sets
    CUDA's switches for the whole process, cuDNN's search (CUDNN_BENCHMARK) as the config says.
    """
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    model.allow_tf32(precision != "float32")
    cuda = processes.device.type == "cuda"
    if processes.size > 1 and not cuda:
        cfg = model.with_norm(cfg, "naiveSyncBN_N")
    network = model.build(cfg)
    if dtype := PRECISIONS[precision]:
        pool_in_float32(network, dtype)
    if cuda and precision != "float32":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if processes.size == 1:
        return network
    devices = [processes.device] if cuda else None
    return DistributedDataParallel(
        network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def bare(network: nn.Module) -> nn.Module:
    """The Detectron2 model itself."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def pool_in_float32(network: nn.Module, dtype: torch.dtype) -> None:
    """Let RoIs be pooled from float32 features, and handed on in ``dtype`` while training.

    Detectron2's ROIAlign casts the boxes to the features' dtype, which in bfloat16 moves them by up to 4
    pixels. (Under autocast torchvision pools in float32 anyway.)
    """

    def before(pooler: nn.Module, arguments: tuple[list[Tensor], Any]) -> tuple[list[Tensor], Any]:
        features, boxes = arguments
        return [feature.float() for feature in features], boxes

    def after(pooler: nn.Module, arguments: Any, pooled: Tensor) -> Tensor:
        return pooled.to(dtype) if torch.is_autocast_enabled(pooled.device.type) else pooled

    for module in network.modules():
        if isinstance(module, ROIPooler):
            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)


def batches(
    cfg: CfgNode, processes: Processes, stop: Stop, start: int = 0
) -> Generator[list[dict[str, Any]], None, None]:
    """This process's share of each batch, from iteration ``start`` on, without end; close it at the end.

    As Detectron2's own loader, except that a resumed run goes on in the data where it stopped, and that
    processes end as ``loading.load`` says.

    Raises:
        KitError: a batch that the processes cannot share, or settings that are not heeded here; while
            iterating: an image or its annotations that cannot be read.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler" or not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise KitError(
            "DATALOADER.SAMPLER_TRAIN and ASPECT_RATIO_GROUPING: only the defaults are supported"
        )
    share = per_process(cfg, processes.size)
    annotated, wide = _annotated(cfg)
    order = TrainingSampler(len(annotated), seed=cfg.SEED)
    images = load(
        MapDataset(annotated, _Mapper(cfg)),
        _Grouped(order, wide, share, start),
        workers=loaders(cfg, processes),
        stop=stop,
        start_worker=_start_worker,
    )
    return _in_batches(images, share)


def loaders(cfg: CfgNode, processes: Processes) -> int:
    """Processes that load images for each that trains: the config's, or what the machine can have."""
    cores = len(os.sched_getaffinity(0)) * processes.nodes // processes.size
    chosen: int = cfg.DATALOADER.NUM_WORKERS
    if chosen == get_cfg().DATALOADER.NUM_WORKERS:  # nobody's choice: 4 do not keep up with a GPU
        return min(cores, chosen if processes.device.type == "cpu" else 8)
    return chosen


def data_size(cfg: CfgNode) -> int:
    """Images that a config trains on."""
    return len(_annotated(cfg)[0])


def _annotated(cfg: CfgNode) -> tuple[DatasetFromList, list[bool]]:
    """The images, and which of them are wider than high."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    return _read(tuple(cfg.DATASETS.TRAIN), cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, keypoints)


@functools.cache
def _read(
    names: tuple[str, ...], filter_empty: bool, min_keypoints: int
) -> tuple[DatasetFromList, list[bool]]:
    """Read and serialised once for calibration, training and precise BN; the objects themselves can go."""
    dicts = get_detection_dataset_dicts(names, filter_empty=filter_empty, min_keypoints=min_keypoints)
    return DatasetFromList(dicts, copy=False), [image["width"] > image["height"] for image in dicts]


def _start_worker(worker: int) -> None:
    ignore_in_worker(worker)
    worker_init_reset_seed(worker)


class _Mapper(DatasetMapper):
    """Hands on what went wrong as a value: what a worker process raises would carry its traceback along."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg, True)

    def __call__(self, image: dict[str, Any]) -> dict[str, Any] | KitError | None:
        try:
            return super().__call__(image)
        except Exception as error:  # decoders and damaged annotations raise whatever they like
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            return KitError(f"{image['file_name']} or its annotations cannot be read ({reason}); mend it")


class _Grouped(torch.utils.data.Sampler):
    """A sampler's indices from batch ``start`` on, wide and high images in batches of their own.

    What Detectron2's AspectRatioGroupedDataset does with loaded images.
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
    """Images in lists of ``share``."""
    with contextlib.closing(images):
        while batch := list(itertools.islice(images, share)):
            if broken := next((image for image in batch if isinstance(image, KitError)), None):
                raise broken
            yield batch


class Steps(SimpleTrainer):
    """Optimiser steps over a batch in equal passes of ``images`` each, gradients averaged.

    The loss is the mean over the passes of Detectron2's own. That is the loss of the whole batch as long as
    every image fills its sample of anchors and of proposals; masks count by pass, not by object.

    Args:
        network: what ``build`` made.
        loader: what ``batches`` made, or any iterable of such lists.
        optimizer: of the network's parameters.
        processes: all of them; each must take the same steps.
        images: of this process in a pass.
        precision: one of PRECISIONS, of autocast.
        stop: whether a stop was asked for.
    """

    def __init__(
        self, network: nn.Module, loader: Any, optimizer: torch.optim.Optimizer, processes: Processes,
        images: int, precision: str, stop: Stop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(network, loader, optimizer)
        self.processes, self.images, self.stop = processes, images, Stop() if stop is None else stop
        self.dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "float16")
        self.latest: dict[str, float] = {}
        self.stopping = False

    def run_step(self) -> None:
        """One step; every process then knows the mean losses and whether any of them was told to stop.

        Raises:
            FloatingPointError: on every process, before the weights change.
        """
        began = time.perf_counter()
        batch = next(self._data_loader_iter)
        waited = time.perf_counter() - began
        self.optimizer.zero_grad()
        losses = self.backward(batch)
        told = torch.tensor([waited, float(bool(self.stop))], device=self.processes.device)
        values = torch.cat([torch.stack(list(losses.values())), told.to(torch.float32)])
        *found, waited, stopping = self.processes.mean(values).tolist()
        self.latest = dict(zip(losses, found, strict=True))
        self.stopping = stopping > 0
        if not math.isfinite(sum(found)):
            raise FloatingPointError(f"loss is not finite at iteration {self.iter}: {self.latest}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.storage.put_scalars(total_loss=sum(found), data_time=waited, **self.latest)

    def backward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Gradients of this process's share of a batch, and its losses."""
        losses: dict[str, Tensor] = {}
        passes = self.passes(batch)
        for number, images in enumerate(passes, 1):
            last = number == len(passes)
            alone = isinstance(self.model, DistributedDataParallel) and not last
            with self.model.no_sync() if alone else nullcontext():
                with torch.autocast(self.processes.device.type, self.dtype, enabled=self.dtype is not None):
                    found = self.model(images)
                    total = sum(found.values()) / len(passes)
                self.scaler.scale(total).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach().float() / len(passes)
        return losses

    def passes(self, batch: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
        """A batch in parts that are forwarded one after the other."""
        return [batch[i : i + self.images] for i in range(0, len(batch), self.images)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])


class Trainer(Steps):
    """Steps with Detectron2's schedule and logs, then precise BN.

    Args:
        cfg: names the data (DATASETS.TRAIN), the folder (OUTPUT_DIR) and the seed.
        processes: all of them.
        images: of a process in a pass.
        precision: one of PRECISIONS.
        start: iterations that earlier sessions have done.
        stop: whether a stop was asked for.
    """

    def __init__(
        self, cfg: CfgNode, processes: Processes, images: int, precision: str, start: int, stop: Stop
    ) -> None:
        network = build(cfg, processes, precision)
        optimizer = build_optimizer(cfg, network)
        loader = batches(cfg, processes, stop, start)
        super().__init__(network, loader, optimizer, processes, images, precision, stop)
        self.cfg = cfg
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.start_iter, self.max_iter = start, cfg.SOLVER.MAX_ITER
        self.register_hooks([hooks.IterationTimer(), hooks.LRScheduler()])
        if processes.is_main_process:
            self.register_hooks([hooks.PeriodicWriter(default_writers(cfg.OUTPUT_DIR, self.max_iter))])

    @property
    def network(self) -> nn.Module:
        """The Detectron2 model itself."""
        return bare(self.model)

    @property
    def precise_passes(self) -> int:
        """Of precise BN: as many images as the config's number of batches; 0 where there is none to do."""
        precise = self.cfg.TEST.PRECISE_BN
        if not precise.ENABLED or not hooks.get_bn_modules(self.network):
            return 0
        return precise.NUM_ITER * per_process(self.cfg, self.processes.size) // self.images

    def precise_bn(self, bar: Bar) -> None:
        """Replace the running statistics by those of the final weights, over fresh batches.

        Raises:
            Interrupted: stopped by a signal; nothing of it is kept.
        """
        count = self.precise_passes

        def passes(loaded: Iterable[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
            for batch in loaded:
                for images in self.passes(batch):
                    told = torch.tensor(float(bool(self.stop)), device=self.processes.device)
                    if self.processes.mean(told) > 0:
                        raise self.stop.interrupted(f"trained; precise BN was at {bar.done} of {count}")
                    yield images
                    bar.step()

        with contextlib.closing(batches(self.cfg, self.processes, self.stop)) as loaded:
            hooks.PreciseBN(0, self.network, passes(loaded), count).update_stats()

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``Watch`` has saved."""
        self.network.load_state_dict(state["model"])
        self.load_state_dict(state["trainer"])


class Watch(hooks.HookBase):
    """Shows progress, saves every ``period`` iterations or ten minutes, stops between two of them if told.

    Args:
        bar: of progress.
        folder: of the checkpoints.
        period: iterations.
    """

    def __init__(self, bar: Bar, folder: Path, period: int) -> None:
        self.bar, self.folder, self.period = bar, folder, period
        self.steps, self.seconds = 0, 0.0
        """Done in this session, and what they took."""
        self.reached = 0
        """Iterations that the newest checkpoint has."""

    def before_train(self) -> None:
        self.reached = self.trainer.start_iter
        self.began = self.saved = time.monotonic()

    def after_step(self) -> None:
        now = time.monotonic()
        self.steps, self.seconds = self.steps + 1, now - self.began
        done = self.trainer.iter + 1
        self.bar.step(f"loss {sum(self.trainer.latest.values()):.3f}")
        due = done % self.period == 0 or now - self.saved > SAVE_EVERY or done == self.trainer.max_iter
        if self.trainer.stopping or due:
            self._save(done)
            self.saved = now
        if self.trainer.stopping:
            raise self.trainer.stop.interrupted(f"{done} of {self.trainer.max_iter} iterations")

    def _save(self, done: int) -> None:
        self.reached = done
        state = {
            "step": done,
            "model": self.trainer.network.state_dict(),
            "trainer": self.trainer.state_dict(),
        }
        if self.trainer.processes.is_main_process:
            checkpoint.write(self.folder / f"step_{done:07d}.pth", state)
            checkpoint.keep(self.folder, 2)
