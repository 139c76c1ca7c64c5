"""What a plan says and records, where processes, images, passes and lengths all differ."""

import dataclasses
from datetime import datetime, timedelta

import pytest

from benchmarks.detection import budget, model
from benchmarks.detection.plan import FinetunePlan
from tests.conftest import KIT
from triplet.published import curves, effects

CONFIG = KIT / "configs/detection/coco_r50_c4_2x_moco.yaml"


def plan(*overrides, processes=2, images=4, method="moco", recipe="moco", **more):
    config = CONFIG.with_name(f"coco_r50_c4_2x_{recipe}.yaml")
    cfg, whole = model.load_config(config, overrides), model.load_config(config)
    fields = dict(precision="tf32", seed=7, dataset="coco", dataset_images=curves.IMAGES)
    return FinetunePlan(method, cfg, model.plain(cfg), whole, processes, images, **{**fields, **more})


def test_the_record_says_what_the_result_depends_on():
    made = plan()
    assert made.record == {
        "dataset": "coco",
        "seed": 7,
        "detectron2": made.settings,
        "precision": "tf32",
        "bn_images": 8,
    }
    assert plan(hours=3.5).record == {**made.record, "hours": 3.5}
    assert plan("MODEL.RESNETS.NORM=BN").record["bn_images"] == 4
    assert plan("MODEL.RESNETS.NORM=FrozenBN").record["bn_images"] == 0


@pytest.mark.parametrize(
    ("overrides", "processes", "images", "unlike"),
    [
        ([], 4, 4, []),
        ([], 2, 4, ["BN over 8 images"]),
        (["MODEL.RESNETS.NORM=FrozenBN"], 2, 4, ["another recipe than openselfsup/coco_R_50_C4_2x_moco"]),
        (["SOLVER.BASE_LR=0.03"], 4, 4, ["another recipe than openselfsup/coco_R_50_C4_2x_moco"]),
        (
            ["SOLVER.BASE_LR=0.03"],
            4,
            2,
            ["another recipe than openselfsup/coco_R_50_C4_2x_moco", "BN over 8 images"],
        ),
    ],
)
def test_what_is_done_otherwise_widens_the_expectation(overrides, processes, images, unlike):
    made = plan(*overrides, processes=processes, images=images)
    assert list(made.expected([]).unlike) == unlike
    assert bool(made.unknown_costs()) == bool(unlike)
    if processes * images < 16:
        assert f"BN over 16 images -> {processes * images}" in made.unknown_costs() or made.bn_images == 0
    if "SOLVER.BASE_LR=0.03" in overrides:
        assert "SOLVER.BASE_LR 0.02 -> 0.03" in made.unknown_costs()


COSINE = "this recipe (a cosine from 0.05, where the curves have steps from 0.02)"


@pytest.mark.parametrize(
    ("method", "recipe", "short", "unlike"),
    [
        ("triplet", "authors", False, []),
        ("triplet", "authors", True, [COSINE]),
        ("triplet", "moco", False, ["another recipe than authors/coco_R_50_C4_2x_moco"]),
        ("triplet", "moco", True, ["another recipe than authors/coco_R_50_C4_2x_moco"]),
        ("moco", "authors", False, ["another recipe than openselfsup/coco_R_50_C4_2x_moco"]),
        ("moco", "authors", True, [COSINE, "another recipe than openselfsup/coco_R_50_C4_2x_moco"]),
        ("moco", "moco", True, []),
    ],
)
def test_the_recipe_that_counts_is_the_runs(method, recipe, short, unlike):
    length = ["SOLVER.MAX_ITER=90000", "SOLVER.STEPS=(60000,80000)"] if short else []
    made = plan(*length, processes=4, method=method, recipe=recipe)
    assert list(made.expected([]).unlike) == unlike
    if method == "triplet":
        assert ("SOLVER.BASE_LR 0.05 -> 0.02" in made.unknown_costs()) == (recipe == "moco")


def test_what_is_expected_is_of_the_images_that_are_seen():
    shorter = plan(
        "SOLVER.MAX_ITER=45000", "SOLVER.STEPS=(30000,40000)", "SOLVER.IMS_PER_BATCH=32", processes=4
    )
    basis = curves.expected("moco", "c4", 90_000, unlike=shorter.expected([]).unlike[:1])
    assert shorter.expected([]).box.mid == pytest.approx(basis.box.mid)
    assert plan(dataset_images=1000).expected([]) is None
    assert plan(dataset_images=None).expected([]) is None


def test_a_small_pool_of_bn_lowers_the_lower_ends(monkeypatch):
    """By the most box and mask AP that one has cost; from eight images on it is not known to cost any."""
    sizes = {"bn-batch": ((1.0, 3.5), (0.5, 2.25), "where it was measured")}
    monkeypatch.setattr(effects, "size", sizes.__getitem__)
    small, enough = plan(processes=2, images=2), plan(processes=4, images=2)
    found, usual = small.expected([]), enough.expected([])
    for ours, theirs, cost in ((found.box, usual.box, 3.5), (found.mask, usual.mask, 2.25)):
        assert ours.low == pytest.approx(theirs.low - cost)
        assert (ours.mid, ours.high) == (theirs.mid, theirs.high)
    said = (
        "; trained from scratch, BN over 2 images cost 3.5 / 2.25 AP, and the lower ends of the ranges are "
        "lower by that much"
    )
    assert small.unknown_costs().endswith(said)
    assert "from scratch" not in enough.unknown_costs()


def test_the_lines_count_what_is_left_and_what_was_cut():
    made = plan(
        "SOLVER.MAX_ITER=60000", "SOLVER.STEPS=(40000,50000)", seconds=0.5, iterations_done=20_000, peak=3e9
    )
    said = made.facts()
    assert (
        said["batch"]
        == "16 images an iteration = 2 x 4 x 2 passes, tf32; BN over 8, where the recipe has 16"
    )
    assert said["schedule"].startswith(
        "60000 iterations = 8.19 epochs of 117266 images, learning rate 0.02,"
    )
    assert "measured on the fullest GPU: " in said["time"]
    assert " for the 40000 left, until " in said["time"]
    assert said["whole"].startswith("all 180000 iterations would take 26.3 h;")
    assert said["whole"].endswith("compressed to 33.3%")
    assert "whole" not in plan(seconds=0.5).facts()
    assert "cosine" not in said["schedule"]
    cosine = plan("SOLVER.LR_SCHEDULER_NAME=WarmupCosineLR").facts()["schedule"]
    assert cosine.endswith("warm-up 1000, cosine to 0")
    frozen = plan("MODEL.RESNETS.NORM=FrozenBN", processes=4).facts()["batch"]
    assert frozen == "16 images an iteration = 4 x 4, tf32; BN frozen"
    own = plan("MODEL.RESNETS.NORM=BN").facts()["batch"]
    assert own.endswith("tf32; BN over 4")


def test_the_end_is_what_is_left_from_now_on():
    made = plan(seconds=0.5, iterations_done=20_000, peak=3e9, peak_source="counted")
    left = timedelta(seconds=budget.lasts(0.5, made.cfg, 20_000))
    before = datetime.now().astimezone()
    said = made.facts()["time"]
    ends = [f"until {now + left:%a %d %b %H:%M}" for now in (before, datetime.now().astimezone())]
    assert said.endswith(tuple(ends))
    assert " counted on the fullest GPU: " in said


def test_neither_config_of_a_plan_changes():
    for config in (plan().cfg, plan().uncompressed):
        with pytest.raises(AttributeError, match="immutable"):
            config.SOLVER.MAX_ITER = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().images = 1
