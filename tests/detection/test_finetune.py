"""Real Detectron2 on a few drawn images: train, stop, resume, evaluate."""

import contextlib
import copy
import io
import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch

from benchmarks.detection import data, explain, model, trainer
from benchmarks.detection import finetune as finetuning
from benchmarks.detection.plan import FinetuneOptions
from tests.conftest import placed
from tests.detection.conftest import DEMO, command
from tests.support.processes import children, group_is_gone, start, wait_until
from triplet import cli, files, paths, records
from triplet.datasets.source import DataSource
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.signals import Stop
from triplet.training import checkpoint
from triplet.training.distributed import Processes

from detectron2.utils.events import EventStorage

SHORT = ["SOLVER.MAX_ITER=6", "SOLVER.STEPS=(4,)", "TEST.PRECISE_BN.NUM_ITER=2"]
SHORTEST = ["SOLVER.MAX_ITER=2", "SOLVER.STEPS=(1,)", "TEST.PRECISE_BN.NUM_ITER=1"]


def test_finetune_then_eval(run, drawn, capsys):
    assert cli.main(["eval", "--run", "method"]) == 2
    assert "run first: triplet finetune --run method" in capsys.readouterr().err
    # So short a training is sure of nothing; without a threshold it finds something all the same.
    assert cli.main(command(drawn, *SHORT, "MODEL.ROI_HEADS.SCORE_THRESH_TEST=0.0")) == 0
    record = records.require("method", "finetune")
    assert (record.results["loaded_tensors"], record.results["iterations"]) == (318, 6)
    assert record.results["classes"][0] == "striped disc"
    assert record.results["category_ids"] == [1, 2, 3, 4, 5, 6]
    folder = paths.stage_folder("method", "finetune")
    assert not list(folder.glob("step_*"))
    assert "Loading from" in (folder / "log.txt").read_text()
    assert "Loading from" not in capsys.readouterr().out
    # Six iterations moved the backbone away from what was loaded, precise BN moved the statistics.
    model = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    weights = pickle.loads((paths.stage_folder("method", "convert") / "detectron2.pkl").read_bytes())[
        "model"
    ]
    for key in ("conv1.weight", "conv1.norm.running_mean"):
        assert not torch.equal(model[f"backbone.stem.{key}"].cpu(), torch.tensor(weights[f"stem.{key}"]))
    assert cli.main(["eval", "--run", "method"]) == 0
    results = records.require("method", "eval").results
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
    assert "and this run is of GeneralizedRCNN" in capsys.readouterr().err


def test_a_model_that_finds_nothing_is_no_result(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORTEST, "MODEL.ROI_HEADS.SCORE_THRESH_TEST=1.0")) == 0
    assert cli.main(["eval", "--run", "method"]) == 2
    assert "it was not trained" in capsys.readouterr().err


