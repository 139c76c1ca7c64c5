"""The launcher: how it ends, what it says, and how long stopped processes may save."""

import logging
import os
import signal

import pytest
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError

from triplet import launch


@pytest.fixture
def ends(monkeypatch):
    """A function that runs the launcher with a torchrun that ends in some way; what it waited for."""
    waited = []
    monkeypatch.setattr(PContext, "close", lambda self, signal=None, timeout=30: waited.append(timeout))
    monkeypatch.setattr(os, "environ", {**os.environ})

    def main_with(error):
        def torchrun():
            try:
                if error:
                    raise error
            finally:
                PContext.close(None)

        monkeypatch.setattr(run, "main", torchrun)
        return launch.main()

    yield main_with, waited
    logging.disable(logging.NOTSET)


def failed(code, first=0):
    return ChildFailedError("work", {first: ProcessFailure(first, 1, code, "nowhere")})


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (failed(3, first=2), 3, ""),
        (failed(-signal.SIGKILL), 137, ""),
        (SignalException("stopped", signal.SIGTERM), 143, ""),
        (SignalException("stopped", signal.SIGINT), 130, ""),
        (ValueError("no ranks"), 2, "torchrun refuses its arguments (no ranks); GPUS and NODES are"),
        (AssertionError(), 2, "torchrun refuses its arguments; GPUS and NODES are whole numbers"),
        (RendezvousError("timed out"), 2, "the nodes did not meet (timed out); start the same command"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,  # no time of day
)
def test_each_end_of_torchrun_has_its_code_and_at_most_a_line(ends, capsys, error, code, said):
    main, _ = ends
    assert main(error) == code
    out, heard = capsys.readouterr()
    assert (out, heard.count("\n")) == ("", int(bool(said)))
    assert said in heard


def test_stopped_processes_may_save_longer_than_failed_ones(ends):
    """Long enough for a step and a checkpoint; Slurm and compose would kill after 300 seconds."""
    main, waited = ends
    main(SignalException("stopped", signal.SIGTERM))
    main(failed(1))
    assert 60 <= waited[0] <= 240
    assert waited[1] == 30


@pytest.mark.parametrize(("given", "threads", "own"), [(None, "1", "1"), ("7", "7", None)])
def test_the_users_number_of_threads_stays(ends, given, threads, own):
    main, _ = ends
    for name in ("OMP_NUM_THREADS", "TRIPLET_OWN_THREADS", "TORCH_CPP_LOG_LEVEL"):
        os.environ.pop(name, None)
    if given:
        os.environ |= {"OMP_NUM_THREADS": given, "TORCH_CPP_LOG_LEVEL": "INFO"}
    main(None)
    assert (os.environ["OMP_NUM_THREADS"], os.environ.get("TRIPLET_OWN_THREADS")) == (threads, own)
    assert os.environ["TORCH_CPP_LOG_LEVEL"] == ("INFO" if given else "ERROR")
    assert not logging.getLogger("torch.distributed").isEnabledFor(logging.ERROR)
