"""What a run says of itself."""

import contextlib
import re
import sys
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional as F

from tests.conftest import KIT
from tests.support.processes import launch, start, wait_until
from tests.support.small_pretrain import SMALL, metrics
from triplet import cli
from triplet.config import parse
from triplet.errors import KitError
from triplet.images import open_images
from triplet.pretrain.config import Loss, Pretrain
from triplet.pretrain.methods.triplet import TRAITS, measure, truncated_triplet_loss
from triplet.pretrain.monitor import KnnMonitor
from triplet.training.distributed import Processes

LOSS = Loss(group=16)


def measured(predictions, targets):
    values = [value.item() for value in measure(predictions, targets, LOSS)]
    return dict(zip(TRAITS.measures, values, strict=True))


def test_measures_tell_a_collapse_from_a_spread():
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(64, 8, generator=generator)
    found = measured(spread, spread)
    assert found["positive_cosine"] == pytest.approx(1)
    assert found["feature_std"] == pytest.approx(1, abs=0.05)
    assert 6.5 < found["feature_rank"] <= 8
    line = torch.randn(64, 1, generator=generator) * torch.randn(1, 8, generator=generator)
    assert measured(spread, line)["feature_rank"] == pytest.approx(1, abs=1e-4)
    point = torch.randn(1, 8, generator=generator).expand(64, 8)
    assert measured(spread, point)["feature_std"] == pytest.approx(0, abs=1e-6)
    assert np.isfinite(list(measured(point, point).values())).all()


def test_negative_cosine_is_that_of_the_losss_negatives():
    generator = torch.Generator().manual_seed(1)
    p, z = (torch.randn(32, 8, generator=generator) for _ in range(2))
    found = measured(p, z)
    loss = truncated_triplet_loss(p, z, group_size=16).item()
    assert loss == pytest.approx(
        100 - 4 * found["positive_cosine"] + 2 * found["negative_cosine"], abs=1e-4
    )
    assert found["positive_cosine"] == pytest.approx(F.cosine_similarity(p, z).mean().item(), abs=1e-6)


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Two classes that any features tell apart, 24 images each."""
    folder = tmp_path_factory.mktemp("classes")
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        (folder / label).mkdir()
        for i in range(24):
            pixels = rng.integers(0, 60, (40, 50, 3)) + (150 if label == "light" else 0)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / label / f"{i}.png")
    return folder


@pytest.fixture
def run(places, classes):
    (places / "small.yaml").write_text(SMALL)

    def arguments(name, *extra):
        return [
            "pretrain",
            "--run",
            name,
            "--config",
            str(places / "small.yaml"),
            "--data",
            str(classes),
            *extra,
        ]

    return arguments


def test_knn_tells_classes_apart_and_changes_nothing(places, run, capsys):
    assert cli.main(run("plain")) == 0
    assert cli.main(run("knn", "monitor.every=2", "monitor.images=40")) == 0
    found = metrics(places, "knn")
    assert [line["epoch"] for line in found if "knn" in line] == [2, 4, 6]
    assert found[-1]["knn"] > 90
    plain, monitored = (
        torch.load(places / "checkpoints" / name / "pretrain" / "checkpoint.pth", weights_only=True)
        for name in ("plain", "knn")
    )
    assert all(torch.equal(v, monitored["networks"][k]) for k, v in plain["networks"].items())


@pytest.mark.slow
def test_knn_is_the_same_over_several_processes(places, run):
    two = ("loss.group=12", "optimizer.groups=2", "optimizer.accumulate=1", "monitor.every=2")
    found = []
    for processes in (1, 2):
        running = launch(processes, *run(f"p{processes}", *two))
        assert running.wait() == 0, running.communicate()
        found.append([line["knn"] for line in metrics(places, f"p{processes}") if "knn" in line])
    assert len(found[0]) == 3
    assert found[0] == pytest.approx(found[1], abs=5)  # rounding may move one of 24 images


def test_knn_of_too_few_images_is_refused(places, classes):
    config = parse({**yaml.safe_load(SMALL), "monitor": {"every": 1, "images": 3}}, Pretrain, "small")
    with pytest.raises(KitError, match=r"k-NN of 3 images needs 4; set monitor\.every=0"):
        KnnMonitor(config, open_images(classes), Processes(0, 2, torch.device("cpu")))


def test_knn_without_classes_is_refused(places, run, drawn, capsys):
    assert cli.main([*run("run", "monitor.every=1"), "--data", str(drawn / "unlabelled")]) == 2
    assert "these images have no classes" in capsys.readouterr().err


def test_each_step_is_logged_as_json_and_for_tensorboard(places, run):
    assert cli.main(run("run")) == 0
    found = metrics(places, "run")
    assert set(found[0]) == {
        "iteration",
        "epoch",
        "loss",
        *TRAITS.measures,
        "learning_rate",
        "ema_momentum",
        "step_time",
        "data_time",
        "images_per_second",
        "memory",
    }
    assert all(0 <= line["data_time"] <= line["step_time"] for line in found)
    assert all(line["memory"] > 2**26 for line in found)
    board = EventAccumulator(str(places / "checkpoints" / "run" / "pretrain" / "tensorboard"))
    board.Reload()
    assert set(board.Tags()["scalars"]) == set(found[0])
    losses = board.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 13))
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in found])
    assert _logged_by_docs(places, "run") == [(line["iteration"], line) for line in found]


def _logged_by_docs(places, name):
    """Run docs/report.md's call for MLflow on a run; return what mlflow.log_metrics is given."""
    logged = []
    mlflow = ModuleType("mlflow")
    mlflow.start_run = lambda run_name: contextlib.nullcontext()
    mlflow.log_metrics = lambda metrics, step: logged.append(
        (step, {k: float(v) for k, v in metrics.items()})
    )
    page = (KIT / "docs" / "report.md").read_text()
    (call,) = re.findall(r"^```python mlflow\n(.*?)^```$", page, re.M | re.S)
    with mock.patch.dict(sys.modules, mlflow=mlflow), contextlib.chdir(places):
        exec(compile(call.replace("/triplet/", f"/{name}/"), "docs/report.md", "exec"), {})
    return logged


@pytest.mark.slow
def test_a_killed_runs_tensorboard_shows_each_step_once(places, run):
    arguments = run("run", "schedule.epochs=40")
    process = start(*arguments)
    folder = places / "checkpoints" / "run" / "pretrain"
    wait_until(lambda: list(folder.glob("step_*.pth")), process)
    process.kill()
    process.wait()
    assert start(*arguments).wait() == 0
    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    steps = [event.step for event in board.Scalars("loss")]
    assert sorted(steps) == list(range(1, 81))


def test_the_log_says_what_the_run_costs_and_how_long_it_takes(places, run):
    process = start(*run("run", "schedule.epochs=15"))
    out, _ = process.communicate()
    assert "24 images a step = 1 processes x 2 passes x 12 images" in out
    assert "15 epochs of 48 images = 60 iterations = 30 optimiser steps" in out
    assert "GFLOP an image, about" in out
    assert "weights: drawn from the seed" in out
    assert out.count("images/s: about") == 1
