"""The whole method beside the authors' released code: tests/golden/whole_model.npz holds its numbers,
scripts/golden_whole_model.py made them and says how much of them is theirs.
"""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scripts import golden_whole_model as script
from scripts.golden_whole_model import (
    ACCUMULATE,
    CASES,
    GROUP,
    HIDDEN,
    MEASURES,
    OUTPUTS,
    SHRINK,
    fingerprint,
    initial,
    views,
)
from tests.support.backbones import theirs
from tests.support.convolution import by_one_product
from triplet.pretrain.config import Pretrain
from triplet.pretrain.layout import MicroBatch, Order
from triplet.pretrain.methods import triplet
from triplet.pretrain.methods.triplet import resize
from triplet.pretrain.objective import Objective, backward
from triplet.pretrain.trainer import advance, make_optimizer
from triplet.pretrain.views import InputResolutions, normalize
from triplet.training import optim, schedule
from triplet.training.distributed import Processes
from triplet.training.optim import LARS, ema_update

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "whole_model.npz")
ALONE = Processes(0, 1, torch.device("cpu"))
TOLERANCE = 1e-9
DIFFERENT = 1e-5
"""What is wrong on purpose must show by more than this."""


@dataclass
class Run:
    """A training by our parts from their weights and batches, and how far its numbers are from theirs."""

    case: str
    config: Pretrain
    order: Order
    objective: Objective
    optimizer: LARS

    def golden(self, key: str) -> np.ndarray:
        return GOLDEN[f"{self.case}_{key}"]

    def micro_batch(self, iteration: int) -> tuple[Tensor, InputResolutions]:
        pairs = np.stack([views(i) for i in self.golden("indices")[iteration].tolist()])
        return torch.from_numpy(pairs), InputResolutions(
            *(self.golden("sides")[iteration] // SHRINK).tolist()
        )

    def passes(self, number: int, divide: int = ACCUMULATE) -> float:
        """Gradients of an optimiser step (none under no_grad); the largest deviation of its losses."""
        worst = 0.0
        for iteration in range(number * ACCUMULATE, (number + 1) * ACCUMULATE):
            pairs, sizes = self.micro_batch(iteration)
            step = self.objective.begin(pairs, MicroBatch(iteration, ()), sizes)
            loss = backward(self.objective, step, divide)[0]
            worst = max(worst, abs(loss.item() - self.golden("loss")[iteration].item()))
        return worst

    def advance(self, number: int) -> dict[str, float]:
        """End an optimiser step: deviations of the schedules."""
        used = advance(self.objective.networks, self.optimizer, self.config, self.order, number)
        return {
            key: abs(value / self.golden(key)[number].item() - 1)
            for key, value in zip(("learning_rate", "ema_momentum"), used, strict=True)
        }

    def tensors(self, number: int) -> dict[str, float]:
        """Deviations of parameters and BN statistics, by group, where theirs were kept after this step."""
        networks, keep = self.objective.networks, CASES[self.case].keep
        if number + 1 not in keep:
            return {}
        return {
            key: self._deviation(key, dict(named), keep.index(number + 1))
            for key, named in (
                ("parameters", networks.named_parameters()),
                ("buffers", networks.named_buffers()),
            )
        }

    def _deviation(self, key: str, ours: dict[str, Tensor], kept: int) -> float:
        found = {theirs(name): fingerprint(tensor.numpy(force=True)) for name, tensor in ours.items()}
        names = self.golden(key.replace("ers", "er_names")).tolist()
        assert found.keys() == set(names)
        expected = self.golden(key)[kept]
        off = np.abs(np.stack([found[name] for name in names]) - expected)
        norm = MEASURES.index("norm")
        off[:, norm] /= expected[:, norm]  # the others are of order 1
        return off.max().item()


def make(case: str) -> Run:
    """Settings that the script leaves as theirs are the defaults of our config."""
    shape = CASES[case]
    config = Pretrain.model_validate(
        dict(
            model=dict(depth=shape.depth, hidden=HIDDEN, outputs=OUTPUTS),
            loss=dict(group=GROUP),
            optimizer=dict(groups=1, accumulate=ACCUMULATE),
            schedule=dict(epochs=shape.epochs, warmup_epochs=shape.warmup_epochs),
        )
    )
    objective = Objective(config, shape.images, ALONE).double().train()
    with torch.no_grad():
        for name, parameter in objective.networks.named_parameters():
            parameter.copy_(torch.from_numpy(initial(theirs(name), tuple(parameter.shape))))
    optimizer = make_optimizer(objective.networks, config)
    return Run(case, config, Order(shape.images, config), objective, optimizer)


def duplicate(run: Run) -> Run:
    """The same with tensors and gradients of its own, and no step of the optimiser done."""
    objective = copy.deepcopy(run.objective)
    for ours, other in zip(objective.parameters(), run.objective.parameters(), strict=True):
        ours.grad = None if other.grad is None else other.grad.clone()
    return replace(run, objective=objective, optimizer=make_optimizer(objective.networks, run.config))


@pytest.fixture(scope="module", autouse=True)
def _quick_convolutions():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Conv2d, "_conv_forward", by_one_product)
        yield


