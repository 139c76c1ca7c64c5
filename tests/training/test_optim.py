from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from triplet.models.networks import Encoder, mlp
from triplet.training.optim import LARS, ema_update, parameter_groups

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "lars.npz")


def test_lars_equals_the_authors():
    names = [key.removeprefix("init_") for key in GOLDEN.files if key.startswith("init_")]
    params = {n: nn.Parameter(torch.tensor(GOLDEN[f"init_{n}"])) for n in names}
    optimizer = LARS(parameter_groups(params.items(), weight_decay=1e-6), lr=1.0)
    for step, lr in enumerate(GOLDEN["lrs"]):
        for group in optimizer.param_groups:
            group["lr"] = float(lr)
        for name, p in params.items():
            p.grad = torch.tensor(GOLDEN[f"grad{step}_{name}"])
        optimizer.step()
        for name, p in params.items():
            expected = torch.tensor(GOLDEN[f"after{step}_{name}"])
            torch.testing.assert_close(p.data, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 1e-6])
def test_zero_gradient_gives_no_nan(decay):
    weight, bias = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.zeros(3))
    optimizer = LARS([weight, bias], lr=1.0, weight_decay=decay)
    weight.grad, bias.grad = torch.zeros(3, 3), torch.zeros(3)
    optimizer.step()
    assert torch.isfinite(weight).all()
    assert torch.equal(bias, torch.zeros(3))
    assert torch.equal(weight, torch.ones(3, 3)) == (decay == 0)


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: reading one raises."""
    p = nn.Parameter(torch.ones(3, 3, device="meta"))
    optimizer = LARS([p], lr=1.0, weight_decay=1e-6)
    p.grad = torch.ones(3, 3, device="meta")
    optimizer.step()
    with torch.device("meta"):
        ema_update(nn.Linear(2, 2), nn.Linear(2, 2), 0.5)


def test_groups_follow_the_released_pattern():
    groups = parameter_groups(
        Encoder(50, 4, lambda channels: mlp(channels, 8, 8)).named_parameters(), weight_decay=0.1
    )
    adapted, excluded = ({id(p) for p in g["params"]} for g in groups)
    named = dict(Encoder(50, 4, lambda channels: mlp(channels, 8, 8)).named_parameters())
    assert len(adapted) + len(excluded) == len(named)
    assert (groups[0]["weight_decay"], groups[1]["weight_decay"]) == (0.1, 0.0)
    assert groups[1]["lars_exclude"]
    assert "lars_exclude" not in groups[0]
    single = {
        "backbone.conv1.weight": 0,
        "backbone.bn1.weight": 1,
        "backbone.layer1.0.bn3.bias": 1,
        "backbone.layer1.0.downsample.1.weight": 0,
        "backbone.layer1.0.downsample.1.bias": 1,
        "projector.fc0.weight": 0,
        "projector.fc0.bias": 1,
        "projector.bn0.weight": 1,
    }
    for name, group in single.items():
        alone = parameter_groups([(name, named[name])], 0.1)
        assert len(alone[group]["params"]) == 1, name


def test_parameters_without_gradient_are_left_alone():
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([used, unused], lr=1.0)
    used.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2))
    assert not torch.equal(used, torch.ones(2))


def test_closure_and_negative_settings():
    p = nn.Parameter(torch.ones(2))

    def closure():
        p.grad = torch.ones(2)
        return 7.0

    assert LARS([p], lr=0.1).step(closure) == 7.0
    with pytest.raises(ValueError, match="momentum must not be negative"):
        LARS([p], lr=0.1, momentum=-1)


def test_state_survives_saving():
    torch.manual_seed(0)
    grads = torch.randn(6, 4)

    def run(split):
        p = nn.Parameter(torch.ones(4))
        optimizer = LARS([p], lr=0.5, weight_decay=0.1)
        for i, grad in enumerate(grads):
            if i == split:
                saved, value = optimizer.state_dict(), p.detach().clone()
                p = nn.Parameter(value)
                optimizer = LARS([p], lr=0.5, weight_decay=0.1)
                optimizer.load_state_dict(saved)
            p.grad = grad.clone()
            optimizer.step()
        return p.detach()

    assert torch.equal(run(split=3), run(split=None))


def test_ema_moves_parameters_and_not_statistics():
    online, target = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    nn.init.constant_(online.weight, 2.0)
    online.running_mean.fill_(5.0)
    ema_update(target, online, momentum=0.75)
    assert torch.equal(target.weight.data, torch.full((3,), 1.25))
    assert torch.equal(target.running_mean, torch.zeros(3))
