"""How options, config, GPUs and what has begun become a plan, as far as nothing is measured."""

import dataclasses

import pytest

from benchmarks.detection import model
from benchmarks.detection.plan import FinetuneOptions
from benchmarks.detection.preview import Hardware, preview
from benchmarks.detection.resolve import Begun, resolve_options
from tests.conftest import KIT
from triplet.errors import KitError

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FinetuneOptions(hours=1, schedule="1x"), "both say how long to train"),
        (FinetuneOptions(images_per_gpu=3), "--images-per-gpu may be 1, 2"),
        (FinetuneOptions(schedule="0x"), "a schedule is 2x, 1x"),
    ],
)
def test_options_that_cannot_be_are_refused(cfg, options, message):
    with pytest.raises(KitError, match=message):
        resolve_options(cfg, 8, options, "float32")


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
