"""Data loading whose processes end in every case: the end of the data, an error, a signal, a killed
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
"""Most bytes of batches that a process holds ready, as long as each of its loaders has one."""


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

    When a worker process is killed, as the kernel does where memory is short, ``stop`` is set and the items
    that follow are loaded in this process: the caller ends its step as always, saves, and stops.

    Args:
        dataset: gives an item (a batch, say) for each key of the order.
        order: keys; it can be iterated more than once.
        workers: processes that load, 0 for this one.
        stop: of the caller's loop.
        prefetch: items that each worker has ready.
        pin: copy tensors to pinned memory.
        start_worker: called in each worker with its number.

    Raises:
        KitError: one of the data set's own, in whatever process, as it was raised there.
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
        # Python 3.14's own choice would start Python anew for each, and pickle the data set.
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
    """Yield the loader's items; return how many there were when a worker was killed, else None."""
    done, lost = 0, False
    before = signal.getsignal(signal.SIGCHLD)
    iterator: Any = iter(loader)
    with contextlib.suppress(ValueError):  # in another thread than the main one
        # Torch's handler would raise in the middle of whatever runs when a worker dies.
        signal.signal(signal.SIGCHLD, before)
    try:
        while not lost:
            try:
                item = next(iterator)
            except StopIteration:
                return None
            except KitError as error:
                raise from_worker(error) from None
            except Exception:  # torch's own, or a connection that ended
                # They end with their parent only: an end is a death.
                lost = bool(wait([worker.sentinel for worker in iterator._workers], timeout=1))
                if not lost:
                    raise
            else:
                done += 1
                yield item
    finally:
        iterator._shutdown_workers()
        for worker in iterator._workers:  # they ignore SIGTERM, and Python's exit would wait for them
            worker.kill()
    return done


def from_worker(error: KitError) -> KitError:
    """Return the error as the worker raised it; torch puts the worker's traceback into the message."""
    return KitError(str(error).rpartition("KitError: ")[2].strip())


def _unchanged(item: Any) -> Any:
    return item


def prefetched(loaders: int, size: int) -> int:
    """Return the batches of ``size`` bytes that each loader process makes ahead: 4, or fewer where all
    would exceed PREFETCHED."""
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
        dataset: of items that can be loaded in any order.
        batches: which items, a list for each batch.
        collate: makes a batch of its items.
        loaders: processes that load, 0 for this one.
        device: where to.
        stop: see ``loading.load``.
        size: bytes of a batch, so that fewer are prefetched where they are large.

    Raises:
        KitError: one of the data set's own, in whatever process.
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
