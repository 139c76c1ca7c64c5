"""Data loading whose processes end on every way out: an end, an error, a signal, the death of one."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader, Dataset

from triplet.errors import KitError
from triplet.signals import Stop, ignore_in_worker


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
    """Items of a data set, in an order; close the generator to end its processes.

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
        worker_init_fn=start_worker,
        pin_memory=pin,
        persistent_workers=True,
        prefetch_factor=prefetch,
    )
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
                return
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
    stop.lost_worker()
    yield from (dataset[key] for key in itertools.islice(order, done, None))


def from_worker(error: KitError) -> KitError:
    """The error as it was raised in the worker, whose traceback torch puts into the message."""
    return KitError(str(error).rpartition("KitError: ")[2].strip())


def _unchanged(item: Any) -> Any:
    return item
