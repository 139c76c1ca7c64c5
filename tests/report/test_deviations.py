"""Departures, told from resolved configs."""

import pytest

from benchmarks.detection import model
from tests.conftest import KIT
from tests.support import run_records
from triplet.published import configs
from triplet.published.methods import load_methods
from triplet.report import deviations
from triplet.runs import collect

METHODS = load_methods()


def found(places):
    return {
        each.key: each
        for run in collect(places / "checkpoints")
        for each in deviations.run_deviations(run, METHODS)
        if each.stage == "finetune"
    }


def test_a_run_as_released_has_none(places):
    run_records.run("triplet", 41.7, 36.2)
    run_records.run("byol", 40.3, 35.1)
    run_records.run("supervised", 40.0, 34.7, reference="openselfsup/coco_R_50_C4_2x")
    assert found(places) == {}


@pytest.mark.parametrize(
    ("changes", "kind", "sized"),
    [
        ({"SOLVER__MAX_ITER": 22_500}, "schedule", True),
        ({"SOLVER__BASE_LR": 0.4}, "learning rate", True),
        ({"MODEL__RESNETS__NORM": "FrozenBN"}, "BN statistics", True),
        ({"MODEL__RESNETS__STRIDE_IN_1X1": True}, "input", True),
        ({"INPUT__MIN_SIZE_TRAIN": [800]}, "augmentation", False),
        ({"TEST__DETECTIONS_PER_IMAGE": 50}, "evaluation", False),
        ({"MODEL__RPN__NMS_THRESH": 0.5}, "model", False),
    ],
)
def test_each_setting_that_differs_is_seen_with_its_size(places, changes, kind, sized):
    run_records.run("triplet", 35.0, 31.0, **changes)
    ((key, each),) = found(places).items()
    assert key == next(iter(changes)).replace("__", ".")
    assert (each.kind, bool(each.size)) == (kind, sized)
    assert each.against == "authors/coco_R_50_C4_2x_moco.yaml"


def test_what_lies_beside_the_config_counts_too(places):
    run_records.run("triplet", 41.0, 36.0, precision="bfloat16")
    assert found(places)["precision"].ours == "bfloat16"


def test_where_files_lie_is_no_departure(places):
    run_records.run(
        "triplet", 41.0, 36.0, MODEL__WEIGHTS="x.pkl", OUTPUT_DIR="/y", DATALOADER__NUM_WORKERS=9
    )
    assert found(places) == {}


def test_a_run_is_compared_with_the_nearest_released_config(places):
    run_records.pretrain("triplet")
    (run,) = collect(places / "checkpoints")
    differ = {
        each.key: (each.theirs, each.ours, each.against) for each in deviations.run_deviations(run, METHODS)
    }
    against = "r50_bs4096_accumulate4_ep1000_fp16_triplet_gpu3090.py"
    assert differ == {
        "schedule.epochs": ("1000", "200", against),
        "precision": ("float16", "bfloat16", against),
    }


def test_another_method_has_no_released_pretraining(places):
    run_records.pretrain("byol", config={"method": "byol"})
    (run,) = collect(places / "checkpoints")
    assert deviations.run_deviations(run, METHODS) == []


def test_the_release_departs_from_what_is_said_of_it():
    said = [(each.against.partition(",")[0], each.key, each.ours) for each in deviations.stated()]
    assert ("README", "schedule.epochs", "1000") in said
    assert ("file name", "batch", "6272") in said
    assert ("file name", "schedule.epochs", "1000") not in said


def test_the_two_recipes_differ_in_these_settings():
    differ = {key: (ours, theirs) for key, ours, theirs in deviations.recipes()}
    assert differ["SOLVER.BASE_LR"] == ("0.05", "0.02")
    assert differ["SOLVER.LR_SCHEDULER_NAME"] == ("WarmupCosineLR", "WarmupMultiStepLR")
    assert "MODEL.WEIGHTS" not in differ


def test_the_kits_own_config_resolves_as_the_report_takes_it():
    """Detectron2 at hand beside the defaults that were written down."""
    ours = configs.flat(model.plain(model.load_config(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml")))
    theirs = configs.released()["openselfsup/coco_R_50_C4_2x_moco"]
    assert configs.differing(ours, theirs) == []
