"""Our trainer and the Triplet plug-in in OpenSelfSup's own loop, from the same weights and batches."""

import pytest
import torch

from scripts.golden_whole_model import initial, views
from tests.support.backbones import theirs
from tests.support.openselfsup_steps import (
    ACCUMULATE,
    EPOCHS,
    GROUP,
    HIDDEN,
    IMAGES,
    OUTPUTS,
    SEED,
    SIDES,
    WARMUP,
)
from tests.support.processes import run_module
from triplet.config import load
from triplet.defaults import recipe
from triplet.models.networks import Networks
from triplet.openselfsup.train import to_openselfsup
from triplet.pretrain.config import Pretrain
from triplet.pretrain.layout import MicroBatch, Order
from triplet.pretrain.objective import Objective, backward
from triplet.pretrain.trainer import advance, make_optimizer
from triplet.training.distributed import Processes
from triplet.weights.initial import load_initial

SMALL = [
    "model.depth=18",
    f"model.hidden={HIDDEN}",
    f"model.outputs={OUTPUTS}",
    f"loss.group={GROUP}",
    "optimizer.groups=1",
    f"optimizer.accumulate={ACCUMULATE}",
    f"schedule.epochs={EPOCHS}",
    f"schedule.warmup_epochs={WARMUP}",
    f"seed={SEED}",
    *(f"views.{name}={{smallest: {low}, largest: {high}}}" for name, (low, high) in SIDES.items()),
]


@pytest.fixture(scope="module")
def trained(openselfsup, tmp_path_factory):
    """The file that ten steps of theirs leave."""
    folder = tmp_path_factory.mktemp("theirs")
    done = run_module("tests.support.openselfsup_steps", folder)
    assert done.returncode == 0, done.stderr
    return folder / "theirs.pth"


@pytest.mark.slow
@pytest.mark.timeout(1200)  # with what makes the file
def test_ten_steps_are_ours(trained):
    """To 1e-9 in float64: losses, learning rates, every tensor at the end."""
    found = torch.load(trained, weights_only=True)
    config = load(recipe("triplet", "pretrain"), Pretrain, SMALL)
    order, alone = Order(IMAGES, config), Processes(0, 1, torch.device("cpu"))
    objective = Objective(config, IMAGES, alone).double().train()
    networks = objective.networks
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            parameter.copy_(torch.from_numpy(initial(theirs(name), tuple(parameter.shape))))
    optimizer = make_optimizer(networks, config)
    assert order.iterations == len(found["loss"]) == 10 * ACCUMULATE
    for step in range(10):
        for iteration in range(step * ACCUMULATE, (step + 1) * ACCUMULATE):
            pairs = torch.stack([torch.from_numpy(views(i)) for i in found["indices"][iteration]])
            step = objective.begin(pairs, MicroBatch(iteration, ()))
            loss = backward(objective, step, ACCUMULATE)[0]
            assert loss.item() == pytest.approx(found["loss"][iteration], abs=1e-9)
        rate, _ = advance(networks, optimizer, config, order, step)
        assert rate == pytest.approx(found["learning_rate"][iteration], rel=1e-12)
    state = networks.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(
            value,
            found["state_dict"][theirs(name)],
            atol=1e-9,
            rtol=1e-9,
            msg=lambda text, n=name: f"{n}: {text}",
        )
    assert to_openselfsup(state).keys() == found["state_dict"].keys()


@pytest.mark.slow
def test_their_checkpoint_is_read_into_our_trainer_and_back(trained, tmp_path):
    networks = Networks(18, 64, HIDDEN, OUTPUTS)
    assert load_initial(trained, networks) == "openselfsup raw networks, all of them"
    back = to_openselfsup(networks.state_dict())
    for name, value in torch.load(trained, weights_only=True)["state_dict"].items():
        assert torch.equal(back[name], value.to(back[name].dtype)), name


def test_ours_under_their_names_is_read_as_theirs(tmp_path):
    """Without OpenSelfSup."""
    ours, other = Networks(18, 8, 16, 8), Networks(18, 8, 16, 8)
    torch.save({"state_dict": to_openselfsup(ours.state_dict())}, tmp_path / "epoch_1.pth")
    load_initial(tmp_path / "epoch_1.pth", other)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in ours.state_dict().items())
