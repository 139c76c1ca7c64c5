"""Data loading whose processes always end: at the end of the data, an error, a signal or a killed
worker."""

import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import wait
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from triplet.errors import KitError
from triplet.signals import Stop, ignore_in_worker

PREFETCHED = 8 * 2**30
"""Most bytes of prefetched batches in a process, except that each of its loaders may hold one."""


def load(
    dataset: Dataset[Any],
    order: Iterable[Any],
    *,
    workers: int,
    stop: Stop,
    prefetch: int = 2,
    pin: bool = False,
    start_worker: Callable[[int], None] = ignore_in_worker,
) -> Generator[Any, None, None]:
    """Yield items of a data set in an order; close the generator to end its processes.

    If a worker process is killed, for example by the kernel when memory is short, ``stop`` is set and this
    process loads the remaining items: the caller ends its step as usual, saves, and stops.

    Args:
        dataset: gives an item, such as a batch, for each key of the order.
        order: keys of the items; it can be iterated more than once.
        workers: number of worker processes; 0 loads in this process.
        stop: flag that the caller's loop polls.
        prefetch: number of items that each worker prepares in advance.
        pin: whether to copy tensors to pinned memory.
        start_worker: called in each worker with its number.

    Raises:
        KitError: raised by the data set, in this process or in a worker.
    """
    if workers == 0:
        yield from (dataset[key] for key in order)
        return
    loader = DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        # Python 3.14's default would start a new Python for each worker, and pickle the data set.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        worker_init_fn=start_worker,
        pin_memory=pin,
        persistent_workers=True,
        prefetch_factor=prefetch,
    )
    done = yield from _from_workers(loader)
    if done is not None:
        stop.lost_worker()
        yield from (dataset[key] for key in itertools.islice(order, done, None))


def _from_workers(loader: DataLoader[Any]) -> Generator[Any, None, int | None]:
    """Yield the loader's items; return the number yielded if a worker was killed, else None."""
    done, lost = 0, False
    before = signal.getsignal(signal.SIGCHLD)
    iterator: Any = iter(loader)
    with contextlib.suppress(ValueError):  # raised outside the main thread
        # Torch's handler would raise at an arbitrary place when a worker dies.
        signal.signal(signal.SIGCHLD, before)
    try:
        while not lost:
            try:
                item = next(iterator)
            except StopIteration:
                return None
            except KitError as error:
                raise from_worker(error) from None
            except Exception:  # torch's own, or a closed connection
                # Workers end only with their parent, so one that has ended was killed.
                lost = bool(wait([worker.sentinel for worker in iterator._workers], timeout=1))
                if not lost:
                    raise
            else:
                done += 1
                yield item
    finally:
        iterator._shutdown_workers()
        for worker in iterator._workers:  # workers ignore SIGTERM, and Python's exit would wait for them
            worker.kill()
    return done


def from_worker(error: KitError) -> KitError:
    """Return the error as the worker raised it, without the traceback that torch adds to the message."""
    return KitError(str(error).rpartition("KitError: ")[2].strip())


def _unchanged(item: Any) -> Any:
    return item


def prefetched(loaders: int, size: int) -> int:
    """Return how many batches of ``size`` bytes each loader process prefetches: 4, or fewer to stay below
    PREFETCHED."""
    return max(1, min(4, PREFETCHED // max(1, loaders * size)))


class _Batched(Dataset[Any]):
    """Data set of batches of another data set's items."""

    def __init__(self, dataset: Dataset[Any], collate: Callable[[list[Any]], tuple[Tensor, Any]]) -> None:
        self.dataset, self.collate = dataset, collate

    def __getitem__(self, keys: list[Any]) -> tuple[Tensor, Any]:
        return self.collate([self.dataset[key] for key in keys])


def stream(
    dataset: Dataset[Any],
    batches: Iterable[list[Any]],
    collate: Callable[[list[Any]], tuple[Tensor, Any]],
    loaders: int,
    device: torch.device,
    stop: Stop,
    size: int = 0,
) -> Generator[tuple[Tensor, Any], None, None]:
    """Yield batches of a data set, the first part on ``device``; close the generator to end its processes.

    Args:
        dataset: data set whose items can be loaded in any order.
        batches: list of item keys for each batch.
        collate: makes a batch of its items.
        loaders: number of worker processes; 0 loads in this process.
        device: device of the first part.
        stop: see ``loading.load``.
        size: bytes of a batch; fewer large batches are prefetched.

    Raises:
        KitError: raised by the data set, in this process or in a worker.
    """
    loaded = load(
        _Batched(dataset, collate),
        batches,
        workers=loaders,
        stop=stop,
        prefetch=prefetched(loaders, size) if loaders else 1,
        pin=device.type == "cuda",
    )
    with contextlib.closing(loaded):
        for first, second in loaded:
            yield first.to(device, non_blocking=True), second
