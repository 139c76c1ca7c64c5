"""Finetuning within the user's means: several processes, passes, hours, schedules."""

import contextlib
import json
import re
import signal

import pytest
import torch

from benchmarks.detection import budget, calibration, data, model, resolve
from benchmarks.detection import finetune as finetuning
from benchmarks.detection.plan import FinetunePlan
from tests.conftest import KIT
from tests.detection.conftest import DEMO, command
from tests.support.processes import launch, wait_until
from tests.support.small_pretrain import newest_step
from triplet import cli, paths, records
from triplet.errors import Interrupted
from triplet.launch import SAVING
from triplet.published import curves
from triplet.training.distributed import Processes

TWO = [
    "SOLVER.MAX_ITER=20",
    "SOLVER.STEPS=(10,)",
    "SOLVER.CHECKPOINT_PERIOD=2",
    "TEST.PRECISE_BN.NUM_ITER=1",
    "MODEL.RESNETS.NORM=SyncBN",
]


def stop(running, ready):
    """Send SIGTERM once it is ready; what a stage that was stopped cleanly has said."""
    wait_until(ready, running)
    running.send_signal(signal.SIGTERM)
    code = running.wait(SAVING / 2)
    out, error = running.communicate()
    assert code == 143, error
    assert "Traceback" not in error
    return out, error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_stop_and_go_on_and_then_one_does(run, drawn):
    """Any number: all that is asked for is that BN stays over as many images."""
    arguments = command(drawn, *TWO)
    folder = paths.stage_folder("method", "finetune")
    done = 0
    for more in (["--images-per-gpu", "1"], []):  # what has begun keeps it
        running = launch(2, *arguments, *more)
        out, error = stop(running, lambda done=done: newest_step(folder) > done)
        assert "4 images an iteration = 2 x 1 x 2 passes, float32; BN over 2, where the recipe has 4" in out
        assert error.count("stopped by") == 1
        before, done = done, newest_step(folder)
        assert before < done < 20
    assert f"Starting training from iteration {before}" in (folder / "log.txt").read_text()
    again = launch(1, *arguments)
    out, error = again.communicate()
    assert again.returncode == 0, error
    record = records.require("method", "finetune")
    assert (record.world_size, record.config["bn_images"], record.results["passes"]) == (1, 2, 2)
    lines = [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]
    assert lines == sorted(set(lines))
    assert lines[-1] == 19
    assert f"Starting training from iteration {done}" in (folder / "log.txt").read_text()
    state = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    assert all(bool(value.isfinite().all()) for value in state.values())


@pytest.mark.slow
def test_two_processes_measure_for_hours(run, drawn):
    short = ["SOLVER.MAX_ITER=4", "SOLVER.STEPS=(2,)", "TEST.PRECISE_BN.ENABLED=False"]
    arguments = command(drawn, *short, "--hours", "9")
    log = paths.stage_folder("method", "plan") / "log.txt"
    _, error = stop(launch(2, *arguments), log.exists)
    # The other process may not hear signals yet, and then it ends at once.
    reasons = "nothing was trained yet|another process has ended"
    assert re.search(rf"stopped by SIGTERM: ({reasons}); run the same command to go on", error), error
    running = launch(2, *arguments)
    out, error = running.communicate()
    assert running.returncode == 0, error
    assert "4 images an iteration = 2 x 2, float32" in out
    measured = records.require("method", "plan").results
    assert (measured["processes"], measured["images"]) == (2, 2)
    assert measured["seconds"] > 0
    assert records.require("method", "finetune").world_size == 2


@pytest.mark.slow
def test_processes_that_cannot_share_a_batch_are_refused(run, drawn):
    running = launch(2, *command(drawn, "SOLVER.IMS_PER_BATCH=3"))
    _, error = running.communicate()
    assert running.returncode == 2
    assert "2 processes cannot share a batch of 3 images" in error
    assert not (paths.stage_folder("method", "finetune") / "record.json").exists()


