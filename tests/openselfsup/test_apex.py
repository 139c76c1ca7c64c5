"""The facade for apex, on its own."""

import pytest
import torch
from torch import nn

from triplet.openselfsup import apex


def made():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def test_accumulated_steps_are_those_without_it():
    """Up to bfloat16, in which the forward pass runs here."""
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(1))
    plain, optimizer = made()
    mixed, wrapped = apex.initialize(*made(), opt_level="O1")
    for step in range(3):
        for part in x[2 * step : 2 * step + 2]:
            (plain(part).square().mean() / 2).backward()
            loss = mixed(part).float().square().mean() / 2
            assert mixed(part).dtype == torch.bfloat16
            with apex.scale_loss(loss, wrapped) as scaled:
                assert scaled.item() == pytest.approx(65536 * loss.item())
                scaled.backward()
        for each in (optimizer, wrapped):
            each.step()
            each.zero_grad()
    for ours, theirs in zip(mixed.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-3, rtol=0.05)
        assert ours.dtype == torch.float32


def test_a_step_that_overflows_is_skipped_and_the_scale_halved():
    model, optimizer = apex.initialize(*made())
    before = [p.clone() for p in model.parameters()]
    with apex.scale_loss(model(torch.ones(2, 8)).sum(), optimizer) as scaled:
        scaled.backward()
    model[0].weight.grad[0, 0] = torch.inf
    optimizer.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert optimizer.scaler.get_scale() == 32768
    optimizer.zero_grad()
    with apex.scale_loss(model(torch.ones(2, 8)).sum(), optimizer) as scaled:
        scaled.backward()
    optimizer.step()
    assert not all(map(torch.equal, before, model.parameters()))


def test_another_level_is_refused():
    with pytest.raises(ValueError, match="O1: found 'O2'"):
        apex.initialize(*made(), opt_level="O2")
