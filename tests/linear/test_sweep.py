"""The fast protocol and its features: the same optimiser, known answers, shards that survive a stop."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F

from benchmarks.linear import features
from benchmarks.linear.backbone import load_backbone
from benchmarks.linear.config import Linear, Sweep
from benchmarks.linear.data import CenterCrops, Crops, open_sets
from benchmarks.linear.features import Features
from benchmarks.linear.sweep import Heads, hold_out, score, train
from tests.conftest import KIT
from tests.linear.conftest import IMAGES, NAMES, SWEEP, draw
from tests.support.processes import launch
from triplet import cli
from triplet.config import load
from triplet.pretrain.views import normalize

CPU = torch.device("cpu")
KNN = IMAGES + "neighbours: [3, 20]\n"


def record(places, stage, run="run", name=None):
    folder = places / "checkpoints" / run / stage / (name or stage)
    return json.loads((folder / "record.json").read_text())


def problem(count=60, channels=5, classes=3):
    """Features of overlapping classes, labels, and a generator that has drawn them."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, channels, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, channels, generator=generator, dtype=torch.float64)
    return centres[labels] + noise, labels


def test_heads_side_by_side_are_torchs_sgd_one_by_one():
    x, y = problem()
    rates, decays = torch.tensor([0.3, 0.1, 0.02]), torch.tensor([0.0, 0.1, 0.01])
    heads = Heads(5, 3, rates, decays, 0.6, 0, CPU, torch.float64)
    start = heads.weight[:, :3].clone()
    plain = []
    for rate, decay in zip(rates.tolist(), decays.tolist(), strict=True):
        model = nn.Linear(5, 3, dtype=torch.float64)
        model.weight.data, model.bias.data = start.T.clone(), torch.zeros(3, dtype=torch.float64)
        groups = [{"params": [model.weight], "weight_decay": decay}, {"params": [model.bias]}]
        plain.append((model, torch.optim.SGD(groups, rate, 0.6), rate))
    for step, factor in enumerate((0.5, 1.0, 0.7, 0.2)):
        part = slice(10 * step, 10 * step + 20)
        heads.step(x[part], y[part], factor)
        for model, optimizer, rate in plain:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    for number, (model, *_) in enumerate(plain):
        torch.testing.assert_close(heads.weight[:, 3 * number :][:, :3].T, model.weight.data)
        torch.testing.assert_close(heads.bias[3 * number :][:3], model.bias.data)
        torch.testing.assert_close(heads.logits(x)[:, number], model(x).detach())


def test_a_converged_head_is_scikit_learns_logistic_regression():
    x, y = problem()
    decay = 0.05
    heads = Heads(5, 3, torch.tensor([0.5]), torch.tensor([decay]), 0.9, 0, CPU, torch.float64)
    for _ in range(3000):
        heads.step(x, y, 1.0)
    theirs = LogisticRegression(C=1 / (len(x) * decay), tol=1e-12, max_iter=10_000).fit(
        x.numpy(), y.numpy()
    )
    np.testing.assert_allclose(heads.weight.T.numpy(), theirs.coef_, atol=1e-5)
    # Softmax does not see what is added to all biases.
    ours, others = heads.bias.numpy(), theirs.intercept_
    np.testing.assert_allclose(ours - ours.mean(), others - others.mean(), atol=1e-5)


@pytest.mark.parametrize("shuffled", [False, True])
def test_separable_features_are_learned_shuffled_labels_not(shuffled):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 4
    x = F.one_hot(labels, 4) + 0.05 * torch.randn(600, 4, generator=generator)
    if shuffled:
        labels = labels[torch.randperm(600, generator=generator)]
    config = Sweep(crops=0, held_out=0.2, learning_rates=(0.1, 1), weight_decays=(0,), batch=50, epochs=20)
    held = hold_out(labels.numpy(), 0.2, 0)
    heads = Heads(4, 4, torch.tensor([0.1, 1.0]), torch.zeros(2), 0.9, 0, CPU)
    source = [lambda places: x[torch.from_numpy(places)]]
    train(source, labels, np.flatnonzero(~held), heads, config, 0, quiet=True)
    found = score(source[0], np.flatnonzero(held), labels, heads)
    assert found.shape == (2, 2)
    if shuffled:  # a quarter of 120, 4 deviations wide
        assert (found[:, 0] < 41).all()
    else:
        assert (found[:, 0] == 100).all()
    assert (found[:, 1] == 100).all(), "four classes are all among the first five"


@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    share=st.floats(0.01, 0.5),
    seed=st.integers(0, 9),
)
def test_each_class_holds_out_its_share(sizes, share, seed):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    held = hold_out(labels, share, seed)
    assert np.array_equal(held, hold_out(labels, share, seed))
    assert [held[labels == n].sum() for n in range(len(sizes))] == [max(1, round(share * s)) for s in sizes]


def test_a_class_of_one_image_cannot_hold_out(places, run, tmp_path, capsys):
    draw(tmp_path / "train", 1, 0)
    draw(tmp_path / "val", 1, 0)
    assert cli.main(run("linear", SWEEP, data=tmp_path)) == 2
    assert "a class with one training image has none to hold out" in capsys.readouterr().err


@given(rows=st.integers(1, 40), length=st.integers(1, 13), seed=st.integers(0, 99))
def test_rows_are_found_in_whatever_shard(tmp_path_factory, rows, length, seed):
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(seed)
    whole = rng.normal(size=(rows, 3)).astype(np.float16)
    paths = []
    for first in range(0, rows, length):
        paths.append(folder / f"{first:03d}.npy")
        np.save(paths[-1], whole[first : first + length])
    found = Features(paths)
    places = rng.integers(0, rows, 17)
    assert np.array_equal(found.rows(places).numpy(), whole[places])
    assert np.array_equal(found.on(CPU).numpy(), whole)
    assert (len(found), found.bytes) == (rows, whole.nbytes)


