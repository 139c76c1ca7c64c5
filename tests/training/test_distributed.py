"""Joining the other processes, sharing the cores, and batch normalisation over several processes."""

import os
import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from triplet.errors import KitError
from triplet.training import distributed
from triplet.training.distributed import Processes, join


@pytest.mark.slow
def test_a_process_that_never_comes_is_waited_for_no_longer_than_said():
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


TWO = distributed.Processes(0, 2, torch.device("cpu"))


@pytest.fixture
def alone(tmp_path):
    """A process group of one."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_pooled_statistics_are_those_of_torch(alone, offset):
    """Also of features far from 0."""
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    for layer in (ours, theirs):
        layer.running_mean.fill_(0.9 * offset)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 5))
    (layer,) = (m for m in distributed.pool_batch_norm(ours, TWO, 2).modules() if hasattr(m, "group"))
    assert isinstance(layer, distributed.PooledBatchNorm)
    images = 3 * torch.randn(6, 5, 7, 7) + offset
    made = []
    for network in (ours, theirs):
        x = images.clone().requires_grad_()
        y = network(x)
        (y.square() * torch.arange(7)).sum().backward()
        made.append((y, x.grad, network.weight.grad, network.running_mean, network.running_var))
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_one_group_needs_no_groups():
    layer = nn.Sequential(nn.BatchNorm2d(3))
    distributed.group_batch_norm(layer, 1)
    assert type(layer[0]) is nn.BatchNorm2d
    distributed.group_batch_norm(layer, 2)
    assert type(layer[0]) is distributed.GroupBatchNorm


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
