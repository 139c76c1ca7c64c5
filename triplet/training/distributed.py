"""Processes that train together: joining, agreeing, exchanging tensors."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from triplet import energy, records
from triplet.environment import usable_cores
from triplet.errors import Interrupted, KitError, message_of

T = TypeVar("T")
PATIENCE = 1800.0
"""Seconds to wait for processes that have joined."""
DEVICES = Path("/dev")
OWN_THREADS = "TRIPLET_OWN_THREADS"
"""Environment variable that is set if OMP_NUM_THREADS is not the user's choice."""


@dataclass(frozen=True)
class Processes:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device

    @property
    def nodes(self) -> int:
        """Number of machines, each with the same number of processes."""
        return self.size // int(os.environ.get("LOCAL_WORLD_SIZE", self.size))

    @property
    def memory(self) -> float | None:
        """Bytes of memory of the smallest GPU; None without one."""
        if self.device.type != "cuda":
            return None
        return min(self.gather(torch.cuda.get_device_properties(self.device).total_memory))

    @property
    def free(self) -> float | None:
        """Bytes free on the fullest GPU, including what this process holds; None without one."""
        if self.device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return min(self.gather(free + torch.cuda.memory_reserved(self.device)))

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def assert_same(self, what: str, value: Any) -> None:
        """Raise KitError on every process unless all have an equal (JSON-able) value."""
        found = self.gather(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12])
        if odd := [rank for rank, theirs in enumerate(found) if theirs != found[0]]:
            raise KitError(
                f"process {odd[0]} has another {what} than process 0 ({found[odd[0]]}, {found[0]}); "
                "start all of them with the same command, kit and data"
            )

    def assert_same_inputs(self, files: Mapping[str, Path], images: Sequence[Path]) -> None:
        """Raise KitError on every process unless all read the same files, and nodes the same images.

        Args:
            files: files by what they are, such as ``file of weights``.
            images: folders, lists or shards of images; a node's copy may have the right names and truncated
                files.
        """
        for what, path in files.items():
            self.assert_same(what, records.Artifact.of(path).sha256)
        if self.nodes > 1:
            self.assert_same("copy of the images", [records.Artifact.of(path).sha256 for path in images])

    def broadcast_object(self, value: Any = None) -> Any:
        """Return the main process's value on every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    @torch.no_grad()
    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Copy the main process's tensors to every process, in place."""
        if self.size > 1:
            for tensor in tensors:
                plain = tensor.contiguous()  # NCCL does not accept channels-last
                dist.broadcast(plain, src=0)
                tensor.copy_(plain)

    def gather(self, value: T) -> list[T]:
        """Return every process's value, in order."""
        found = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(found, value)
        return found

    def all_gather(self, own: Tensor) -> Tensor:
        """Gather each process's (n, ...) into (size * n, ...), in order. The gradient flows into this
        process's rows alone."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, own.detach().contiguous())
        parts[self.rank] = own
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """Return the elementwise mean over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def use_cores(self, loaders: int) -> str:
        """Let torch compute on the CPU cores that the processes of this machine and their loaders leave.

        More threads than cores make a small network several times slower. An OMP_NUM_THREADS that the user
        has set stands.

        Args:
            loaders: processes that load data for each process.

        Returns:
            One phrase that says what each process has.
        """
        cores = usable_cores()
        chosen = "OMP_NUM_THREADS" not in os.environ or OWN_THREADS in os.environ
        if chosen:
            torch.set_num_threads(max(1, cores * self.nodes // self.size - loaders))
        by = "OMP_NUM_THREADS changes the former" if chosen else "as OMP_NUM_THREADS says"
        return f"{torch.get_num_threads()} threads and {loaders} loaders a process on {cores} cores ({by})"


@contextmanager
def join(timeout: float = 120, patience: float = PATIENCE) -> Iterator[Processes]:
    """Join the other processes that torchrun started, or run alone.

    This reads torchrun's RANK, WORLD_SIZE and LOCAL_RANK, and TRIPLET_PROCESSES, which make sets to the
    requested number.

    Args:
        timeout: seconds to wait for the others to join.
        patience: seconds to wait for them later, while one of them saves, compiles, or lists a million
            images on a slow disk.

    Raises:
        KitError: a wrong number of processes, one that did not join, or too few GPUs.
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
        reason = message_of(error)
        raise KitError(
            f"process {rank} of {size} did not find the others within {timeout:.0f} s: {reason}"
        ) from None
    try:
        yield Processes(rank, size, device)
    except Interrupted:  # all processes agreed on it; after an error others may wait in a collective
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _card() -> Path | None:
    """Return the device file of a GPU of this process; None if CUDA_VISIBLE_DEVICES hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1", "NoDevFiles"):
        return None
    cards = sorted(DEVICES.glob("nvidia[0-9]*"))
    return next((card for card in cards if os.access(card, os.R_OK | os.W_OK)), None)


def perform(
    processes: Processes, stage: str, folder: Path, work: Callable[[records.Job], None], **plan: Any
) -> None:
    """Perform a stage with several processes: all of them work, and the main process keeps the record.

    Args:
        processes: all processes; each calls this.
        stage: name of the stage, see ``records.perform``.
        folder: folder of the stage.
        work: run by every process; only the main process's Job is kept.
        plan: further arguments of ``records.perform``.

    Raises:
        KitError: on the main process, see ``records.perform``; on all processes, if ``work`` raises it.
    """
    if not processes.is_main_process:
        if processes.broadcast_object() == "work":
            _measured(processes, work, records.Job(folder))
        return
    told: list[str] = []

    def all_work(job: records.Job) -> None:
        told.append(processes.broadcast_object("work"))
        _measured(processes, work, job)

    try:
        records.perform(stage, folder, work=all_work, world_size=processes.size, **plan)
    finally:
        if not told:  # done already, or refused: release the other processes
            processes.broadcast_object("nothing to do")


def _measured(processes: Processes, work: Callable[[records.Job], None], job: records.Job) -> None:
    """Run ``work``, and fill in the energy that all processes used for it."""
    spent = energy.measure()

    def sum_up() -> None:
        job.energy_kwh = energy.total(processes.gather(spent()))

    try:
        work(job)
    except BaseException as error:
        # All processes agree on a stop; after an error others may wait elsewhere, or have ended.
        if processes.size == 1 or isinstance(error, Interrupted):
            with suppress(RuntimeError):
                sum_up()
        raise
    sum_up()
