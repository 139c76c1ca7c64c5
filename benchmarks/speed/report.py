"""``python -m benchmarks.speed.report``: time the report of very many runs, with synthetic records."""

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed import results
from triplet import analysis, files, paths, records
from triplet.progress import say
from triplet.published.configs import nested, released
from triplet.published.methods import load_methods
from triplet.report import plots
from triplet.report.page import LARGEST
from triplet.report.stage import report
from triplet.scores import TASKS

SEEDS, CATEGORIES, LINES, PICTURES = 3, 80, 900, 6
"""Seeds per method and recipe; COCO's categories; lines of a run's metrics, as in a full schedule; pictures
of a run."""
RECIPES = {
    "": "openselfsup/coco_R_50_C4_2x_moco",
    "authors-recipe": "authors/coco_R_50_C4_2x_moco",
}
"""Folder of the runs -> the released config that they were finetuned with."""
GOAL = 20.0
"""Seconds that the page with all runs may take on 2 cores."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw records, make and time the report; return 1 if the page is too large or takes too long."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.report", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"of each method and recipe (default: {SEEDS})"
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("datasets", "checkpoints", "reports"):
            os.environ[f"TRIPLET_{name.upper()}"] = str(Path(temporary) / name)
        runs = _draw(arguments.seeds)
        load, began, spent = os.getloadavg()[0], time.perf_counter(), time.process_time()
        report()
        seconds, cores = time.perf_counter() - began, time.process_time() - spent
        size = (paths.root("reports") / "index.html").stat().st_size
    reached = size <= LARGEST and seconds <= GOAL
    say(
        f"{runs} runs: {seconds:.1f} s by the clock, {cores:.1f} s of a core, load average {load:.1f}; the "
        f"page has {size / 1e6:.2f} MB; {'reached' if reached else 'NOT reached'}: {GOAL:.0f} s and "
        f"{LARGEST / 1e6:.0f} MB"
    )
    if arguments.output:
        header = results.header(
            shlex.join(["python", "-m", "benchmarks.speed.report", *argv]), 1, smoke=False
        )
        found = {
            "runs": runs,
            "seconds": round(seconds, 2),
            "core_seconds": round(cores, 2),
            "load_average": round(load, 2),
            "bytes": size,
        }
        files.write_text(arguments.output, json.dumps({**header, **found}, indent=1) + "\n")
    return 0 if reached else 1


def _draw(seeds: int) -> int:
    """Write records for every method, seed and recipe; return the number of runs."""
    rng, count = np.random.default_rng(0), 0
    for folder, config in RECIPES.items():
        for name, method in load_methods().items():
            for seed in range(seeds):
                parts = [folder, f"seed{seed}" if seed else "", name]
                ap = {"bbox": method.readme.box, "segm": method.readme.mask}
                drawn = {task: float(value + rng.normal(0, 0.2)) for task, value in ap.items()}
                _run("/".join(part for part in parts if part), seed, config, drawn, rng)
                count += 1
    return count


def _run(name: str, seed: int, config: str, ap: dict[str, float], rng: np.random.Generator) -> None:
    """Write the records of one run's four stages, with metrics of both trainings and with pictures."""
    detectron2 = nested(released()[config])
    length = detectron2["SOLVER"]["MAX_ITER"]
    settings = {"detectron2": detectron2, "precision": "float32", "bn_images": 16}
    trained = {"iterations": length, "images_per_batch": 16, "epochs": 24.56, "categories": []}
    kept = {task: _analysis(ap[task], rng) for task in TASKS}
    scores = {task: {"AP": ap[task], "AP50": ap[task] + 20, "AP75": ap[task] + 3} for task in TASKS}
    categories = {
        task: dict(zip(each.categories, each.by_size["all"], strict=True)) for task, each in kept.items()
    }
    names = [f"{number}.jpg" for number in range(PICTURES)]
    found = {"images": 5000, "engine": "ultrafast", **scores, "categories": categories, "pictures": names}

    def evaluate(job: records.Job) -> None:
        _write(job, {analysis.ANALYSIS: analysis.Analysis(kept).model_dump_json()})
        job.outputs["pictures"] = job.folder / "pictures"
        job.outputs["pictures"].mkdir(exist_ok=True)
        for each in names:
            pixels = rng.integers(0, 255, (48, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((1280, 480)).save(job.outputs["pictures"] / each, quality=85)
        job.results.update(found)

    def write(texts: dict[str, str], results: dict[str, Any]) -> Callable[[records.Job], None]:
        def work(job: records.Job) -> None:
            _write(job, texts)
            job.results.update(results)

        return work

    pretrained = {"checkpoint": f"pretrained {name}", "metrics": _log(plots.PRETRAIN, length, rng)}
    finetuned = {"model": f"{name} {ap}", "metrics": _log(plots.FINETUNE, length, rng)}
    for stage, read, of, work in (
        ("pretrain", {}, {}, write(pretrained, {})),
        ("convert", {"weights": "pretrain/checkpoint"}, {}, write({"weights": f"converted {name}"}, {})),
        ("finetune", {"weights": "convert/weights"}, settings, write(finetuned, trained)),
        ("eval", {"model": "finetune/model"}, {}, evaluate),
    ):
        folder = paths.stage_folder(name, stage)
        inputs = {key: folder.parent / path for key, path in read.items()}
        records.perform(stage, folder, config=of, inputs=inputs, work=work, seed=seed)


def _write(job: records.Job, texts: dict[str, str]) -> None:
    for output, text in texts.items():
        files.write_text(job.folder / output, text)
        job.outputs[output] = job.folder / output


def _log(keys: Iterable[str], length: int, rng: np.random.Generator) -> str:
    """Return the lines of a training's metrics, falling and noisy."""
    iterations = range(0, length, length // LINES)
    falling = 1 + np.exp(-np.linspace(0, 4, len(iterations)))
    columns = {key: falling + rng.normal(0, 0.05, len(iterations)) for key in keys}
    lines = [
        {"iteration": iteration, **{key: float(values[i]) for key, values in columns.items()}}
        for i, iteration in enumerate(iterations)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def _analysis(ap: float, rng: np.random.Generator) -> analysis.TaskAnalysis:
    """Return one task's analysis, drawn around an AP."""
    by_category = np.clip(ap + rng.normal(0, 12, CATEGORIES), 0, 100).round(5)
    shifts = {"all": 0, "small": -15, "medium": 2, "large": 12}
    recalls = np.linspace(0, 1, 101)
    return analysis.TaskAnalysis(
        images=5000,
        draws="drawn",
        categories=[f"category {i}" for i in range(CATEGORIES)],
        by_size={size: np.clip(by_category + shift, 0, 100).tolist() for size, shift in shifts.items()},
        precision={
            iou: (100 * (1 - recalls**way)).round(5).tolist() for iou, way in (("0.5", 2.5), ("0.75", 1.2))
        },
        resampled=np.clip(ap + rng.normal(0, 0.4, analysis.RESAMPLES), 0, 100).round(5).tolist(),
    )


if __name__ == "__main__":
    sys.exit(main())
