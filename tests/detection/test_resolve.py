"""How options, config, GPUs and what has begun become a plan, as far as nothing is measured."""

import dataclasses
import json
import shutil

import pytest
import torch

from benchmarks.detection import calibration, finetune, model, resolve
from benchmarks.detection.calibration import Calibration
from benchmarks.detection.plan import FinetuneOptions
from benchmarks.detection.preview import Hardware, preview
from benchmarks.detection.resolve import Begun, ResolvedOptions, RunSources, resolve_options
from tests.conftest import KIT
from tests.detection.conftest import DEMO
from triplet import paths, records
from triplet.datasets.source import DataSource
from triplet.errors import Interrupted, KitError
from triplet.training import checkpoint
from triplet.training.distributed import Processes

ALONE = Processes(0, 1, torch.device("cpu"))
AUTHORS = KIT / "configs/detection/coco_r50_c4_2x_authors.yaml"


@pytest.fixture
def cfg():
    return model.load_config(AUTHORS)


def begun(cfg, **changes):
    """A finetuning in float16 by eight processes of one image each, with BN over all of them."""
    record = {"detectron2": model.plain(cfg), "precision": "float16", "bn_images": 8, **changes}
    return Begun(record, iterations=100)


def test_what_nobody_asks_for_is_best_or_measured(cfg):
    resolved = resolve_options(cfg, 8, FinetuneOptions(), "bfloat16")
    assert (resolved.precision, resolved.images, resolved.inherited) == ("bfloat16", None, False)
    assert resolved.cfg == cfg


def test_what_the_user_asks_for_stands(cfg):
    options = FinetuneOptions(images_per_gpu=2, precision="tf32", schedule="1x")
    for before in (None, begun(cfg)):
        resolved = resolve_options(cfg, 4, options, "bfloat16", before)
        assert (resolved.precision, resolved.images, resolved.inherited) == ("tf32", 2, False)
        assert resolved.cfg.SOLVER.MAX_ITER == 90_000


@pytest.mark.parametrize(("processes", "images"), [(1, 8), (4, 2), (8, 1)])
def test_a_resumed_run_keeps_precision_and_the_pool_of_bn(cfg, processes, images):
    resolved = resolve_options(cfg, processes, FinetuneOptions(), "bfloat16", begun(cfg))
    assert (resolved.precision, resolved.images, resolved.inherited) == ("float16", images, True)


def test_a_resumed_run_keeps_the_schedule_that_hours_made(cfg):
    shorter = model.load_config(AUTHORS, ["SOLVER.MAX_ITER=5000"])
    options = FinetuneOptions(hours=3)
    assert resolve_options(cfg, 8, options, "float32", begun(shorter)).cfg.SOLVER.MAX_ITER == 5000
    assert resolve_options(cfg, 8, options, "float32").cfg.SOLVER.MAX_ITER == 180_000
    unlimited = resolve_options(cfg, 8, FinetuneOptions(), "float32", begun(shorter))
    assert unlimited.cfg.SOLVER.MAX_ITER == 180_000  # which is refused as another schedule


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FinetuneOptions(hours=1, schedule="1x"), "both say how long to train"),
        (FinetuneOptions(images_per_gpu=4), "--images-per-gpu may be 1, 2"),
        (FinetuneOptions(schedule="0x"), "a schedule is 2x, 1x"),
    ],
)
def test_options_that_cannot_be_are_refused(cfg, options, message):
    with pytest.raises(KitError, match=message):
        resolve_options(cfg, 8, options, "float32")


def test_a_norm_that_no_weights_have_is_refused():
    cfg = model.load_config(AUTHORS, ["MODEL.RESNETS.NORM=GN"])
    with pytest.raises(KitError, match="NORM is 'GN'; finetuning knows"):
        resolve_options(cfg, 8, FinetuneOptions(), "float32")


def test_a_plan_does_not_change(places):
    plan = preview("triplet", AUTHORS, FinetuneOptions(hours=2), Hardware(gpus=8, seconds=0.4))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.images = 1
    for config in (plan.cfg, plan.uncompressed):
        with pytest.raises(AttributeError, match="immutable"):
            config.SOLVER.MAX_ITER = 1


def test_a_plan_fits_the_hours_and_remembers_its_schedule(places):
    plan = preview("triplet", AUTHORS, FinetuneOptions(hours=2), Hardware(gpus=8, seconds=0.4))
    assert plan.uncompressed.SOLVER.MAX_ITER == 180_000
    assert plan.iterations == plan.settings["SOLVER"]["MAX_ITER"] < 180_000
    assert (plan.batch, plan.images, plan.passes, plan.bn_images) == (16, 2, 1, 16)
    assert plan.record["hours"] == 2
    assert plan.record["detectron2"] == plan.settings


