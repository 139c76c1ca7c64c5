"""Records in, comparable runs out: which of this machine's runs tell what to expect."""

import pytest

from benchmarks.detection import model
from tests.conftest import KIT
from triplet import paths, records, runs
from triplet.published import curves
from triplet.runs import Run


@pytest.fixture
def finished():
    """The records of a run on all of COCO as the recipe has it, and what to change in them."""

    def make(config=(), recipe="moco", **changes):
        cfg = model.load_config(KIT / f"configs/detection/coco_r50_c4_2x_{recipe}.yaml", config)
        names = ("stage", "kit", "commit", "command", "started", "ended")
        common = {**dict.fromkeys(names, ""), **{name: {} for name in ("inputs", "outputs", "versions")}}
        common |= {"hardware": {}, "world_size": 8, "seed": 0, "seconds": 1.0}
        settings = {"detectron2": model.plain(cfg), "bn_images": changes.pop("bn_images", 16)}
        results = {"iterations": 45_000, "images_per_batch": 16, "images": curves.IMAGES, **changes}
        reached = {"images": 5000, "bbox": {"AP": 35.0}, "segm": {"AP": 31.0}}
        finetune = records.Record(**common, config=settings, results=results)
        return Run(
            "byol", {"finetune": finetune, "eval": records.Record(**common, config={}, results=reached)}
        )

    return make


def test_only_runs_of_the_recipe_count(finished):
    (own,) = runs.local_results([finished()])
    assert own == curves.LocalResult("byol", "byol", 45_000, (35.0, 31.0))
    for run in (
        finished(bn_images=2),
        finished(images=1000),
        finished(["SOLVER.BASE_LR=0.4"]),
        finished(recipe="authors"),
        finished(["MODEL.ROI_HEADS.NUM_CLASSES=6"]),
        finished(["MODEL.RESNETS.DEPTH=101"]),
    ):
        assert runs.local_results([run]) == []


def test_own_data_are_not_cocos_however_many_they_are(finished):
    run = finished()
    assert run.of_the_table
    run.stages["finetune"].config["dataset"] = "checkpoints/byol/data"
    assert not run.of_the_table


def test_a_damaged_record_of_another_run_is_no_obstacle(places, capsys):
    folder = paths.stage_folder("byol", "eval")
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    assert runs.of_this_machine() == []
    assert "own runs are left out: " in capsys.readouterr().out
