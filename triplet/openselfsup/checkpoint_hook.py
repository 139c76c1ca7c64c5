"""Hook that adds the kit's metrics, progress, checkpoints and clean stops to OpenSelfSup's training."""

import math
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import Hook
from openselfsup.datasets.loader.sampler import DistributedSampler
from torch import Tensor

from triplet.artifacts import Job
from triplet.errors import KitError
from triplet.progress import Bar, say
from triplet.signals import Stop
from triplet.training import checkpoint
from triplet.training.distributed import Processes
from triplet.training.metrics import MetricLogger, ThroughputMeter, memory


class OpenSelfSupHook(Hook):
    """Log each optimiser step, and save every ``every`` epochs and before a stop.

    mmcv saves only after whole epochs, in place. This hook saves like the kit's trainer, at the end of an
    optimiser step, and on resuming skips the finished part of the epoch.

    Args:
        job: the run's record, with its folder and its plan for the checkpoints.
        final: file for the trained networks.
        processes: all processes.
        log: log of the run.
        pace: throughput of the run, in optimiser steps.
        bar: progress bar of optimiser steps.
        stop: flag that asks for a stop.
        accumulate: micro-batches in an optimiser step.
        every: epochs between checkpoints.
        dist_mode: unused; OpenSelfSup passes it to every hook.
    """

    def __init__(  # noqa: PLR0913 - mmcv builds a hook from its config by keywords
        self,
        *,
        job: Job,
        final: Path,
        processes: Processes,
        log: MetricLogger,
        pace: ThroughputMeter,
        bar: Bar,
        stop: Stop,
        accumulate: int,
        every: int,
        dist_mode: bool = True,
    ) -> None:
        self.folder, self.plan = job.folder, job.plan
        self.processes, self.log, self.pace, self.bar = processes, log, pace, bar
        self.stop, self.accumulate, self.every, self.final = stop, accumulate, every, final
        self._losses: list[float] = []
        self._waited = 0.0

    def before_train_epoch(self, runner: Any) -> None:
        """Skip the batches that an earlier session trained on."""
        loader = runner.data_loader
        done = runner.iter - runner.epoch * len(loader)
        if done:
            loader.sampler.__class__ = Rest
            loader.sampler.skipped = done * loader.batch_size
        self._ended = time.monotonic()

    def before_train_iter(self, runner: Any) -> None:
        """See the class."""
        self._waited += time.monotonic() - self._ended

    def after_train_iter(self, runner: Any) -> None:
        """See the class. Runs after the optimiser and the EMA, as it is registered last."""
        self._losses.append(runner.outputs["log_vars"]["loss"])
        done, left = divmod(runner.iter + 1, self.accumulate)
        if left == 0:
            self._step(runner, done)
        self._ended = time.monotonic()

    def _step(self, runner: Any, done: int) -> None:
        loss = sum(self._losses) / len(self._losses)
        if not math.isfinite(loss):
            good = next((path.name for path in checkpoint.checkpoints(self.folder)), "none")
            raise KitError(
                f"loss is {loss} at step {done}; last good checkpoint: {good}; lower optimizer.lr"
            )
        own = torch.tensor([float(bool(self.stop)), self._waited], dtype=torch.float64)
        stopping, waited = self.processes.mean(own.to(self.processes.device)).tolist()
        model = runner.model.module
        values = {
            "iteration": runner.iter + 1,
            "epoch": runner.epoch,
            "loss": loss,
            "learning_rate": runner.current_lr()[0],
            **({"ema_momentum": model.momentum} if hasattr(model, "momentum") else {}),
            **self.pace.step(waited),
            "memory": memory(self.processes.device),
        }
        self.log.write(done, values)
        self._losses, self._waited = [], 0.0
        if self.processes.is_main_process and (forecast := self.pace.forecast(done)):
            say(f"pretrain: {forecast}")
        self.bar.step(f"loss {loss:.3f}")
        if runner.iter + 1 == runner.max_iters:
            return
        # Save at the first step that ends at or after a multiple of this.
        turn = self.every * len(runner.data_loader)
        if stopping or (runner.iter + 1) // turn > (runner.iter + 1 - self.accumulate) // turn:
            self._save(runner)
        if stopping:
            raise self.stop.interrupted(f"{done} of {runner.max_iters // self.accumulate} steps")

    def after_run(self, runner: Any) -> None:
        """Write the trained networks, without the optimiser."""
        if self.processes.is_main_process:
            found = self._state(runner, runner.iter)
            checkpoint.write(self.final, {**found, "optimizer": None}, self.plan)

    def _save(self, runner: Any) -> None:
        if self.processes.is_main_process:
            done = runner.iter + 1
            path = self.folder / f"step_{done // self.accumulate:07d}.pth"
            checkpoint.write(path, self._state(runner, done), self.plan)
            checkpoint.keep(self.folder, 2)
        self.processes.broadcast_object()  # a barrier: no process continues or ends before it is saved

    def _state(self, runner: Any, iteration: int) -> dict[str, Any]:
        """Return the checkpoint that mmcv writes and resumes from: ``meta``, ``state_dict`` on the CPU,
        ``optimizer``."""
        weights: dict[str, Tensor] = runner.model.module.state_dict()
        checkpoint.refuse_not_finite(weights, self.folder, iteration // self.accumulate)
        return {
            "step": iteration // self.accumulate,  # the kit's
            "meta": {"epoch": runner.epoch, "iter": iteration},
            "state_dict": {name: value.detach().cpu() for name, value in weights.items()},
            "optimizer": runner.optimizer.state_dict(),
        }


class Rest(DistributedSampler):
    """OpenSelfSup's sampler without the first images of the current epoch."""

    skipped = 0

    def __iter__(self) -> Any:
        """See the class; later epochs are whole."""
        skipped, self.skipped = self.skipped, 0
        return islice(super().__iter__(), skipped, None)