@pytest.fixture
def numbered(drawn, tmp_path):
    """The drawn data set, whose categories have ids in tens."""
    folder = shutil.copytree(drawn, tmp_path / "numbered")
    for path in (folder / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        for each in content["categories"]:
            each["id"] *= 10
        for each in content["annotations"]:
            each["category_id"] *= 10
        path.write_text(json.dumps(content))
    return folder


SHORT = ("SOLVER.MAX_ITER=9", "SOLVER.STEPS=(7,)")


def stopped(plan, processes, job):
    raise Interrupted("stopped")


def test_a_plan_has_all_that_a_finetuning_needs(converted, numbered, places, monkeypatch):
    """Of a run in a folder, by seed 7, in passes of two images; and again after four iterations of it."""
    shutil.copytree(converted / "checkpoints", places / "checkpoints")
    shutil.copytree(converted / "checkpoints" / "method", places / "checkpoints" / "seed7" / "method")
    run, options = "seed7/method", FinetuneOptions(seed=7, images_per_gpu=2, overrides=SHORT)
    plan = resolve.resolve(run, DEMO, numbered, options, ALONE)
    assert (plan.method, plan.seed, plan.cfg.SEED, plan.iterations, plan.iterations_done) == (
        "method",
        7,
        7,
        9,
        0,
    )
    assert (plan.processes, plan.batch, plan.images, plan.passes, plan.precision) == (1, 4, 2, 2, "float32")
    assert (plan.hours, plan.seconds, plan.peak, plan.dataset_images) == (None, None, None, 12)
    assert (plan.classes[0], list(plan.category_ids)) == ("striped disc", [10, 20, 30, 40, 50, 60])
    folder = paths.stage_folder(run, "finetune")
    assert (str(folder), ()) == (plan.cfg.OUTPUT_DIR, plan.cfg.DATASETS.TEST)
    assert str(plan.inputs["weights"]) == plan.cfg.MODEL.WEIGHTS
    assert plan.cfg.MODEL.WEIGHTS.endswith("convert/detectron2.pkl")
    assert plan.inputs["annotations"].name == "instances_train2017.json"
    assert plan.seen.keys() >= plan.inputs.keys()
    assert plan.record["dataset"] == paths.portable(numbered)
    longer = FinetuneOptions(schedule="1/2", overrides=("SOLVER.MAX_ITER=900", "SOLVER.STEPS=(700,)"))
    half = resolve.resolve(run, DEMO, numbered, longer, ALONE)
    assert (half.iterations, half.settings["SOLVER"]["MAX_ITER"]) == (450, 450)
    assert (half.uncompressed.SOLVER.MAX_ITER, half.images, half.passes) == (900, 4, 1)
    monkeypatch.setattr(finetune, "_train", stopped)
    with pytest.raises(Interrupted):
        finetune.finetune(run, DEMO, DataSource(numbered), options)
    written = records.begun(folder)
    checkpoint.write(folder / "step_0000004.pth", {"step": 4}, written)
    (folder / "started.json").unlink()  # a checkpoint has its plan too
    again = dataclasses.replace(options, images_per_gpu=None)
    resumed = resolve.resolve(run, DEMO, numbered, again, ALONE)
    assert (resumed.iterations_done, resumed.images, resumed.bn_images) == (4, 2, 2)
    for change, said in (
        ({"seed": 8}, "config.seed 7 -> 8"),
        ({"hours": 3.0}, r"config.hours \(absent\) -> 3.0"),
        ({"overrides": (*SHORT, "SOLVER.BASE_LR=0.5")}, "SOLVER.BASE_LR .* -> 0.5"),
        ({"images_per_gpu": 4}, "config.bn_images 2 -> 4"),
    ):
        other = dataclasses.replace(again, **change)
        with pytest.raises(KitError, match=f"{said}.*with 4 iterations trained"):
            resolve.resolve(run, DEMO, numbered, other, ALONE)
        forced = resolve.resolve(
            run, DEMO, numbered, dataclasses.replace(other, force=True, hours=None), ALONE
        )
        assert forced.iterations_done == 0


def test_what_was_measured_holds_for_a_resumed_run_alone(places, monkeypatch):
    cfg = model.load_config(DEMO)
    seconds = iter(range(1, 9))
    monkeypatch.setattr(
        calibration, "measure", lambda *_, **__: Calibration(1, 4, "float32", float(next(seconds)), 5e9)
    )
    sources = RunSources(cfg, cfg)

    def calibrated(resumed, images=None, asked=None):
        options = FinetuneOptions(hours=2, images_per_gpu=asked)
        resolved = ResolvedOptions(cfg, "float32", images)
        return resolve.calibrate("run", sources, options, resolved, ALONE, resumed=resumed)

    assert calibrated(False) == Calibration(1, 4, "float32", 1.0, 5e9)
    assert calibrated(True) == Calibration(1, 4, "float32", 1.0, 5e9)
    assert calibrated(True, images=2) == Calibration(1, 2, "float32", 1.0, 5e9)
    assert calibrated(False).seconds == 2.0
    assert calibrated(True, images=2, asked=2).seconds == 3.0


@pytest.mark.parametrize(("images", "taken"), [(2, 2), (None, 4)])
def test_without_a_gpu_nothing_is_measured_for_no_hours(images, taken):
    cfg = model.load_config(DEMO)
    sources = RunSources(cfg, cfg)
    resolved = ResolvedOptions(cfg, "tf32", images)
    found = resolve.calibrate("run", sources, FinetuneOptions(), resolved, ALONE, resumed=False)
    assert found == Calibration(1, taken, "tf32")


def test_coco_needs_no_length_with_or_without_its_empty_images(cfg):
    for images in (117_266, 118_287):
        resolve.require_length(cfg, FinetuneOptions(), images, resolve.known_size(cfg))
    with pytest.raises(KitError, match="meant for 117266 images and would be 25 passes over these 115000"):
        resolve.require_length(cfg, FinetuneOptions(), 115_000, resolve.known_size(cfg))


def test_batch_and_norm_both_decide_on_the_pool_to_keep(cfg):
    for key, value in (("SOLVER.IMS_PER_BATCH", 32), ("MODEL.RESNETS.NORM", "BN")):
        other = model.load_config(AUTHORS, [f"{key}={value}"])
        assert not resolve_options(other, 4, FinetuneOptions(), "float32", begun(cfg)).inherited


def test_hours_need_the_seconds_of_an_iteration(cfg):
    for unknown in (None, 0.0):
        with pytest.raises(KitError, match="--hours needs the seconds"):
            resolve.fit_hours(cfg, 2, unknown)
