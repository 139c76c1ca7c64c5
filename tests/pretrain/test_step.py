"""The step, and the networks that are trained: compiled or not, and of which widths."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.conftest import KIT
from tests.support.batches import triplet_batch
from triplet import toolchain
from triplet.config import load, parse
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.models.resnet import BLOCKS
from triplet.pretrain.config import Pretrain
from triplet.pretrain.methods import triplet
from triplet.pretrain.views import InputResolutions
from triplet.training.compilation import compile_networks


def test_the_step_predicts_the_other_view(monkeypatch):
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8).eval()  # in train mode the second pass would see other statistics
    v1, v2 = torch.randn(2, 12, 3, 32, 32)
    calls = []

    def loss(prediction, target, **options):
        calls.append((prediction, target, options))
        return prediction.sum()

    monkeypatch.setattr(triplet, "truncated_triplet_loss", loss)
    given = {"gamma": 3.0, "margin": 1.0, "nearest": 5, "skip": 2, "group": 6}
    step = triplet.step(networks, [v1, v2], triplet_batch(InputResolutions(32, 32, 32, 32), **given))
    total = next(step) + next(step)
    with torch.no_grad():
        p1, p2 = (networks.predictor(networks.online(v)) for v in (v1, v2))
        z1, z2 = networks.target(v1), networks.target(v2)
    for (prediction, target, options), (p, z) in zip(calls, [(p1, z2), (p2, z1)], strict=True):
        assert options == {"group_size": given["group"], **{k: v for k, v in given.items() if k != "group"}}
        torch.testing.assert_close(prediction, p)
        torch.testing.assert_close(target, z)
    torch.testing.assert_close(total, p1.sum() + p2.sum())


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    with pytest.raises(KitError, match=r"compile=true needs a C\+\+ compiler.*or add compile=false"):
        compile_networks([nn.Linear(1, 1)], dynamic=False)


@pytest.mark.slow
def test_the_authors_resolutions_need_two_graphs_a_network(monkeypatch):
    """Over every resolution of an epoch, odd ones as well, in training and without gradients."""
    monkeypatch.setitem(BLOCKS, 18, (BLOCKS[18][0], [1, 1, 1, 1]))  # takes half as long
    networks = Networks(18, 8, 16, 8).train()
    torch._dynamo.reset()
    counters.clear()
    compile_networks(networks.children(), dynamic=True, backend="aot_eager")
    found = []
    for side in (64, 47, *range(33, 65)):
        images = torch.randn(2, 3, side, side).contiguous(memory_format=torch.channels_last)
        networks.predictor(networks.online(images)).sum().backward()
        with torch.no_grad():
            networks.target(images)
        found.append(counters["stats"]["unique_graphs"])
    assert found[-1] == found[2], found
    assert found[-1] <= 2 * 3


@pytest.mark.parametrize("width", [4, 12])
def test_widths_that_crash_torch_on_some_cpus_are_refused(width):
    with pytest.raises(KitError, match=r"model\.width: .*(multiple of 8|greater than or equal to 8)"):
        parse({"model": {"width": width}}, Pretrain, "test")


def test_the_narrowest_network_on_large_views_is_refused():
    """Its backward pass crashes by oneDNN on AVX-512; wider, deeper and on smaller views it does not."""
    path, narrow = KIT / "configs/pretrain/demo.yaml", ["model.depth=18", "model.width=8"]
    small = ["views.size=224"]
    small += [
        f"views.{network}.{end}=199" for network in ("online", "target") for end in ("smallest", "largest")
    ]
    small += ["views.online.step=1", "views.target.step=1"]
    large = [each.replace("199", "224") for each in small]
    with pytest.raises(KitError, match=r"model\.width=8 .* 224 px.*take model\.width=16.*at most 199 px"):
        load(path, Pretrain, [*narrow, *large])
    for given in (
        [*narrow, *small],
        ["model.depth=18", "model.width=16", *large],
        ["model.depth=50", "model.width=8", *large],
    ):
        assert load(path, Pretrain, given).model.width in (8, 16)
