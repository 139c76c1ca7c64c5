"""Loaders in real processes, which end on every way out."""

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triplet.errors import KitError, WorkerKilled
from triplet.signals import Stop
from triplet.training.loading import PREFETCHED, load, prefetched, stream


class Numbers:
    """Item n: n, and the process that made it."""

    def __getitem__(self, n):
        if n == 66:
            raise KitError("66 is unreadable: mend it") from KitError("of another reader")
        if n == 88:
            return n // 0
        if n == 99 and multiprocessing.parent_process():
            time.sleep(600)
        return n, os.getpid()


class Evens:
    """An order that can be iterated more than once."""

    def __iter__(self):
        return iter(range(0, 60, 2))


def ended():
    """Whether no process of this one is left, seconds later."""
    until = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < until:
        time.sleep(0.01)
    return not multiprocessing.active_children()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Torch looks for killed workers every 5 seconds."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_from_so_many_processes(workers):
    found = list(load(Numbers(), Evens(), workers=workers, stop=Stop()))
    assert [n for n, _ in found] == list(range(0, 60, 2))
    made_by = {pid for _, pid in found}
    assert len(made_by) == max(1, workers)
    assert (os.getpid() in made_by) == (workers == 0)
    assert ended()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_sets_the_stop_and_loses_no_item(workers):
    """As the kernel does where memory is short; nothing is raised between two items."""
    stop, found = Stop(), []
    handler = signal.getsignal(signal.SIGCHLD)
    items = load(Numbers(), Evens(), workers=workers, stop=stop)
    for n, pid in items:
        found.append(n)
        if len(found) == 4:
            assert not stop
            assert signal.getsignal(signal.SIGCHLD) == handler
            os.kill(pid, signal.SIGKILL)
    assert found == list(range(0, 60, 2))
    assert stop
    error = stop.interrupted("7 of 9 steps")
    assert isinstance(error, WorkerKilled)
    assert error.code == 2
    assert "for want of memory" in str(error)
    assert "7 of 9 steps; run the same command to go on" in str(error)
    assert ended()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_data_set_arrives_as_it_was_raised(workers):
    with pytest.raises(KitError, match=r"^66 is unreadable: mend it$") as caught:
        list(load(Numbers(), [1, 2, 66, 3], workers=workers, stop=Stop()))
    assert ended(), f"though the error is alive: {caught}"


def test_an_unexpected_error_is_no_end_and_no_killed_worker():
    stop = Stop()
    with pytest.raises(ZeroDivisionError):
        list(load(Numbers(), [1, 2, 88, 3], workers=2, stop=stop))
    assert not stop
    assert ended()


@pytest.mark.parametrize("order", [range(0, 60, 2), [2, 4, 99, 99, 99]], ids=["busy", "stuck"])
def test_closing_ends_the_processes_at_once(order):
    items = load(Numbers(), order, workers=2, stop=Stop())
    next(items)
    assert len(multiprocessing.active_children()) == 2
    began = time.monotonic()
    items.close()
    assert ended()
    assert time.monotonic() - began < 20


@pytest.fixture
def counted():
    """A data set that no other process can be sent, and the number of items that it has made."""
    made = multiprocessing.Value("i", 0)

    class Counted:
        def __getitem__(self, n):
            with made:
                made.value += 1
            return np.array([n]), signal.getsignal(signal.SIGTERM) is signal.SIG_IGN

    return Counted(), made


def settled(made):
    """The number of items, once it has not grown for a while."""
    before = -1
    while before != made.value:
        before = made.value
        time.sleep(0.2)
    return before


@pytest.mark.parametrize("workers", [1, 2])
def test_each_worker_prepares_as_many_items_as_asked(counted, workers):
    """It begins as asked, by default by ignoring signals; nothing is made of an item but itself."""
    dataset, made = counted
    items = load(dataset, range(20), workers=workers, stop=Stop(), prefetch=3)
    array, ignored = next(items)
    assert (type(array), ignored) == (np.ndarray, True)
    assert settled(made) == 1 + 3 * workers
    items.close()
    begun = multiprocessing.Array("i", 2)
    first = next(load(dataset, [7], workers=1, stop=Stop(), start_worker=lambda n: begun.__setitem__(n, 1)))
    assert (first[0], first[1], begun[:]) == (7, False, [1, 0])


def test_a_stream_of_large_batches_holds_one_and_moves_it(counted):
    dataset, made = counted
    batches = [[n, n + 1] for n in range(0, 40, 2)]

    def collate(items):
        return torch.tensor([array.item() for array, _ in items]), len(items)

    items = stream(dataset, batches, collate, 1, torch.device("meta"), Stop(), PREFETCHED)
    first, count = next(items)
    assert (first.device.type, first.shape, count) == ("meta", (2,), 2)
    assert settled(made) == 2 * (1 + 1)
    items.close()
    assert ended()


@given(loaders=st.integers(1, 32), size=st.integers(0, 2**30))
def test_large_batches_are_not_piled_up(loaders, size):
    ahead = prefetched(loaders, size)
    assert 1 <= ahead <= 4
    assert ahead == 1 or ahead * loaders * size <= PREFETCHED
    assert ahead == 4 or (ahead + 1) * loaders * size > PREFETCHED
