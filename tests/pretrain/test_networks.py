import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import nn

from triplet import toolchain
from triplet.config import parse
from triplet.errors import KitError
from triplet.pretrain import distributed, trainer
from triplet.pretrain.config import Pretrain
from triplet.pretrain.networks import Backbone, Networks
from triplet.pretrain.step import Sizes, triplet_step


@pytest.mark.parametrize("depth", [18, 50])
def test_backbone_is_torchvisions(depth):
    """Same names, same shapes, same features before the pooling."""
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours = Backbone(depth)
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 64, 64)
    layers = list(theirs.children())[:-2]
    torch.testing.assert_close(ours.eval()(images), nn.Sequential(*layers).eval()(images))


def test_width_scales_every_channel():
    full = Backbone(50, 64).state_dict()
    for name, value in Backbone(50, 16).state_dict().items():
        scaled = [n // 4 if axis < 2 and n > 3 else n for axis, n in enumerate(full[name].shape)]
        assert list(value.shape) == scaled, name
    assert Backbone(50, 16).channels == 512
    assert Backbone(50, 16)(torch.randn(1, 3, 64, 64)).shape == (1, 512, 2, 2)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    networks = Networks(50, 64, 512, 256)
    conv = networks.online.backbone.layer3[2].conv2.weight
    assert conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert networks.online.projector.fc0.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert networks.predictor.fc0.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not networks.online.projector.fc1.bias.any()
    assert (networks.online.backbone.layer1[0].bn3.weight == 1).all()


def test_target_is_a_frozen_copy_in_train_mode():
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8).train()
    for ours, theirs in zip(networks.online.parameters(), networks.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.requires_grad
        assert not theirs.requires_grad
    views = torch.randn(2, 12, 3, 32, 32)
    loss, predictions, targets = triplet_step(
        networks, views[0], views[1], Sizes(32, 32, 48, 64), lambda p, z: (p * z).sum()
    )
    loss.backward()
    assert predictions.shape == targets.shape == (24, 8)
    assert not targets.requires_grad
    assert all(p.grad is None for p in networks.target.parameters())
    assert all(p.grad is not None for p in networks.predictor.parameters())
    assert networks.target.backbone.bn1.num_batches_tracked == 2
    # Another resolution, so other statistics than the online network's.
    assert not torch.equal(
        networks.target.backbone.bn1.running_mean, networks.online.backbone.bn1.running_mean
    )


def test_the_step_predicts_the_other_view():
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8).eval()  # in train mode the second pass would see other statistics
    v1, v2 = torch.randn(2, 12, 3, 32, 32)
    calls = []

    def loss(prediction, target):
        calls.append((prediction, target))
        return prediction.sum()

    total, _, _ = triplet_step(networks, v1, v2, Sizes(32, 32, 32, 32), loss)
    with torch.no_grad():
        p1, p2 = (networks.predictor(networks.online(v)) for v in (v1, v2))
        z1, z2 = networks.target(v1), networks.target(v2)
    for (prediction, target), (p, z) in zip(calls, [(p1, z2), (p2, z1)], strict=True):
        torch.testing.assert_close(prediction, p)
        torch.testing.assert_close(target, z)
    torch.testing.assert_close(total, p1.sum() + p2.sum())


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


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(KitError, match=r"compile=true needs a C\+\+ compiler.*or add compile=false"):
        trainer.compile_networks(nn.Linear(1, 1))


def test_compilers_are_those_that_the_tools_call(monkeypatch):
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda name: {"g++": "/g++", "clang": "/clang"}.get(name)
    )
    for gpu, variable in ((True, "CC"), (False, "CXX")):
        monkeypatch.delenv(variable, raising=False)
        assert not any("compiler" in what for what in toolchain.missing(gpu=gpu))
        monkeypatch.setenv(variable, "ccache gcc")  # not one program
        assert any("compiler" in what for what in toolchain.missing(gpu=gpu))


@pytest.mark.parametrize("width", [4, 12])
def test_widths_that_torch_gets_wrong_on_some_processors_are_refused(width):
    with pytest.raises(KitError, match=r"model\.width: .*(multiple of 8|greater than or equal to 8)"):
        parse({"model": {"width": width}}, Pretrain, "test")