@pytest.mark.slow
def test_hours_compress_the_schedule_once(run, drawn, capsys, monkeypatch):
    """What was measured holds for the run, though a second measurement would differ."""
    monkeypatch.setattr(budget, "FEWEST", 4)
    cfg = model.load_config(DEMO, ["SOLVER.IMS_PER_BATCH=2"])
    cfg.DATASETS.TRAIN = data.training(cfg, drawn)[0]
    cfg.MODEL.WEIGHTS = str(paths.stage_folder("method", "convert") / "detectron2.pkl")
    alone = Processes(0, 1, torch.device("cpu"))
    measured = calibration.measure(cfg, alone, "float32", None, log=run / "log.txt")
    assert (measured.images, measured.peak) == (2, None)
    hours = f"{25 * measured.seconds / 3600:.6f}"
    arguments = [
        *command(drawn, "SOLVER.IMS_PER_BATCH=2", "TEST.PRECISE_BN.ENABLED=False"),
        "--hours",
        hours,
    ]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    record = records.require("method", "finetune")
    solver = record.config["detectron2"]["SOLVER"]
    assert 4 <= solver["MAX_ITER"] == record.results["iterations"] < 100
    whole = model.load_config(DEMO).SOLVER
    part = solver["MAX_ITER"] / whole.MAX_ITER
    for key, value in (("STEPS", whole.STEPS[0]), ("WARMUP_ITERS", whole.WARMUP_ITERS)):
        found = solver[key][0] if key == "STEPS" else solver[key]
        assert abs(found - part * value) <= 1
    assert re.search(r"all 400 iterations would take [^;]+; the schedule is compressed to", out)
    assert "none is published for this detector, data set and method" in out
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count("done already") == 2
    assert cli.main([*arguments[:-1], "1"]) == 2
    assert (
        f"holds a finetune of something else (config.hours {float(hours)} -> 1.0)"
        in capsys.readouterr().err
    )
    assert cli.main(arguments) == 0  # another number of hours lost nothing
    assert "done already" in capsys.readouterr().out


def test_what_has_begun_keeps_its_schedule(run, drawn, capsys, monkeypatch):
    """Though the machine has become slower meanwhile, and the plan's record is gone."""
    monkeypatch.setattr(budget, "FEWEST", 4)
    seconds = iter((1.0, 9.0, 9.0))

    def measured(cfg, processes, precision, images, *, log, inherited):
        return calibration.Calibration(1, 2, precision, next(seconds))

    monkeypatch.setattr(calibration, "measure", measured)
    arguments = [
        *command(drawn, "SOLVER.IMS_PER_BATCH=2", "TEST.PRECISE_BN.ENABLED=False"),
        "--hours",
        "0.0025",
    ]
    monkeypatch.setattr(finetuning, "_train", stopped)
    assert cli.main(arguments) == 143
    folder = paths.stage_folder("method", "plan")
    first = records.begun(paths.stage_folder("method", "finetune")).config["detectron2"]["SOLVER"]
    assert first["MAX_ITER"] == round(0.0025 * 3600 * 0.95)
    (folder / "record.json").unlink()
    assert cli.main(arguments) == 143
    assert records.read(folder).results["seconds"] == 9.0
    assert records.begun(paths.stage_folder("method", "finetune")).config["detectron2"]["SOLVER"] == first
    assert "9 s an iteration" in capsys.readouterr().out


def stopped(*_):
    raise Interrupted("stopped")


@pytest.mark.parametrize(
    ("option", "value"),
    [("--hours", "0"), ("--hours", "nan"), ("--images-per-gpu", "0"), ("--gpus", "-1"), ("--seconds", "0")],
)
def test_nothing_is_no_budget(capsys, option, value):
    with pytest.raises(SystemExit):
        cli.main(["plan", option, value])
    assert f"argument {option}: found {value}, expected" in capsys.readouterr().err


def test_no_length_of_a_schedule_is_no_budget(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--schedule", "much"])
    assert "argument --schedule: the length of a schedule is 2x, 1x, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "1/400"], "1 iterations are left of 400: too few"),
        (["--images-per-gpu", "3"], "--images-per-gpu may be 1, 2, 4"),
    ],
)
def test_options_that_cannot_be(run, drawn, capsys, options, message):
    assert cli.main([*command(drawn), *options]) == 2
    assert message in capsys.readouterr().err


def test_plan_before_there_is_data(places, capsys):
    assert cli.main(["plan", "--gpus", "8", "--schedule", "1/4x", "--seconds", "0.4"]) == 0
    out = capsys.readouterr().out
    assert "16 images an iteration = 8 x 2, float32; BN over 16" in out
    assert "so neither is how many images fit in a pass; give each GPU's as --memory GB" in out
    assert "22500 iterations = 3.07 epochs of 117266 images, learning rate 0.05, warm-up 1250" in out
    assert "0.4 s an iteration: 2.6 h" in out
    assert "expected AP of triplet: box 33.0 (" in out
    assert cli.main(["plan", "--gpus", "8", "--hours", "2", "--method", "byol"]) == 0
    out = capsys.readouterr().out
    assert "that of V100s in Detectron2's model zoo" in out
    assert "the schedule is compressed to 6.5%" in out
    assert "learning rate 0.02" in out
    assert cli.main(["plan", "--gpus", "5"]) == 2
    assert "may be 1, 2, 4, 8, 16" in capsys.readouterr().err


def described(cfg, **changes):
    """The lines of a plan of eight processes."""
    plan = FinetunePlan(
        **{"method": "triplet", "processes": 8, "images": 2, "precision": "float32", **changes},
        cfg=cfg,
        uncompressed=cfg,
        settings=model.plain(cfg),
    )
    return "\n".join(plan.lines())


