"""A pretraining that starts from given weights: whole networks or a backbone, never nothing."""

import json

import pytest
import torch

from triplet import cli
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.training import checkpoint
from triplet.weights.initial import AUTHORS, load_initial


def networks(seed, hidden=16):
    torch.manual_seed(seed)
    made = Networks(18, 8, hidden, 8)
    for name, buffer in made.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    with torch.no_grad():
        for parameter in made.target.parameters():
            parameter.add_(0.1)
    return made


def raw(made):
    """The authors' raw epoch file: see section 2 of the recipe."""
    state = {}
    for theirs, ours in AUTHORS.items():
        state |= {
            theirs + k.removeprefix(ours): v for k, v in made.state_dict().items() if k.startswith(ours)
        }
    state |= {"backbone." + k: v for k, v in made.online.backbone.state_dict().items()}
    return {"meta": {"epoch": 940}, "state_dict": state}


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    return [key for key in one if torch.equal(one[key], other[key])] == list(one)


def test_the_authors_raw_file_fills_all_networks(tmp_path):
    source, filled = networks(1), networks(2)
    torch.save(raw(source), tmp_path / "epoch_940.pth")
    assert load_initial(tmp_path / "epoch_940.pth", filled) == "openselfsup raw networks, all of them"
    assert equal(source, filled)
    under_ddp = {"state_dict": {f"module.{k}": v for k, v in raw(source)["state_dict"].items()}}
    torch.save(under_ddp, tmp_path / "ddp.pth")
    filled = networks(3)
    load_initial(tmp_path / "ddp.pth", filled)
    assert equal(source, filled)
    state = raw(source)["state_dict"]
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}  # before torch 0.4.1
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    filled = networks(4)
    load_initial(tmp_path / "old.pth", filled)
    assert equal(source, filled)


def test_the_kits_own_checkpoint_fills_all_networks(tmp_path):
    source, filled = networks(1), networks(2)
    checkpoint.save(tmp_path / "checkpoint.pth", source, None, 5, 1)
    assert load_initial(tmp_path / "checkpoint.pth", filled) == "kit networks, all of them"
    assert equal(source, filled)


@pytest.mark.parametrize(
    ("key", "prefix", "kind"), [("state_dict", "", "extracted"), ("networks", "online.backbone.", "kit")]
)
def test_a_backbone_fills_both_backbones_and_leaves_the_rest(tmp_path, key, prefix, kind):
    source, filled, before = networks(1), networks(2), networks(2)
    state = {prefix + name: value for name, value in source.online.backbone.state_dict().items()}
    torch.save({key: state}, tmp_path / "backbone.pth")
    told = load_initial(tmp_path / "backbone.pth", filled)
    assert told == f"{kind} backbone; projector and predictor from the seed"
    assert equal(source.online.backbone, filled.online.backbone)
    assert equal(source.online.backbone, filled.target.backbone)
    assert equal(before.online.projector, filled.online.projector)
    assert equal(before.predictor, filled.predictor)


def test_what_does_not_fit_is_refused_and_nothing_is_filled(tmp_path):
    filled, before = networks(2), networks(2)
    state = raw(networks(1))["state_dict"]
    missing = {k: v for k, v in state.items() if k != "head.predictor.fc1.bias"}
    infinite = state | {"target_net.1.fc0.bias": torch.full((16,), torch.inf)}
    for content, message in (
        ({"state_dict": missing}, r"predictor\.fc1\.bias is missing"),
        ({"state_dict": infinite}, r"target\.projector\.fc0\.bias has shape .* not finite"),
        (raw(networks(1, hidden=32)), r"projector\.\S+ has shape"),
        (
            {"state_dict": Networks(18, 16, 16, 8).online.backbone.state_dict()},
            r"ResNet-18 of width 16, the config's is another; set model\.depth=18 model\.width=16",
        ),
    ):
        torch.save(content, tmp_path / "odd.pth")
        with pytest.raises(KitError, match=message):
            load_initial(tmp_path / "odd.pth", filled)
        assert equal(before, filled)


def test_a_run_starts_from_them_and_records_them(places, drawn, capsys):
    config = places / "config.yaml"
    config.write_text(
        "model: {depth: 18, width: 8, hidden: 16, outputs: 8}\n"
        "views: {size: 32, online: {smallest: 32, largest: 32}, target: {smallest: 32, largest: 32}}\n"
        "loss: {group: 12}\noptimizer: {groups: 1, accumulate: 1, learning_rate: 1e-30}\n"
        "schedule: {epochs: 1, warmup_epochs: 0}\nworkers: 0\n"
    )
    source = networks(1)
    torch.save(raw(source), places / "given.pth")
    run = ["pretrain", "--run", "run", "--config", str(config), "--data", str(drawn / "unlabelled")]
    assert cli.main([*run, "--weights", str(places / "given.pth")]) == 0
    assert "weights: openselfsup raw networks, all of them" in capsys.readouterr().out
    folder = places / "checkpoints" / "run" / "pretrain"
    found = torch.load(folder / "checkpoint.pth", weights_only=True)["networks"]
    assert torch.allclose(found["predictor.fc1.weight"], source.predictor.fc1.weight)
    record = json.loads((folder / "record.json").read_text())
    assert record["results"]["weights"] == "openselfsup raw networks, all of them"
    assert len(record["inputs"]["weights"]["sha256"]) == 64
    assert cli.main(run) == 2  # without them it is another run
    assert "input weights" in capsys.readouterr().err
    assert cli.main([*run, "--weights", str(places / "nowhere.pth")]) == 2
    assert "nothing at" in capsys.readouterr().err