def test_the_kept_features_are_the_backbones(places, run, imagenet, weights, capsys):
    assert cli.main(run("linear", SWEEP, "seed=4")) == 0
    results = record(places, "linear")["results"]
    assert (results["protocol"], results["views"], results["images"]) == ("fast", 3, 36)
    assert results["last"]["top1"] == results["chosen"]["held_out_top1"] == 100
    assert [(head["learning_rate"], head["weight_decay"]) for head in results["heads"]] == [
        (0.1, 0),
        (0.1, 1e-4),
        (1, 0),
        (1, 1e-4),
    ]

    settings = load(places / "linear.yaml", Linear, ["seed=4"])
    ours, _ = open_sets(imagenet / "train", imagenet / "val")
    backbone, _ = load_backbone(weights)
    backbone.eval()
    for kind, view, data, item in (
        ("centres", "train", CenterCrops(ours, settings.images), 7),
        ("crops", "train-1", Crops(ours, settings.images, 4), (1, 7)),
    ):
        kept = np.load(places / "checkpoints/run/features" / kind / f"{view}-00000.npy")
        assert kept.dtype == np.float16
        pixels = torch.tensor(data[item][0]).permute(2, 0, 1)[None]
        with torch.no_grad():
            expected = backbone(normalize(pixels)).mean((2, 3))[0].numpy()
        np.testing.assert_allclose(kept[7], expected, rtol=2e-3, atol=1e-4)
    outputs = record(places, "features", name="centres")["outputs"]
    assert outputs.keys() == {"train-00000", "test-00000"}

    # Nearest neighbours take the same ones; other weights replace them.
    capsys.readouterr()
    assert cli.main(run("knn", KNN)) == 0
    assert "features: done already" in capsys.readouterr().out
    found = record(places, "knn")["results"]
    assert (found["top1_3"], found["top1_20"]) == (100, 100)
    other = places / "other.pth"
    state = torch.load(weights, weights_only=True)["state_dict"]
    torch.save({key: value * 1.5 for key, value in state.items()}, other)
    assert cli.main([*run("knn", KNN), "--weights", str(other)]) == 2
    assert "holds a knn of something else" in capsys.readouterr().err
    assert cli.main([*run("knn", KNN), "--weights", str(other), "--force"]) == 0
    assert "features: done already" not in capsys.readouterr().out


def test_shuffled_labels_have_no_neighbours(places, run, tmp_path):
    draw(tmp_path / "train", 15, 0, shuffled=True)
    draw(tmp_path / "val", 30, 1, shuffled=True)
    assert cli.main(run("knn", KNN, "temperature=0.3", data=tmp_path)) == 0
    assert record(places, "knn")["results"]["top1_20"] < 55
    assert record(places, "knn")["config"]["temperature"] == 0.3


def test_whole_shards_survive_a_stop(places, run, monkeypatch, capsys):
    monkeypatch.setattr(features, "ROWS", 8)
    signal.signal(signal.SIGTERM, lambda *_: None)  # one that comes too late
    folder = places / "checkpoints" / "run" / "features" / "centres"

    def stop():
        while len(list(folder.glob("*.npy"))) < 2:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert cli.main(run("knn", KNN)) == 143
    thread.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert "features are kept" in capsys.readouterr().err
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.npy")}
    assert 2 <= len(kept) < 8
    assert cli.main(run("knn", KNN)) == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(folder.glob("*.npy"))) == 8
    assert cli.main(run("knn", KNN, name="whole")) == 0
    whole = places / "checkpoints" / "whole" / "features" / "centres"
    assert all((whole / p.name).read_bytes() == p.read_bytes() for p in folder.glob("*.npy"))


@pytest.mark.slow
def test_two_processes_share_the_features_and_the_heads(places, run):
    running = launch(2, *run("linear", SWEEP, name="p2"))
    assert cli.main(run("linear", SWEEP, name="p1")) == 0
    _, error = running.communicate()
    assert running.returncode == 0, error
    one, two = (places / "checkpoints" / name / "features" for name in ("p1", "p2"))
    names = sorted(path.relative_to(one) for path in one.rglob("*.npy"))
    assert len(names) == 4
    assert all((two / name).read_bytes() == (one / name).read_bytes() for name in names)
    assert record(places, "linear", "p1")["results"] == record(places, "linear", "p2")["results"]


@pytest.mark.slow
def test_a_process_without_test_images_leaves_the_others_result(places, run, tmp_path):
    draw(tmp_path / "train", 5, 0)
    draw(tmp_path / "val", 1, 1)
    (tmp_path / "two").write_text("\n".join(NAMES[:2]))
    arguments = run("knn", KNN, "--classes", str(tmp_path / "two"), data=tmp_path)
    running = launch(3, *arguments)
    _, error = running.communicate()
    assert running.returncode == 0, error
    results = record(places, "knn")["results"]
    assert (results["top1_3"], results["test_images"]) == (100, 2)


def test_the_kits_own_config_has_the_heads_that_it_says():
    path = next((KIT / "configs" / "linear").glob("*fast*.yaml"))
    sweep = load(path, Linear).sweep
    assert len(sweep.learning_rates) * len(sweep.weight_decays) == 24
