"""Joining the other processes, and sharing the cores."""

import os
import re
import socket

import pytest
import torch
from torch.distributed.run import get_args_parser

from tests.conftest import KIT
from triplet.errors import KitError
from triplet.training import distributed
from triplet.training.distributed import Processes, join


@pytest.mark.slow
def test_a_missing_process_is_waited_for_as_long_as_said():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(KitError, match="process 0 of 2 did not find the others within 2 s"):
            join(timeout=2).__enter__()


@pytest.mark.parametrize(
    ("cores", "processes", "loaders", "threads"),
    [(16, 1, 15, 1), (16, 1, 4, 12), (16, 4, 2, 2), (2, 4, 0, 1)],
)
def test_threads_by_cores(monkeypatch, cores, processes, loaders, threads):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    said = Processes(0, processes, torch.device("cpu")).use_cores(loaders)
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert found == threads
    assert said.startswith(f"{threads} threads and {loaders} loaders a process on {cores} cores")


def test_a_gpu_that_torch_cannot_use_is_not_left_out_in_silence(tmp_path, monkeypatch):
    (tmp_path / "nvidia0").touch()  # a machine with a driver too old
    monkeypatch.setattr(distributed, "DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with distributed.join() as processes:  # nobody asked for it: CUDA_VISIBLE_DEVICES is empty in tests
        assert processes.device.type == "cpu"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with (
        pytest.raises(KitError, match=r"torch cannot use the GPU here .*nvidia0.*update"),
        distributed.join(),
    ):
        pass
    (tmp_path / "nvidia0").unlink()  # a container without it
    (tmp_path / "nvidiactl").touch()
    with distributed.join() as processes:
        assert processes.device.type == "cpu"


def test_torchrun_has_no_option_yet_for_the_time_to_save():
    """The day this fails, pass --shutdown-timeout in triplet/launch.py and delete its patch of PContext."""
    pins = (KIT / "docker" / "versions.env").read_text()
    major, minor = map(int, re.search(r"^TORCH_VERSION=(\d+)\.(\d+)", pins, re.M).groups())
    assert (major, minor) < (2, 12)
    assert "shutdown" not in get_args_parser().format_help()