@pytest.fixture(scope="module")
def fresh() -> Run:
    """Not to be changed: duplicate it."""
    return make("r18")


@pytest.fixture(scope="module")
def begun(fresh) -> Run:
    """With the gradients of the first step. Not to be changed: duplicate it."""
    run = duplicate(fresh)
    assert run.passes(0) < TOLERANCE
    return run


def test_ten_steps_are_the_authors(begun):
    """To 1e-9 in float64: losses, both schedules, each parameter and each BN statistic."""
    run = duplicate(begun)
    assert run.order.iterations == len(run.golden("loss")) == 10 * ACCUMULATE
    for number in range(10):
        worst = {
            "loss": run.passes(number) if number else 0.0,
            **run.advance(number),
            **run.tensors(number),
        }
        print(number + 1, {key: f"{value:.1e}" for key, value in worst.items()})
        assert max(worst.values()) < TOLERANCE, (number, worst)


def test_a_step_of_resnet_50_is_the_authors():
    run = make("r50")
    worst = {"loss": run.passes(0), **run.advance(0), **run.tensors(0)}
    print({key: f"{value:.1e}" for key, value in worst.items()})
    assert max(worst.values()) < TOLERANCE, worst
    assert excluded(run) == dict(zip(GOLDEN["r50_trained_names"], GOLDEN["r50_excluded"], strict=True))


def test_the_same_tensors_are_excluded(fresh):
    expected = dict(zip(GOLDEN["r18_trained_names"], GOLDEN["r18_excluded"], strict=True))
    assert excluded(fresh) == expected
    assert not expected["online_net.0.layer2.0.downsample.1.weight"]
    assert expected["online_net.0.layer2.0.downsample.1.bias"]


def excluded(run: Run) -> dict[str, bool]:
    names = {id(tensor): theirs(name) for name, tensor in run.objective.networks.named_parameters()}
    return {
        names[id(parameter)]: group["lars_exclude"]
        for group in run.optimizer.param_groups
        for parameter in group["params"]
    }


def test_their_order_is_optimizer_then_ema():
    """What the numbers above prove of ours, said by their runner itself."""
    hooks = GOLDEN["r18_hooks"].tolist()
    assert hooks.index("CosineAnnealingLrUpdaterHook") < hooks.index("DistOptimizerHook")
    assert hooks.index("DistOptimizerHook") < hooks.index("TripletHook")


def test_the_target_starts_as_a_copy(fresh):
    assert GOLDEN["r18_target_copied"]
    networks = Objective(fresh.config, fresh.order.images, ALONE).networks
    for online, target in zip(networks.online.parameters(), networks.target.parameters(), strict=True):
        assert torch.equal(online, target)


def test_sides_are_drawn_from_the_same_ranges(fresh):
    config, drawn = fresh.config.views, GOLDEN["r18_sides"]
    for ours, seen in ((config.online, drawn[:, :2]), (config.target, drawn[:, 2:])):
        assert ours.smallest <= seen.min() <= seen.max() <= ours.largest


# What follows is wrong on purpose, and must be seen: the comparison above would prove little otherwise.


class Mistake(pytest.MonkeyPatch):
    def of_advance(self, name: str, wrong: Callable) -> None:
        """Replace what ``advance`` calls by that name."""
        self.setattr(sys.modules[advance.__module__], name, wrong)


def ema_before_the_optimizer(run: Run, mistake: Mistake) -> None:
    networks = run.objective.networks
    mistake.of_advance("ema_update", lambda *_: None)
    ema_update(networks.target, networks.online, run.golden("ema_momentum")[0])


def ema_of_each_micro_batch(run: Run, mistake: Mistake) -> None:
    def twice(target, online, momentum):
        ema_update(target, online, momentum)
        ema_update(target, online, momentum)

    mistake.of_advance("ema_update", twice)


