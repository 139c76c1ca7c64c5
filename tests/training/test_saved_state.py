"""What a checkpoint holds, what is never saved, which one counts, and that a training goes on from it."""

import hashlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from triplet.errors import KitError
from triplet.training import checkpoint
from triplet.training.distributed import Processes
from triplet.training.optim import LARS, parameter_groups

ALONE = Processes(0, 1, torch.device("cpu"))


class Small(nn.Module):
    """A network with weights, statistics and counts."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.fc, self.bn = nn.Linear(3, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.fc(x)).square().mean() + F.smooth_l1_loss(
            self.fc(x), x.sum(1, keepdim=True).expand(-1, 4)
        )


def make(kind, seed=0):
    network = Small(seed)
    if kind == "lars":
        groups = parameter_groups(network.named_parameters(), 0.01)
        return network, LARS(groups, 0.3, momentum=0.7, eta=0.05)
    return network, torch.optim.SGD(network.parameters(), 0.3, momentum=0.7, weight_decay=0.01)


def train(network, optimizer, first, last):
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 / (step + 1)
        optimizer.zero_grad()
        network(torch.randn(6, 3, generator=torch.Generator().manual_seed(step))).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["lars", "sgd"])
def test_a_resumed_training_ends_like_one_that_never_stopped(tmp_path, kind):
    whole, optimizer = make(kind)
    train(whole, optimizer, 0, 5)
    stopped, optimizer = make(kind)
    train(stopped, optimizer, 0, 2)
    checkpoint.save(tmp_path / "step_0000002.pth", stopped, optimizer, 2, 1)
    resumed, optimizer = make(kind, seed=9)
    assert checkpoint.resume(tmp_path, resumed, optimizer, ALONE, 10**8) == 2
    train(resumed, optimizer, 2, 5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_checkpoint_holds_what_its_documentation_says(tmp_path):
    network, optimizer = make("lars")
    train(network, optimizer, 0, 3)
    path = tmp_path / "step_0000003.pth"
    checkpoint.save(path, network, optimizer, 3, 7)
    state = torch.load(path, weights_only=True)
    assert {key: state[key] for key in ("format", "step", "epoch")} == {
        "format": "triplet-kit/1",
        "step": 3,
        "epoch": 7,
    }
    assert all(torch.equal(value, state["networks"][name]) for name, value in network.state_dict().items())
    assert state["networks"].keys() == network.state_dict().keys()
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        momentum = state["optimizer"]["state"][number]["momentum_buffer"]
        assert torch.equal(momentum, optimizer.state[p]["momentum_buffer"])
        assert momentum.any()
    beside = (tmp_path / "step_0000003.pth.sha256").read_text()
    assert beside == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  step_0000003.pth\n"
    checkpoint.save(tmp_path / "checkpoint.pth", network, None, 3, 7)
    assert torch.load(tmp_path / "checkpoint.pth", weights_only=True)["optimizer"] is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["fc.weight", "bn.running_var"])
def test_one_value_that_is_not_finite_is_never_saved(tmp_path, name, value):
    network, optimizer = make("sgd")
    for step in (8, 9):
        checkpoint.save(tmp_path / f"step_000000{step}.pth", network, optimizer, step, 1)
    before = sorted(path.name for path in tmp_path.iterdir())
    network.state_dict()[name].view(-1)[-1] = value
    message = rf"^{name} is not finite after step 12: .* last good checkpoint: step_0000009\.pth; lower"
    with pytest.raises(KitError, match=message):
        checkpoint.save(tmp_path / "step_0000012.pth", network, optimizer, 12, 1)
    with pytest.raises(KitError, match=name):
        checkpoint.save(tmp_path / "checkpoint.pth", network, None, 12, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_the_newest_checkpoint_is_that_of_the_most_steps(tmp_path):
    network, optimizer = make("sgd")
    steps = (9_999_998, 9_999_999, 10_000_000)
    for step in steps:
        network.fc.weight.data.fill_(step)
        checkpoint.save(tmp_path / f"step_{step:07d}.pth", network, optimizer, step, 1)
    (tmp_path / "step_99999999.pth.sha256").touch()
    (tmp_path / "step_x.pth").touch()
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [*reversed(steps)]
    fresh, optimizer = make("sgd", seed=3)
    assert checkpoint.resume(tmp_path, fresh, optimizer, ALONE, 10**8) == 10_000_000
    assert (fresh.fc.weight == 10_000_000).all()
    checkpoint.keep(tmp_path, 2)
    assert [checkpoint.step_of(path) for path in checkpoint.checkpoints(tmp_path)] == [
        10_000_000,
        9_999_999,
    ]
    assert not (tmp_path / "step_9999998.pth.sha256").exists()
    assert (tmp_path / "step_10000000.pth.sha256").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "digest of another"])
def test_whatever_is_wrong_with_the_newest_the_one_before_counts(tmp_path, damage, capsys):
    network, optimizer = make("sgd")
    for step in (3, 6):
        network.fc.weight.data.fill_(step)
        checkpoint.save(tmp_path / f"step_000000{step}.pth", network, optimizer, step, 1)
    newest, digest = tmp_path / "step_0000006.pth", tmp_path / "step_0000006.pth.sha256"
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        newest.write_bytes(content[:-1])
    elif damage == "flipped":
        content[len(content) // 2] ^= 4
        newest.write_bytes(content)
    else:
        digest.write_bytes((tmp_path / "step_0000003.pth.sha256").read_bytes())
    fresh, optimizer = make("sgd", seed=3)
    assert checkpoint.resume(tmp_path, fresh, optimizer, ALONE, 10**8) == 3
    assert (fresh.fc.weight == 3).all()
    assert "step_0000006.pth is damaged" in capsys.readouterr().out


def test_without_a_checkpoint_nothing_changes(tmp_path):
    network, optimizer = make("sgd")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert checkpoint.resume(tmp_path, network, optimizer, ALONE, 10**8) == 0
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())


class First(Processes):
    """The first of two processes, of which only one finds checkpoints."""

    def gather(self, value):
        return [value, not value]


def test_a_checkpoint_of_another_node_alone_is_refused(tmp_path):
    network, optimizer = make("sgd")
    with pytest.raises(KitError, match=r"process 1 finds checkpoints in .* where process 0 finds none"):
        checkpoint.resume(tmp_path, network, optimizer, First(0, 1, torch.device("cpu")), 10**8)


def test_nodes_that_share_no_folder_resume_from_the_first(tmp_path):
    network, optimizer = make("sgd")
    checkpoint.save(tmp_path / "step_0000004.pth", network, optimizer, 4, 1)
    assert checkpoint.resume(tmp_path, network, optimizer, First(0, 1, torch.device("cpu")), 10**8) == 4


@pytest.mark.parametrize("steps", [0, 3], ids=["without momenta", "with momenta"])
def test_what_the_first_process_reads_every_process_has(tmp_path, steps):
    """Weights, statistics and momenta, those that the file lacks as zeros. The second one reads nothing."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "step_0000009.pth").write_text("damaged")
    network, optimizer = make("sgd", seed=4)
    train(network, optimizer, 0, steps)
    checkpoint.save(tmp_path / "step_0000003.pth", network, optimizer, 3, 1)
    said, found = [], []

    class Pair(Processes):
        def gather(self, value):
            return [True, False]

        def broadcast_object(self, value=None):
            if self.is_main_process:
                said.append(value)
            return value if self.is_main_process else said.pop(0)

        def broadcast(self, tensors):
            if self.is_main_process:
                said.append([tensor.clone() for tensor in tensors])
            else:
                for ours, theirs in zip(tensors, said.pop(0), strict=True):
                    ours.data.copy_(theirs)

    for rank, folder in enumerate((tmp_path, tmp_path / "elsewhere")):
        fresh, theirs = make("sgd", seed=5 + rank)
        assert checkpoint.resume(folder, fresh, theirs, Pair(rank, 2, torch.device("cpu")), 10**8) == 3
        found.append((fresh.state_dict(), [theirs.state[p]["momentum_buffer"] for p in fresh.parameters()]))
    for state, momenta in found:
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        for p, momentum in zip(network.parameters(), momenta, strict=True):
            assert torch.equal(momentum, optimizer.state[p].get("momentum_buffer", torch.zeros_like(p)))