@pytest.mark.slow
def test_a_stop_in_precise_bn_loses_no_training(run, drawn):
    long = [*SHORT[:-1], "TEST.PRECISE_BN.NUM_ITER=40"]
    process = start(*command(drawn, *long))
    folder = paths.stage_folder("method", "finetune")
    log = folder / "log.txt"
    wait_until(lambda: log.exists() and "Running precise-BN" in log.read_text(), process)
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
    steps, plans = [], []

    def write(path, state, plan):
        steps.append(state.get("step"))
        plans.append(plan)

    monkeypatch.setattr(trainer, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "write", write)
    with pytest.raises(KitError, match="nothing at"):  # as no model was written
        options = FinetuneOptions(overrides=[*SHORT, "TEST.PRECISE_BN.ENABLED=False"])
        finetuning.finetune("method", DEMO, DataSource(drawn), options)
    assert steps == [1, 2, 3, 4, 5, 6, 6]
    assert {plan.config["seed"] for plan in plans} == {0}
    assert all(plan == records.begun(paths.stage_folder("method", "finetune")) for plan in plans)


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(run, drawn):
    longer = ["SOLVER.MAX_ITER=40", "SOLVER.STEPS=(30,)", "SOLVER.IMS_PER_BATCH=2"]
    longer += ["TEST.PRECISE_BN.ENABLED=False"]
    process = start(*command(drawn, *longer))
    folder = paths.stage_folder("method", "finetune")
    metrics = folder / "metrics.json"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size, process)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate()
    assert process.returncode == 143, error
    assert "stopped by SIGTERM" in error
    assert "Traceback" not in error
    (saved,) = folder.glob("step_*.pth")
    done = int(saved.stem.removeprefix("step_"))
    assert 20 <= done < 40
    assert cli.main(command(drawn, *longer)) == 0
    assert f"Starting training from iteration {done}" in (folder / "log.txt").read_text()
    lines = [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 39


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_the_run(run, drawn, tmp_path, workers):
    """In one line, and all of its processes with it."""
    folder = tmp_path / "damaged"
    shutil.copytree(drawn, folder)
    image = min((folder / "train2017").iterdir())
    image.write_bytes(image.read_bytes()[:300])
    more = ["SOLVER.MAX_ITER=60", "SOLVER.STEPS=(50,)", f"DATALOADER.NUM_WORKERS={workers}"]
    process = start(*command(folder, *more), session=True)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"{image} or its annotations cannot be read" in error
    assert error.count("\n") == 1
    assert group_is_gone(process)


def test_a_killed_loader_process_costs_nothing(run, drawn):
    more = [
        "SOLVER.MAX_ITER=60",
        "SOLVER.STEPS=(50,)",
        "DATALOADER.NUM_WORKERS=2",
        "SOLVER.IMS_PER_BATCH=2",
    ]
    process = start(*command(drawn, *more), session=True)
    folder = paths.stage_folder("method", "finetune")
    metrics = folder / "metrics.json"
    wait_until(lambda: metrics.exists() and metrics.stat().st_size, process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert "a process that loads images was killed, mostly for want of memory" in error
    assert error.count("\n") == 1
    assert group_is_gone(process)
    (saved,) = folder.glob("step_*.pth")
    assert f"{checkpoint.step_of(saved)} of 60 iterations; run the same command to go on" in error


def test_other_weights_do_not_resume_this_run(unfinished, tmp_path, drawn, capsys):
    checkpoint.save(tmp_path / "other.pth", Networks(50, 8, 8, 8), None, 0, 0)
    again = ["convert", "--run", "method", "--config", str(DEMO), "--weights", str(tmp_path / "other.pth")]
    assert cli.main([*again, "--force"]) == 0
    assert cli.main(command(drawn, *SHORT)) == 2
    assert "holds a finetune of something else (input weights" in capsys.readouterr().err


def test_weights_that_were_tampered_with_stop_before_training(run, drawn, capsys):
    path = paths.stage_folder("method", "convert") / "detectron2.pkl"
    content = pickle.loads(path.read_bytes())
    del content["matching_heuristics"]
    path.write_bytes(pickle.dumps(content))
    assert cli.main(command(drawn, *SHORT)) == 2
    assert (
        "is changed since it was recorded; run again: triplet convert --run method"
        in capsys.readouterr().err
    )
    assert not (paths.stage_folder("method", "finetune") / "metrics.json").exists()


def test_a_diverging_training_is_one_line(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "SOLVER.BASE_LR=1e9", "SOLVER.WARMUP_ITERS=0")) == 2
    error = capsys.readouterr().err
    assert "lower SOLVER.BASE_LR" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_killed_before_the_record_loses_no_training(run, drawn):
    """Between the last iteration and the record; what is finished is not trained again."""
    long = [*SHORT[:-1], "TEST.PRECISE_BN.NUM_ITER=40"]
    process = start(*command(drawn, *long))
    folder = paths.stage_folder("method", "finetune")
    wait_until((folder / "step_0000006.pth").exists, process)
    process.kill()
    process.communicate()
    assert records.read(folder) is None
    assert cli.main(command(drawn, *long)) == 0
    assert "Starting training from iteration 6" in (folder / "log.txt").read_text()
    assert records.require("method", "finetune").results["iterations"] == 6
    assert not list(folder.glob("step_*"))


@pytest.fixture(scope="session")
def through(converted, drawn, tmp_path_factory):
    """The places of a training that was through when the disk was full before its record was written."""
    write = files.write_text

    def full(path, text):
        if path.name == "record.json" and path.parent.name == "finetune":
            raise OSError(28, "No space left on device", str(path))
        write(path, text)

    folder = tmp_path_factory.mktemp("through")
    shutil.copytree(converted / "checkpoints", folder / "checkpoints")
    with placed(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_text", full)
        patch.setattr(trainer, "SAVE_EVERY", 0.0)
        with contextlib.redirect_stderr(io.StringIO()) as error:
            assert cli.main(command(drawn, *SHORT)) == 2
    assert "No space left" in error.getvalue()
    return folder


@pytest.fixture
def unfinished(places, through):
    """The folder of that training."""
    shutil.copytree(through / "checkpoints", places / "checkpoints")
    folder = paths.stage_folder("method", "finetune")
    assert [path.stem for path in checkpoint.checkpoints(folder)] == ["step_0000006", "step_0000005"]
    return folder


def test_a_finished_training_outlives_a_full_disk(unfinished, drawn):
    """The last checkpoints go when the record is there, not before."""
    assert cli.main(command(drawn, *SHORT)) == 0
    assert "Starting training from iteration 6" in (unfinished / "log.txt").read_text()
    assert not list(unfinished.glob("step_*"))
    before, model = records.read(unfinished), (unfinished / "model_final.pth").read_bytes()
    os.truncate(unfinished / "record.json", 9)
    assert cli.main(command(drawn, *SHORT)) == 0
    assert records.read(unfinished).results == before.results
    assert (unfinished / "model_final.pth").read_bytes() == model, "a cut record costs no training"


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(unfinished, drawn, capsys):
    with (unfinished / "step_0000006.pth").open("r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    assert cli.main(command(drawn, *SHORT)) == 0
    assert "step_0000006.pth is damaged (its SHA-256 is another one)" in capsys.readouterr().out
    assert "Starting training from iteration 5" in (unfinished / "log.txt").read_text()


def test_another_command_is_refused_and_told_what_it_deletes(unfinished, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "SOLVER.WEIGHT_DECAY=0.5", "--hours", "1")) == 2
    error = capsys.readouterr().err
    assert "config.detectron2.SOLVER.WEIGHT_DECAY 0.0001 -> 0.5" in error
    assert "with 6 iterations trained; add --force" in error
    assert not paths.stage_folder("method", "plan").exists()


def full_gpu(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_full_gpu_is_one_line_that_says_what_to_do(unfinished, drawn, capsys, monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "precise_bn", full_gpu)
    assert cli.main(command(drawn, *SHORT)) == 2
    error = capsys.readouterr().err
    assert "is full with the 4 images in a pass that this finetuning has begun with; free" in error
    assert "--force" not in error
    assert cli.main([*command(drawn, *SHORT), "--force"]) == 2
    capsys.readouterr()
    monkeypatch.setattr(trainer.Trainer, "train", full_gpu)
    assert cli.main([*command(drawn, *SHORT), "--force"]) == 2
    error = capsys.readouterr().err
    assert "is full with 4 images in a pass; add --images-per-gpu 2, and --force" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("SOLVER.IMS_PER_BATCH=8", "SOLVER.IMS_PER_BATCH 4 -> 8"),
        ("MODEL.RESNETS.NORM=FrozenBN", "MODEL.RESNETS.NORM BN -> FrozenBN"),
        ("MODEL.RESNETS.NORM=SyncBN", "MODEL.RESNETS.NORM BN -> SyncBN"),
    ],
)
def test_what_decides_on_bn_is_named_when_it_changes(unfinished, drawn, capsys, change, said):
    assert cli.main(command(drawn, *SHORT, change)) == 2
    assert said in capsys.readouterr().err


def test_workers_and_periods_may_change_on_the_way(unfinished, drawn):
    changed = ["DATALOADER.NUM_WORKERS=1", "SOLVER.CHECKPOINT_PERIOD=3"]
    assert cli.main(command(drawn, *SHORT, *changed)) == 0


@pytest.mark.parametrize(
    ("change", "loaded", "pool"),
    [("MODEL.RESNETS.NORM=FrozenBN", 265, 0), ("MODEL.BACKBONE.FREEZE_AT=2", 307, 4)],
)
def test_a_frozen_backbone_can_be_finetuned(run, drawn, change, loaded, pool):
    # Random weights that nothing normalises soon diverge at the demo's rate.
    assert cli.main(command(drawn, *SHORTEST, "SOLVER.BASE_LR=1e-9", change)) == 0
    record = records.require("method", "finetune")
    assert (record.results["loaded_tensors"], record.config["bn_images"]) == (loaded, pool)


def test_a_restored_trainer_repeats_the_first_ones_steps(run, drawn):
    """Momentum, learning rate and schedule are those of the run that was never stopped."""
    cfg = model.load_config(DEMO, [*SHORT, "SOLVER.WARMUP_ITERS=4"])
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = data.training(cfg, drawn)[0], str(run / "restored")
    Path(cfg.OUTPUT_DIR).mkdir()
    alone = Processes(0, 1, torch.device("cpu"))

    def steps(first, last, state=None):
        made = trainer.Trainer(cfg, alone, 2, "float32", first, Stop())
        if state:
            made.restore(copy.deepcopy(state))
        rates = []
        with EventStorage(first) as made.storage:
            made.before_train()
            for made.iter in range(first, last):
                torch.manual_seed(made.iter)
                made.run_step()
                rates.append(made.optimizer.param_groups[0]["lr"])
                made.after_step()
        return made, rates

    torch.manual_seed(0)
    early, before = steps(0, 3)
    saved = copy.deepcopy({"model": early.network.state_dict(), "trainer": early.state_dict()})
    _, after = steps(3, 6, saved)
    resumed, _ = steps(3, 3, saved)
    torch.manual_seed(0)
    _, whole = steps(0, 6)
    assert before + after == pytest.approx(whole)
    assert len(set(whole)) > 3  # it warms up, and falls
    ours, theirs = (
        [s["momentum_buffer"] for s in made.optimizer.state.values()] for made in (resumed, early)
    )
    assert ours
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        assert a.abs().sum() > 0


def test_other_categories_are_not_evaluated(unfinished, drawn, tmp_path, capsys):
    assert cli.main(command(drawn, *SHORT)) == 0
    other = tmp_path / "other"
    shutil.copytree(drawn, other)
    path = other / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text().replace("striped disc", "zebra"))
    assert cli.main(["eval", "--run", "method", "--data", str(other)]) == 2
    assert "has other categories (zebra, " in capsys.readouterr().err


def test_another_number_of_classes_is_named(run, drawn, capsys):
    assert cli.main(command(drawn, *SHORT, "MODEL.ROI_HEADS.NUM_CLASSES=80")) == 2
    assert "add MODEL.ROI_HEADS.NUM_CLASSES=6" in capsys.readouterr().err
