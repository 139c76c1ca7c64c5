"""Real Detectron2 on a few drawn images: train, stop, resume, evaluate."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.detection import explain, trainer
from benchmarks.detection import finetune as finetuning
from tests.conftest import KIT
from triplet import cli, records
from triplet.errors import KitError
from triplet.pretrain import checkpoint
from triplet.pretrain.networks import Networks

DEMO = str(KIT / "configs" / "detection" / "demo.yaml")
SHORT = ["SOLVER.MAX_ITER=6", "SOLVER.STEPS=(4,)", "TEST.PRECISE_BN.NUM_ITER=2"]


@pytest.fixture
def run(places, tmp_path):
    """A run whose weights are converted."""
    checkpoint.save(tmp_path / "c.pth", Networks(50, 16, 8, 8), None, 0, 0)
    arguments = ["--run", "row", "--config", DEMO, "--weights", str(tmp_path / "c.pth")]
    assert cli.main(["convert", *arguments]) == 0
    return places


def command(drawn, *overrides, stage="finetune"):
    return [stage, "--run", "row", "--config", DEMO, "--data", str(drawn), *overrides]


def test_finetune_then_eval(run, drawn, capsys):
    assert cli.main(["eval", "--run", "row"]) == 2
    assert "run first: make finetune RUN=row" in capsys.readouterr().err
    # So short a training is sure of nothing; without a threshold it finds something all the same.
    assert cli.main(command(drawn, *SHORT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0")) == 0
    record = records.require("row", "finetune")
    assert (record.results["loaded_tensors"], record.results["iterations"]) == (318, 6)
    assert record.results["categories"][0] == "striped disc"
    folder = records.stage_folder("row", "finetune")
    assert not list(folder.glob("step_*"))
    assert "Loading from" in (folder / "log.txt").read_text()
    assert "Loading from" not in capsys.readouterr().out
    # Six iterations moved the backbone away from what was loaded, precise BN moved the statistics.
    model = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    weights = pickle.loads((records.stage_folder("row", "convert") / "detectron2.pkl").read_bytes())[
        "model"
    ]
    for key in ("conv1.weight", "conv1.norm.running_mean"):
        assert not torch.equal(model[f"backbone.stem.{key}"].cpu(), torch.tensor(weights[f"stem.{key}"]))
    assert cli.main(["eval", "--run", "row"]) == 0
    results = records.require("row", "eval").results
    assert 0 <= results["bbox"]["AP"] <= 100
    assert "box AP" in capsys.readouterr().out
    # What the log tells triplet explain.
    facts = explain.read(None, folder / "log.txt")
    assert (facts.iterations, facts.planned, facts.gpus, facts.pool) == (
        6,
        6,
        1,
        record.config["bn_images"],
    )
    assert facts.checked
    assert facts.precise_ran
    assert facts.unloaded == []
    assert cli.main(["explain", "--result", "25.1", "22.3", "--log", str(folder / "log.txt")]) == 2
    assert "there is none to compare GeneralizedRCNN" in capsys.readouterr().err


def test_a_model_that_finds_nothing_is_no_result(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST=1.0")) == 0
    assert cli.main(["eval", "--run", "row"]) == 2
    assert "it was not trained" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_in_precise_bn_loses_no_training(run, drawn):
    long = [*SHORT[:-1], "TEST.PRECISE_BN.NUM_ITER=40"]
    process = subprocess.Popen(
        [sys.executable, "-m", "triplet.cli", *command(drawn, *long)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = records.stage_folder("row", "finetune")
    log = folder / "log.txt"
    while not log.exists() or "Running precise-BN" not in log.read_text():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert "trained; precise BN was at" in error
    assert [path.name for path in folder.glob("step_*.pth")] == ["step_0000006.pth"]
    trained = torch.load(folder / "step_0000006.pth", weights_only=True)["model"]
    assert cli.main(command(drawn, *long)) == 0
    final = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    moved = {name for name in final if not torch.equal(final[name], trained[name])}
    assert moved
    assert all(
        name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in moved
    )


def test_checkpoints_are_written_in_time_too(run, drawn, monkeypatch):
    """However long the iterations of a small machine take."""
    steps = []
    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "write", lambda path, state: steps.append(state.get("step")))
    with pytest.raises(KitError, match="nothing at"):  # as no model was written
        finetuning.finetune("row", Path(DEMO), drawn, [*SHORT, "TEST.PRECISE_BN.ENABLED=False"])
    assert steps == [1, 2, 3, 4, 5, None]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(run, drawn):
    longer = ["SOLVER.MAX_ITER=60", "SOLVER.STEPS=(50,)", "TEST.PRECISE_BN.ENABLED=False"]
    process = subprocess.Popen(
        [sys.executable, "-m", "triplet.cli", *command(drawn, *longer)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    folder = records.stage_folder("row", "finetune")
    while not (folder / "metrics.json").exists() or not (folder / "metrics.json").stat().st_size:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert "stopped by SIGTERM" in error
    assert "Traceback" not in error
    (saved,) = folder.glob("step_*.pth")
    done = int(saved.stem.removeprefix("step_"))
    assert 20 <= done < 60
    assert cli.main(command(drawn, *longer)) == 0
    assert f"Starting training from iteration {done}" in (folder / "log.txt").read_text()
    lines = [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 59


def test_other_weights_do_not_resume_this_run(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT)) == 0
    checkpoint.save(run / "other.pth", Networks(50, 16, 8, 8), None, 0, 0)
    again = ["convert", "--run", "row", "--config", DEMO, "--weights", str(run / "other.pth")]
    assert cli.main([*again, "--force"]) == 0
    assert cli.main(command(drawn, *SHORT)) == 2
    assert "holds a finetune of something else (input weights" in capsys.readouterr().err


def test_weights_that_were_tampered_with_stop_before_training(run, drawn, capsys):
    path = records.stage_folder("row", "convert") / "detectron2.pkl"
    content = pickle.loads(path.read_bytes())
    del content["matching_heuristics"]
    path.write_bytes(pickle.dumps(content))
    assert cli.main(command(drawn, *SHORT)) == 2
    assert (
        "is changed since it was recorded; run again: triplet convert --run row" in capsys.readouterr().err
    )
    assert not (records.stage_folder("row", "finetune") / "metrics.json").exists()


def test_a_diverging_training_is_one_line(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "SOLVER.BASE_LR=1e9", "SOLVER.WARMUP_ITERS=0")) == 2
    error = capsys.readouterr().err
    assert "lower SOLVER.BASE_LR" in error
    assert error.count("\n") == 1


def test_a_resume_with_nothing_left_to_train_finishes(run, drawn):
    """Killed between the last iteration and the record."""
    assert cli.main(command(drawn, *SHORT)) == 0
    folder = records.stage_folder("row", "finetune")
    record = records.read(folder)
    started = {"plan": record.model_dump(include={"stage", "config", "inputs"})}
    started |= {"started": record.started, "seconds": 1.0}
    (folder / "record.json").unlink()
    (folder / "started.json").write_text(json.dumps(started))
    assert cli.main(command(drawn, *SHORT)) == 0
    assert records.require("row", "finetune").results == record.results


def test_other_categories_are_not_evaluated(run, drawn, tmp_path, capsys):
    assert cli.main(command(drawn, *SHORT)) == 0
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    path = other / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("striped disc", "zebra"))
    assert cli.main(["eval", "--run", "row", "--data", str(other)]) == 2
    assert "has other categories (zebra, " in capsys.readouterr().err


def test_another_number_of_classes_is_named(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "MODEL.ROI_HEADS.NUM_CLASSES=80")) == 2
    assert "add MODEL.ROI_HEADS.NUM_CLASSES=6" in capsys.readouterr().err
