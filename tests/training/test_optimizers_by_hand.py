"""LARS, EMA and the two schedules beside plain loops, with constants of their own."""

import math

import pytest
import torch
from torch import nn

from triplet.training.optim import LARS, ema_update, parameter_groups
from triplet.training.schedule import ema_momentum, learning_rate


@pytest.mark.parametrize("penalty", [0.07, 0.0])
def test_lars_is_its_formula_for_any_constants(penalty):
    """Seven steps at a rate that changes; the excluded group neither adapts nor decays."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.double)

    weight, bias, late = (nn.Parameter(draw(*shape)) for shape in ((3, 4), (4,), (2, 2)))
    groups = parameter_groups([("fc.weight", weight), ("fc.bias", bias), ("late.weight", late)], penalty)
    optimizer = LARS(groups, 0.5, momentum=0.6, eta=0.03)
    state = {id(p): (p.detach().clone(), torch.zeros_like(p)) for p in (weight, bias, late)}
    for step in range(7):
        rate = 0.5 / (1 + step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for p in (weight, bias, late):
            p.grad = None if p is late and step < 3 else draw(*p.shape)
            if p.grad is None:
                continue
            w, buffer = state[id(p)]
            ratio = 0.03 * w.norm() / (p.grad.norm() + penalty * w.norm()) if p is not bias else 1.0
            decay = penalty if p is not bias else 0.0
            buffer = 0.6 * buffer + ratio * rate * (p.grad + decay * w)
            state[id(p)] = w - buffer, buffer
        optimizer.step()
        for p in (weight, bias, late):
            torch.testing.assert_close(p.detach(), state[id(p)][0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["lr", "momentum", "weight_decay", "eta"])
def test_no_constant_of_lars_is_negative_and_each_may_be_zero(name):
    p = [nn.Parameter(torch.ones(2))]
    with pytest.raises(ValueError, match=f"LARS: {name} must not be negative: found -0.1"):
        LARS(p, **{"lr": 0.1, name: -0.1})
    LARS(p, **{"lr": 0.1, name: 0.0})


def test_frozen_parameters_are_in_no_group_and_names_decide():
    frozen, free = nn.Parameter(torch.ones(1), requires_grad=False), nn.Parameter(torch.ones(1))
    named = {"a.weight": free, "b.weight": frozen, "bn1.weight": nn.Parameter(torch.ones(1))}
    named |= {"bn2_weight": nn.Parameter(torch.ones(1))}  # the released pattern's dot is any character
    named |= {"gn.weight": nn.Parameter(torch.ones(1)), "c.bias": nn.Parameter(torch.ones(1))}
    adapted, excluded = (group["params"] for group in parameter_groups(named.items(), 0.2))
    assert [id(p) for p in adapted] == [id(free)]
    assert [id(p) for p in excluded] == [
        id(named[n]) for n in ("bn1.weight", "bn2_weight", "gn.weight", "c.bias")
    ]


def test_lars_counts_the_gradient_that_a_closure_makes():
    p = nn.Parameter(torch.tensor([2.0]))

    def closure():
        loss = (3 * p).sum()
        loss.backward()
        return loss

    assert LARS([{"params": [p], "lars_exclude": True}], lr=0.5).step(closure).item() == 6
    assert p.item() == pytest.approx(2 - 0.5 * 3)


def test_ema_keeps_its_share_of_the_target_over_steps():
    online, target = nn.Linear(2, 3), nn.Linear(2, 3)
    expected = [p.detach().clone() for p in target.parameters()]
    for step in range(4):
        with torch.no_grad():
            online.weight += step
        ema_update(target, online, 0.8)
        expected = [0.8 * e + 0.2 * p.detach() for e, p in zip(expected, online.parameters(), strict=True)]
    for p, e in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(p.detach(), e)


def test_every_iteration_of_a_schedule_is_its_formula():
    """Seven iterations an epoch, five epochs, two and a half of warm-up from a twentieth."""
    for iteration in range(35):
        epoch = iteration // 7
        cosine = 0.5 * 3.0 * (1 + math.cos(math.pi * epoch / 5))
        factor = 1.0
        if iteration < 17.5:
            factor = 0.05 + (1 - 0.05) * iteration / 17.5
        chosen = dict(peak=3.0, iterations_per_epoch=7, epochs=5, warmup_epochs=2.5, warmup_ratio=0.05)
        assert learning_rate(iteration, **chosen) == pytest.approx(cosine * factor, rel=1e-12)
        stepped = 3.0 * (1, 1, 0.1, 0.1, 0.01)[epoch]
        assert learning_rate(iteration, **chosen, steps=(2, 4)) == pytest.approx(
            stepped * factor, rel=1e-12
        )
        kept = 1 - 0.3 * (1 + math.cos(math.pi * iteration / 35)) / 2
        assert ema_momentum(iteration, iterations=35, base=0.7) == pytest.approx(kept, rel=1e-12)
    assert learning_rate(0, peak=3.0, iterations_per_epoch=7, epochs=500) == pytest.approx(3e-4)
    assert learning_rate(70, peak=3.0, iterations_per_epoch=7, epochs=500) < 3
    assert learning_rate(69, peak=3.0, iterations_per_epoch=7, epochs=500) < 3 * 69.1 / 70
    assert ema_momentum(0, iterations=10) == pytest.approx(0.99)
