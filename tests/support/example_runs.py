"""Runs in memory of which no two numbers are equal, and the cells of a table by column."""

from tests.support import run_records
from triplet.records import Artifact, Record
from triplet.runs import Run

GPU = "NVIDIA A100-SXM4-80GB"
COLUMNS = ("AP", "AP50", "AP75")


def record(stage, number=1, **fields):
    """A record of which every field tells which one it is."""
    plain = dict(
        stage=stage,
        config={"of": stage},
        inputs={},
        outputs={},
        results={},
        kit="0.2.0",
        commit=f"commit-{stage}",
        command=f"make {stage}",
        versions={"torch": f"2.{number}", "numpy": f"1.{number}"},
        hardware={"gpus": [GPU], "cpu": f"cpu {stage}", "cores": 10 + number},
        world_size=number,
        seed=number,
        started=f"started {stage}",
        ended=f"ended {stage}",
        seconds=1000.0 * number,
        images_per_second=100.5 + number,
        image=f"image-{stage}",
    )
    return Record(**{**plain, **fields})


def made(name, first, reference=run_records.MOCO, *, seed=0, images=5000, gpus=8, **changes):
    """A finished run: box AP is ``first``, and the other five numbers lie at uneven distances from it."""
    detectron2 = run_records.settings(reference, **changes)
    solver = detectron2["SOLVER"]
    apart = {"bbox": (0, 20.1, 3.2), "segm": (-5.9, 16.4, 1.7)}
    numbers = {
        task: dict(zip(COLUMNS, (first + d for d in each), strict=True)) for task, each in apart.items()
    }
    trained = {
        "iterations": solver["MAX_ITER"],
        "images_per_batch": solver["IMS_PER_BATCH"],
        "epochs": first / 2,
    }
    settings = {"detectron2": detectron2, "precision": "float32", "bn_images": 16}
    return Run(
        name,
        {
            "finetune": record("finetune", 3, config=settings, results=trained, world_size=gpus, seed=seed),
            "eval": record(
                "eval", 2, results={**numbers, "images": images, "engine": "ultrafast"}, seed=seed
            ),
        },
    )


def texts(grid, row):
    """The cells of a row as the page shows them, by column."""
    return dict(zip(grid.columns, (cell.text for cell in grid.rows[row]), strict=True))


def artifact(path, sha):
    return Artifact(path=path, sha256=sha * 64, bytes=1)
