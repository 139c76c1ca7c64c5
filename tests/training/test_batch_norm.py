"""Batch normalisation over several processes, and over each part of a batch alone."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor.compile_fx import view_to_reshape
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V

from tests.support.processes import launch
from triplet.training import batch_norm
from triplet.training.batch_norm import PooledBatchNorm, pool_batch_norm
from triplet.training.distributed import Processes

PROGRAM = (Path(__file__).with_name("pooled_batch_norm.py"),)
TWO = Processes(0, 2, torch.device("cpu"))


@pytest.fixture
def alone(tmp_path):
    """A process group of one; its name."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD.group_name
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [2, 4])
def test_pooled_layers_are_plain_ones_on_the_whole_batch(processes):
    """To 1e-12 in float64, with equal and unequal numbers of images, with none on one process, in teams."""
    process = launch(processes, program=PROGRAM)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    found = json.loads(out)
    assert len(found) == 7 * 8
    assert {name: value for name, value in found.items() if not value < 1e-12} == {}


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_pooled_statistics_are_those_of_torch(alone, offset):
    """Also of features far from 0, and where nothing is trained."""
    torch.manual_seed(0)
    ours, theirs = (nn.BatchNorm2d(5, eps=0.04, momentum=0.3) for _ in range(2))
    for layer in (ours, theirs):
        layer.running_mean.fill_(0.9 * offset)
        with torch.no_grad():
            layer.weight.copy_(torch.linspace(0.5, 2, 5))
            layer.bias.copy_(torch.linspace(-1, 3, 5))
    pool_batch_norm(ours, TWO, 2)
    assert isinstance(ours, PooledBatchNorm)
    images = 3 * torch.randn(6, 5, 7, 7) + offset
    made = []
    for network in (ours, theirs):
        x = images.clone().requires_grad_()
        y = network(x)
        (y.square() * torch.arange(7)).sum().backward()
        gradients = (x.grad, network.weight.grad, network.bias.grad)
        made.append((y, *gradients, *network.state_dict().values(), network.eval()(images)))
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.detach().abs().max().item())


def test_half_precision_is_normalised_in_float32(alone):
    layer = nn.BatchNorm2d(3)
    pool_batch_norm(layer, TWO, 2)
    images = (1000 + torch.randn(8, 3, 4, 4)).bfloat16().requires_grad_()
    output = layer(images)
    output.square().sum().backward()
    assert (output.dtype, images.grad.dtype, layer.weight.grad.dtype) == (
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
    )
    expected = nn.functional.batch_norm(images.detach().double(), None, None, training=True)
    torch.testing.assert_close(output.double(), expected, atol=0.02, rtol=0.02)


def test_the_collectives_are_whole_operators(alone):
    statistics = torch.cat([torch.randn(3), torch.rand(3), torch.tensor([5.0])])
    torch.library.opcheck(batch_norm.pool_statistics, (statistics, alone))
    torch.library.opcheck(batch_norm.sum_over_processes, (torch.randn(6), alone))


def test_a_compiled_network_has_one_graph_and_the_same_gradients(alone):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    pool_batch_norm(network, TWO, 2)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)  # raises at a graph break
    images, found = torch.randn(6, 3, 8, 8), []
    for each in (network, compiled):
        network.zero_grad()
        network[1].reset_running_stats()
        each(images).square().sum().backward()
        found.append([*(p.grad.clone() for p in network.parameters()), network[1].running_var.clone()])
    for eager, other in zip(*found, strict=True):
        torch.testing.assert_close(eager, other)


def bytes_moved(network, images):
    """Bytes that inductor's kernels would read and write, forward and backward; no kernel is built."""
    counted = []

    def count(graph, inputs):
        fake = detect_fake_mode(inputs)
        view_to_reshape(graph)
        lowering = GraphLowering(graph, example_inputs=inputs, shape_env=fake.shape_env)
        with (
            V.set_fake_mode(fake),
            V.set_graph_handler(lowering),
            V.set_debug_handler(DebugContext()),
            torch.no_grad(),
        ):
            lowering.run(*inputs)
            lowering._update_scheduler()
            counted.append(lowering.count_bytes()[0])
        return make_boxed_func(graph.forward)

    backend = aot_autograd(
        fw_compiler=count,
        bw_compiler=count,
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    torch._dynamo.reset()
    torch.compile(network, backend=backend, fullgraph=True)(images).square().sum().backward()
    assert len(counted) == 2
    return sum(counted)


def test_compiled_it_moves_hardly_more_bytes_than_a_plain_layer(alone):
    """At most 1.1 times."""
    networks = [
        nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)
        )
        for _ in range(2)
    ]
    pool_batch_norm(networks[1], TWO, 2)
    plain, pooled = (bytes_moved(network, torch.randn(8, 3, 32, 32)) for network in networks)
    assert 0 < pooled <= 1.1 * plain, (plain, pooled)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_kernels_give_what_plain_operations_give(tmp_path, monkeypatch, layout, dtype):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("nccl", store=store, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    try:
        torch.manual_seed(0)
        images = (2 * torch.randn(16, 8, 9, 7) + 1).to("cuda", dtype).contiguous(memory_format=layout)
        found = []
        for kernels in (True, False):
            layer = nn.BatchNorm2d(8, device="cuda")
            pool_batch_norm(layer, Processes(0, 2, torch.device("cuda")), 2)
            if not kernels:
                monkeypatch.setattr(batch_norm, "_by_kernels", lambda x: False)
            x = images.clone(memory_format=torch.preserve_format).requires_grad_()
            y = layer(x)
            (y.float().square() * torch.arange(7, device="cuda")).sum().backward()
            found.append((y, x.grad, layer.weight.grad, layer.bias.grad, layer.running_var))
        for kernel, plain in zip(*found, strict=True):
            torch.testing.assert_close(
                kernel, plain, rtol=2e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-2
            )
    finally:
        dist.destroy_process_group()


def test_only_layers_of_the_kinds_are_pooled(alone):
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm2d(2))
    pool_batch_norm(network, TWO, 2, kinds=(nn.BatchNorm2d,))
    assert [type(layer) for layer in network] == [nn.BatchNorm1d, PooledBatchNorm]
    pool_batch_norm(network, TWO, 2)
    assert [type(layer) for layer in network] == [PooledBatchNorm] * 2
    with pytest.raises(ValueError, match=r"expected \(N, C\) or \(N, C, H, W\): found \(4, 2, 3\)"):
        network[0](torch.randn(4, 2, 3))


def test_one_group_needs_no_groups():
    layer = nn.Sequential(nn.BatchNorm2d(3))
    batch_norm.group_batch_norm(layer, 1)
    pool_batch_norm(layer, Processes(0, 1, torch.device("cpu")), 1)
    assert type(layer[0]) is nn.BatchNorm2d
    batch_norm.group_batch_norm(layer, 2)
    assert type(layer[0]) is batch_norm.GroupBatchNorm