def test_a_part_of_coco_is_not_expected_to_reach_its_ap():
    cfg = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_authors.yaml")
    told = {n: described(cfg, dataset_images=n) for n in (curves.IMAGES, 1000)}
    assert "expected AP of triplet: box 41.7" in told[curves.IMAGES]
    assert "none is published for this detector, data set and method" in told[1000]


def test_a_resumed_runs_finish_counts_what_is_left():
    cfg = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_authors.yaml")
    told = described(cfg, dataset_images=1000, seconds=0.4, iterations_done=90_000)
    assert "0.4 s an iteration: 10.5 h for the 90000 left, until" in told


@pytest.mark.parametrize(
    ("name", "overrides", "images", "said"),
    [
        ("coco_r50_c4_2x_authors", [], 2, ""),
        ("coco_r50_c4_1x_moco", [], 2, ""),
        (
            "coco_r50_c4_2x_authors",
            ["SOLVER.BASE_LR=1.0"],
            2,
            "these changes cost is unknown: SOLVER.BASE_LR 0.05 -> 1",
        ),
        ("coco_r50_c4_2x_authors", [], 1, "these changes cost is unknown: BN over 16 images -> 8"),
        ("coco_r50_c4_2x_moco", ["SOLVER.IMS_PER_BATCH=24", "SOLVER.BASE_LR=0.03"], 3, ""),
        (
            "coco_r50_c4_2x_moco",
            ["SOLVER.IMS_PER_BATCH=8", "SOLVER.BASE_LR=0.01"],
            1,
            "BN over 16 images -> 8",
        ),
        ("coco_r50_fpn_2x_moco", [], 2, ""),
        ("coco_r50_fpn_2x_moco", ["MODEL.RESNETS.NORM=FrozenBN"], 2, "NORM SyncBN -> FrozenBN"),
    ],
)
def test_a_runs_deviations_stand_beside_the_ap_to_expect(name, overrides, images, said):
    cfg = model.load_config(KIT / f"configs/detection/{name}.yaml", overrides)
    method = "triplet" if "authors" in name else "supervised"  # of which the config has the recipe
    told = described(cfg, method=method, images=images, dataset_images=curves.IMAGES)
    assert f"expected AP of {method}: box" in told
    assert said in told
    assert ("what these changes cost is unknown" in told) == bool(said)


@pytest.mark.parametrize(
    ("names", "size"),
    [
        ((), curves.IMAGES),
        (("/data/coco/coco_2017_train",), curves.IMAGES),
        (("voc_2007_trainval", "voc_2012_trainval"), 16_551),
        (("voc_2007_trainval",), None),
    ],
)
def test_data_sets_of_known_sizes(names, size):
    cfg = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml")
    cfg.DATASETS.TRAIN = names
    assert resolve.known_size(cfg) == size


def test_the_measured_peak_decides_on_the_images_in_a_pass(monkeypatch):
    """Where memory grows faster than the peaks with one and two images tell, fewer images are taken."""

    class Gpu(Processes):
        free = 10e9

    peaks = {1: 1e9, 2: 2e9, 4: 8.5e9, 8: 30e9}
    measured = []

    def peak(cfg, processes, precision, images):
        measured.append(images)
        return peaks[images]

    monkeypatch.setattr(calibration, "_peak", peak)
    gpu = Gpu(0, 1, torch.device("cuda"))
    assert calibration._most_images(model.load_config(DEMO), gpu, "bfloat16", 16) == 4
    assert measured == [1, 2, 8, 4]


def test_memory_is_counted_where_there_is_no_gpu():
    """Twice the pixels are up to twice the activations (RoIs stay); half precision is half of them."""
    small, large = (model.load_config(DEMO, [f"INPUT.MAX_SIZE_TRAIN={size}"]) for size in (128, 256))
    need = {
        name: calibration.count_memory(cfg, "float32") for name, cfg in (("small", small), ("large", large))
    }
    assert 1.3 < need["large"].more / need["small"].more < 2
    half = calibration.count_memory(small, "bfloat16")
    assert half.more == pytest.approx(need["small"].more / 2, rel=0.05)
    assert half.one - half.more == pytest.approx(need["small"].one - need["small"].more)


def test_memory_is_that_of_convolutions_that_are_computed(monkeypatch):
    """All but what depends on their values: how many RoIs hold an object."""
    cfg = model.load_config(DEMO)
    quick = calibration.count_memory(cfg, "float32")
    monkeypatch.setattr(calibration, "NoiseForConvolutions", contextlib.nullcontext)
    assert quick.more == pytest.approx(calibration.count_memory(cfg, "float32").more, rel=0.02)