def ema_of_statistics(run: Run, mistake: Mistake) -> None:
    def more(target, online, momentum):
        ema_update(target, online, momentum)
        for kept, other in zip(target.buffers(), online.buffers(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(other, 1 - momentum)

    mistake.of_advance("ema_update", more)


def schedule_of_the_first_micro_batch(run: Run, mistake: Mistake, name: str) -> None:
    right = getattr(schedule, name)
    mistake.of_advance(name, lambda iteration, **rest: right(iteration - ACCUMULATE + 1, **rest))


def other_groups(run: Run, mistake: Mistake, pattern: str) -> None:
    mistake.setattr(optim, "EXCLUDED", re.compile(pattern))
    run.optimizer = make_optimizer(run.objective.networks, run.config)


def gradients_not_divided(run: Run, mistake: Mistake) -> None:
    for parameter in run.objective.parameters():
        if parameter.grad is not None:
            parameter.grad *= ACCUMULATE


@pytest.mark.parametrize(
    ("make_it_wrong", "seen"),
    [
        (ema_before_the_optimizer, {"parameters"}),
        (ema_of_each_micro_batch, {"parameters"}),
        (ema_of_statistics, {"buffers"}),
        (partial(schedule_of_the_first_micro_batch, name="learning_rate"), {"learning_rate", "parameters"}),
        (partial(schedule_of_the_first_micro_batch, name="ema_momentum"), {"ema_momentum", "parameters"}),
        (partial(other_groups, pattern=rf"{optim.EXCLUDED.pattern}|downsample\.1"), {"parameters"}),
        (partial(other_groups, pattern=r"(bn|gn)(\d+)?.(weight|bias)|fc\d.bias"), {"parameters"}),
        (gradients_not_divided, {"parameters"}),
    ],
)
def test_a_wrong_update_is_seen(begun, make_it_wrong, seen):
    run = duplicate(begun)
    with Mistake.context() as mistake:
        make_it_wrong(run, mistake)
        worst = {**run.advance(0), **run.tensors(0)}
    print(worst)
    assert {key for key, value in worst.items() if value > DIFFERENT} == seen
    assert all(value < TOLERANCE for key, value in worst.items() if key not in seen)


def test_a_learning_rate_outside_the_momentum_is_seen(begun):
    """As in torch's SGD: shows in the second step, when the rate is another one."""
    run = duplicate(begun)
    run.advance(0)
    first, second = run.golden("learning_rate")[:2]
    for state in run.optimizer.state.values():
        state["momentum_buffer"] *= second / first
    run.passes(1)
    run.advance(1)
    assert run.tensors(1)["parameters"] > DIFFERENT


def target_in_eval_mode(run: Run, mistake: Mistake) -> None:
    run.objective.networks.target.eval()


def target_of_the_same_view(run: Run, mistake: Mistake) -> None:
    shown = []
    for iteration in range(ACCUMULATE):
        pairs, sizes = run.micro_batch(iteration)
        for view, side in ((0, sizes.target_1), (1, sizes.target_2)):  # right is view 2, then view 1
            shown.append(resize(normalize(pairs[:, view], torch.float64), side))
    run.objective.networks.target.register_forward_pre_hook(lambda *_: (shown.pop(0),))


def view_2_first(run: Run, mistake: Mistake) -> None:
    """The loss is symmetric, the running statistics of BN are not."""
    right = run.micro_batch

    def swapped(iteration):
        pairs, sizes = right(iteration)
        one = InputResolutions(sizes.online_2, sizes.online_1, sizes.target_2, sizes.target_1)
        return pairs.flip(1), one

    mistake.setattr(run, "micro_batch", swapped)


def sides_of_the_other_network(run: Run, mistake: Mistake) -> None:
    right = run.micro_batch

    def swapped(iteration):
        pairs, sizes = right(iteration)
        return pairs, InputResolutions(sizes.target_1, sizes.target_2, sizes.online_1, sizes.online_2)

    mistake.setattr(run, "micro_batch", swapped)


def resize_otherwise(run: Run, mistake: Mistake, **options) -> None:
    mistake.setattr(triplet, "resize", lambda view, side: F.interpolate(view, (side, side), **options))


@pytest.mark.parametrize(
    ("make_it_wrong", "seen"),
    [
        (target_in_eval_mode, {"loss", "buffers"}),
        (target_of_the_same_view, {"loss", "buffers"}),
        (view_2_first, {"buffers"}),
        (sides_of_the_other_network, {"loss", "buffers"}),
        (partial(resize_otherwise, mode="bilinear", antialias=True), {"loss", "buffers"}),
    ],
)
@torch.no_grad()
def test_a_wrong_forward_pass_is_seen(fresh, make_it_wrong, seen):
    run = duplicate(fresh)
    with Mistake.context() as mistake:
        make_it_wrong(run, mistake)
        worst = {"loss": run.passes(0), "buffers": run.tensors(0)["buffers"]}
    print(worst)
    assert {key for key, value in worst.items() if value > DIFFERENT} == seen
    assert all(value < TOLERANCE for key, value in worst.items() if key not in seen)


def test_the_script_refuses_another_checkout_and_environment(tmp_path, monkeypatch, capsys):
    def refused() -> str:
        with pytest.raises(SystemExit) as ended:
            script.check(tmp_path)
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert "is not a git checkout of https://github.com/wanggrun/triplet" in refused()
    (tmp_path / "openselfsup").mkdir()
    file = tmp_path / "openselfsup" / "a.py"
    file.write_text("")
    git("init")
    git("add", ".")
    git("commit", "--message", "a")
    assert f"expected {script.COMMIT}; run: git -C" in refused()
    monkeypatch.setattr(script, "COMMIT", git("rev-parse", "HEAD"))
    monkeypatch.setattr(script, "MMCV", ("0.1",))
    assert "expected 0.1; see the head of this file" in refused()
    file.write_text("changed = 1")
    assert "has local changes" in refused()
