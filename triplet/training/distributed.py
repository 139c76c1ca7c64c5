"""Processes that train as one: joining, agreeing, and batch normalisation over all of them."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce  # has a gradient, and can be compiled

from triplet import records
from triplet.errors import Interrupted, KitError

T = TypeVar("T")
PATIENCE = 1800.0
"""Seconds to wait for processes that have joined."""
DEVICES = Path("/dev")
OWN_THREADS = "TRIPLET_OWN_THREADS"
"""Variable that is set where OMP_NUM_THREADS is not the user's choice."""


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def nodes(self) -> int:
        """Machines, each with the same number of processes."""
        return self.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    @property
    def memory(self) -> float | None:
        """Bytes of the smallest GPU, None without one."""
        if self.device.type != "cuda":
            return None
        return min(self.gather(torch.cuda.get_device_properties(self.device).total_memory))

    @property
    def free(self) -> float | None:
        """Bytes left on the fullest GPU, what this process holds included; None without one."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return min(self.gather(free + torch.cuda.memory_reserved(self.device)))

    @property
    def is_main_process(self) -> bool:
        """Whether this one writes files and speaks."""
        return self.rank == 0

    def assert_same(self, what: str, value: Any) -> None:
        """KitError on every process unless all have an equal (JSON-able) value."""
        found = self.gather(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12])
        if odd := [rank for rank, theirs in enumerate(found) if theirs != found[0]]:
            raise KitError(
                f"process {odd[0]} has another {what} than process 0 ({found[odd[0]]}, {found[0]}); "
                "start all of them with the same command, kit and data"
            )

    def broadcast_object(self, value: Any = None) -> Any:
        """What the first process says, on every one."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process, in place, what the first one's hold."""
        if self.size > 1:
            for tensor in tensors:
                plain = tensor.contiguous()  # NCCL takes no channels-last
                dist.broadcast(plain, src=0)
                tensor.copy_(plain)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in order."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def all_gather(self, own: Tensor) -> Tensor:
        """(n, ...) of each process -> (size * n, ...), in order. The gradient goes to the own rows
        alone."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, own.detach().contiguous())
        parts[self.rank] = own
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """Elementwise mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def use_cores(self, loaders: int) -> str:
        """Let torch compute on the CPU cores that this machine's processes and their loaders leave.

        More threads than cores make a small network several times slower. An OMP_NUM_THREADS that the user
        has set stands.

        Args:
            loaders: processes that load data for each process.

        Returns:
            One phrase that says what each process has.
        """
        cores = len(os.sched_getaffinity(0))
        chosen = "OMP_NUM_THREADS" not in os.environ or OWN_THREADS in os.environ
        if chosen:
            torch.set_num_threads(max(1, cores * self.nodes // self.size - loaders))
        by = "OMP_NUM_THREADS changes the former" if chosen else "as OMP_NUM_THREADS says"
        return f"{torch.get_num_threads()} threads and {loaders} loaders a process on {cores} cores ({by})"


@contextmanager
def join(timeout: float = 120, patience: float = PATIENCE) -> Iterator[Processes]:
    """Find the other processes that torchrun started, or be alone.

    Reads torchrun's RANK, WORLD_SIZE and LOCAL_RANK, and TRIPLET_PROCESSES, which make sets to the number
    that it was asked for.

    Args:
        timeout: seconds to wait here for the others.
        patience: seconds to wait for them later: while one of them saves, compiles, or lists a million
            images on a slow disk.

    Raises:
        KitError: another number of processes than asked for, one that never came, or too few GPUs.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    local = int(os.environ.get("LOCAL_RANK", 0))
    expected = int(os.environ.get("TRIPLET_PROCESSES", size))
    if size != expected:
        raise KitError(
            f"found {size} processes (WORLD_SIZE), expected {expected} (GPUS x NODES); run the same "
            "make command, with GPUS=.. NODES=.. RDZV=host:port, on every node"
        )
    gpu = torch.cuda.is_available()
    if not gpu and (card := _card()):
        why = "update its driver, make doctor says to what" if torch.version.cuda else "it has no CUDA"
        raise KitError(
            f"torch cannot use the GPU here ({card}): {why}; or set CUDA_VISIBLE_DEVICES to nothing, to "
            "work on the CPU"
        )
    if gpu and local >= torch.cuda.device_count():
        raise KitError(f"found {torch.cuda.device_count()} GPUs for {local + 1} processes; lower GPUS")
    device = torch.device("cuda", local) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    if size == 1:
        yield Processes(0, 1, device)
        return
    try:
        dist.init_process_group(
            "nccl" if gpu else "gloo", timeout=timedelta(seconds=timeout), device_id=device if gpu else None
        )
        dist.barrier()
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=patience))
    except (dist.DistError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise KitError(
            f"process {rank} of {size} did not find the others within {timeout:.0f} s: {reason}"
        ) from None
    try:
        yield Processes(rank, size, device)
    except Interrupted:  # all of them agreed on that; after an error others may wait in a collective
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _card() -> Path | None:
    """A GPU that the machine or the container gives this process, which nobody told to leave it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return None
    cards = sorted(DEVICES.glob("nvidia[0-9]*"))
    return next((card for card in cards if os.access(card, os.R_OK | os.W_OK)), None)


def perform(
    processes: Processes, stage: str, folder: Path, work: Callable[[records.Job], None], **plan: Any
) -> None:
    """``records.perform`` for processes that work as one: all of them work, the first one keeps the record.

    Args:
        processes: each of them calls this.
        stage: see ``records.perform``, as for the rest.
        folder: of the stage.
        work: of every process; only the first one's Job is kept.
        plan: further arguments of ``records.perform``.

    Raises:
        KitError: on the first process, see there; on all of them what ``work`` raises.
    """
    if not processes.is_main_process:
        if processes.broadcast_object() == "work":
            work(records.Job(folder))
        return
    told: list[str] = []

    def all_work(job: records.Job) -> None:
        told.append(processes.broadcast_object("work"))
        work(job)

    try:
        records.perform(stage, folder, work=all_work, world_size=processes.size, **plan)
    finally:
        if not told:  # done already, or refused: let the others go
            processes.broadcast_object("nothing to do")


class PooledBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the images of several processes in plain operations.

    On the CPU, where torch has none, and in compiled networks: torch.nn.SyncBatchNorm waits for the device
    in each layer, which breaks every graph there.

    (N, C) or (N, C, H, W) with equal N on every process. Mean and variance take two passes, so that
    float32 loses nothing to cancellation; gradients flow through both, as in torch.nn.SyncBatchNorm. Lower
    precisions are normalised in float32.
    """

    group: dist.ProcessGroup

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (N, C) or (N, C, H, W): found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise by the pooled batch while training, by the running statistics otherwise."""
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = (0,) if input.dim() == 2 else (0, 2, 3)
        shape = (1, -1) if input.dim() == 2 else (1, -1, 1, 1)
        processes = dist.get_world_size(self.group)
        count = input.numel() // input.shape[1] * processes
        mean = all_reduce(x.sum(axes), "sum", self.group) / count
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes), "sum", self.group) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum or 0.0)
            self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        result: Tensor = (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)
        return result


