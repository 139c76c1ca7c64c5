"""Detectron2's training on the user's GPUs: the config's batch, in as many passes as memory requires."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.detection import compat, model  # noqa: F401
from benchmarks.detection.budget import per_process
from benchmarks.detection.head import Res5ROIHeadsExtraNorm
from benchmarks.detection.loading import batches
from triplet import toolchain
from triplet.artifacts import Job
from triplet.progress import Bar, say
from triplet.signals import Stop
from triplet.training import checkpoint
from triplet.training.batch_norm import pool_batch_norm
from triplet.training.compilation import compile_networks
from triplet.training.distributed import Processes

from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer, default_writers, hooks
from detectron2.modeling.poolers import ROIPooler
from detectron2.solver import build_lr_scheduler, build_optimizer

PRECISIONS = {"float32": None, "tf32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Autocast's dtype. All but float32 allow TF32 on a GPU for the operations that stay in float32."""
SAVE_EVERY = 600.0
"""Longest time between checkpoints, in seconds."""


def best_precision() -> str:
    """Return this machine's fastest precision: bfloat16, float16 before Ampere, float32 before Volta or on
    the CPU."""
    if not torch.cuda.is_available() or (capability := torch.cuda.get_device_capability()) < (7, 0):
        return "float32"
    return "bfloat16" if capability >= (8, 0) else "float16"


def build(cfg: CfgNode, processes: Processes, precision: str) -> nn.Module:
    """Build the model of a config for training by these processes.

    If the config wants SyncBN, the kit's own layer takes the statistics over all processes. On GPUs the C4
    head's res5, which has most of the arithmetic, is compiled. CUDA's switches are set for the whole
    process, and cuDNN's search (CUDNN_BENCHMARK) follows the config.
    """
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    model.allow_tf32(precision != "float32")
    cuda = processes.device.type == "cuda"
    network = model.build(cfg)
    if dtype := PRECISIONS[precision]:
        pool_in_float32(network, dtype)
    if cuda and precision != "float32":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pool_batch_norm(network, processes, processes.size, kinds=(nn.SyncBatchNorm,))
    if cuda and not (lacking := toolchain.missing(gpu=True)):
        compile_res5(network)
    elif cuda and processes.is_main_process:
        say(f"finetune: slower without torch.compile, which needs {' and '.join(lacking)}")
    if processes.size == 1:
        return network
    devices = [processes.device] if cuda else None
    return DistributedDataParallel(
        network, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True
    )


def compile_res5(network: nn.Module, **options: Any) -> None:
    """Compile res5 of a C4 head in place, as one graph for any number of RoIs; other heads stay as they
    are."""
    head = getattr(network, "roi_heads", None)
    if isinstance(head, Res5ROIHeadsExtraNorm):
        compile_networks([head.res5], **options)


def bare(network: nn.Module) -> nn.Module:
    """Return the Detectron2 model inside what ``build`` made."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def pool_in_float32(network: nn.Module, dtype: torch.dtype) -> None:
    """Pool RoIs from float32 features, and return them in ``dtype`` while training.

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


class GradAccumTrainer(SimpleTrainer):
    """Accumulate gradients over equal passes of ``images`` each, then take the optimiser's step.

    The loss is the mean of Detectron2's loss over the passes. It equals that of the whole batch if every
    image fills its sample of anchors and of proposals; masks are averaged by pass, not by object.

    Args:
        network: made by ``build``.
        loader: made by ``loading.batches``, or any iterable of such lists.
        optimizer: optimiser of the network's parameters.
        processes: all processes; each must take the same steps.
        images: images of this process in one pass.
        precision: one of PRECISIONS.
        stop: flag that asks for a stop.
    """

    def __init__(
        self,
        network: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        processes: Processes,
        images: int,
        precision: str,
        stop: Stop | None = None,
    ) -> None:
        super().__init__(network, loader, optimizer)
        self.processes, self.images, self.stop = processes, images, Stop() if stop is None else stop
        self.dtype = PRECISIONS[precision]
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=precision == "float16")
        self.latest: dict[str, float] = {}
        self.stopping = False

    def run_step(self) -> None:
        """Take one step; share the mean losses, and whether any process was told to stop, among all.

        Raises:
            FloatingPointError: the loss is not finite; on every process, before the weights change.
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
        """Compute the gradients of this process's share of a batch, and return its losses."""
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
        """Split a batch into the lists of images for the forward passes."""
        return [batch[i : i + self.images] for i in range(0, len(batch), self.images)]

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.scaler.load_state_dict(state_dict["scaler"])


class Trainer(GradAccumTrainer):
    """Train by Detectron2's schedule with its logs, then run precise BN.

    Args:
        cfg: config that names the data (DATASETS.TRAIN), the folder (OUTPUT_DIR) and the seed.
        processes: all processes.
        images: images of one process in one pass.
        precision: one of PRECISIONS.
        start: number of iterations that earlier sessions have done.
        stop: flag that asks for a stop.
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
        """The passes of precise BN over the config's number of batches; 0 if there is nothing to do."""
        precise = self.cfg.TEST.PRECISE_BN
        if not precise.ENABLED or not hooks.get_bn_modules(self.network):
            return 0
        return int(precise.NUM_ITER * per_process(self.cfg, self.processes.size) // self.images)

    def precise_bn(self, bar: Bar) -> None:
        """Replace the running statistics with those of the final weights over fresh batches.

        Raises:
            Interrupted: a signal stopped it; no new statistics are kept.
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
        """Restore a state that ``CheckpointHook`` has saved, or the final model."""
        self.network.load_state_dict(state["model"])
        if "trainer" in state:  # the final model has none
            self.load_state_dict(state["trainer"])


class CheckpointHook(hooks.HookBase):
    """Show progress, save every ``period`` iterations or ten minutes, and stop between iterations if told.

    Args:
        bar: the progress bar.
        job: the stage's record; checkpoints go to its folder.
        period: iterations between checkpoints.
    """

    def __init__(self, bar: Bar, job: Job, period: int) -> None:
        self.bar, self.job, self.period = bar, job, period
        self.steps, self.seconds = 0, 0.0
        """Iterations of this session, and their time in seconds."""
        self.reached = 0
        """Iterations of the newest checkpoint."""

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
            checkpoint.write(self.job.folder / f"step_{done:07d}.pth", state, self.job.plan)
            checkpoint.keep(self.job.folder, 2)