def pool_batch_norm(
    module: nn.Module, processes: Processes, ranks: int, *, compiled: bool = False
) -> nn.Module:
    """Let every BN layer take its statistics over ``ranks`` consecutive processes.

    Args:
        module: changed in place where it can be; use what is returned.
        processes: all of them; each must call this.
        ranks: how many share the statistics; divides the number of processes.
        compiled: whether the module will be.
    """
    if ranks == 1:
        return module
    group = dist.group.WORLD
    if ranks < processes.size:
        for first in range(0, processes.size, ranks):
            made = dist.new_group(list(range(first, first + ranks)), timeout=timedelta(seconds=PATIENCE))
            if first <= processes.rank < first + ranks:
                group = made
    if processes.device.type == "cuda" and not compiled:
        result: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(module, group)
        return result
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.__class__ = PooledBatchNorm  # type: ignore[assignment]  # keeps names and tensors
            layer.group = group  # type: ignore[assignment]
    return module


class GroupBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of each of ``groups`` equal parts of the rows alone, as on GPUs of their own.

    The running statistics are those of the first part, as a GPU's that writes the checkpoint.
    """

    groups: int

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (N, C) or (N, C, H, W): found {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Each part by its own statistics while training, by the running ones otherwise."""
        if self.training and len(input) % self.groups:
            raise ValueError(f"{len(input)} rows do not divide into {self.groups} parts")
        first, *others = input.chunk(self.groups) if self.training else (input,)
        normalised = [
            nn.functional.batch_norm(part, None, None, self.weight, self.bias, True, 0.0, self.eps)
            for part in others
        ]
        return torch.cat([super().forward(first), *normalised])


def group_batch_norm(module: nn.Module, groups: int) -> None:
    """Let every BN layer, in place, normalise each of this many parts of a batch alone."""
    for layer in module.modules() if groups > 1 else ():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.__class__ = GroupBatchNorm  # type: ignore[assignment]  # keeps names and tensors
            layer.groups = groups  # type: ignore[assignment]
