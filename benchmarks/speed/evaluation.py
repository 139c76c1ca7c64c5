"""``python -m benchmarks.speed.evaluation``: COCO's numbers by every engine that is installed."""

import argparse
import contextlib
import importlib.util
import io
import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as masks

from benchmarks.speed import results
from benchmarks.speed.timing import Budget, Case, Variant, interleave
from triplet import files
from triplet.progress import say
from triplet.scores import ENGINES, CocoGroundTruth

SIDES = (640, 480)
"""Width and height of an image, COCO's usual ones."""
CATEGORIES = 80
ANNOTATED, DETECTED = 7.35, 100
"""Objects and detections per image: val2017 has 36 757 in 5000, and 100 are scored."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table, write JSON; return 0, or 1 if the engines' numbers differ."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.evaluation", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--images", type=int, default=500, help="(default: 500; val2017: 5000)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring a task (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="at least, of each engine (default: 3)")
    arguments = parser.parse_args(argv)
    content, detections = synthesize(arguments.images)
    engines = [name for name, (package, _) in ENGINES.items() if _installed(package)]
    equal, cases = True, []
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "truth.json"
        path.write_text(json.dumps(content))
        for task in ("bbox", "segm"):
            same = _equal(path, engines, detections, task)
            equal &= same
            variants = [
                Variant(engine, _quietly(path, engine, detections, task), ours=engine != "pycocotools")
                for engine in engines
            ]
            budget = Budget(torch.device("cpu"), seconds=arguments.seconds, rounds=arguments.rounds)
            sizes = {
                "images": arguments.images,
                "annotations": len(content["annotations"]),
                "detections": len(detections),
            }
            name = f"{task} of {len(detections)} detections in {arguments.images} images"
            note = f"all numbers equal: {'yes' if same else 'NO'}"
            timings = interleave(variants, budget)
            case = Case("evaluation", name, budget.device, sizes, timings, [note])
            cases.append(results.as_json(case))
    say(results.table(cases, []))
    if arguments.output:
        command = shlex.join(["python", "-m", "benchmarks.speed.evaluation", *argv])
        header = results.header(command, torch.get_num_threads(), smoke=arguments.images < 500)
        files.write_text(arguments.output, json.dumps({**header, "cases": cases}, indent=1) + "\n")
    return 0 if equal else 1


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package.partition(".")[0]) is not None


def _equal(path: Path, engines: list[str], detections: list[dict[str, Any]], task: str) -> bool:
    """Return whether all engines give the same numbers, precisions, recalls and scores, bit for bit."""
    first: list[np.ndarray] | None = None
    for engine in engines:
        with contextlib.redirect_stdout(io.StringIO()):
            found = CocoGroundTruth(path, engine, checked=True).evaluate(detections, task)
        curves = found.eval
        arrays = [np.asarray(found.stats), *(curves[key] for key in ("precision", "recall", "scores"))]
        first = first or arrays
        if not all(map(np.array_equal, first, arrays)):
            return False
    return True


def _quietly(path: Path, engine: str, detections: list[dict[str, Any]], task: str) -> Callable[[], object]:
    def run() -> object:
        with contextlib.redirect_stdout(io.StringIO()):
            return CocoGroundTruth(path, engine, checked=True).score(detections, task)

    return run


def synthesize(images: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Draw annotations, and detections like those of a good detector, from a seed.

    Objects are diamonds in boxes of COCO's range of sizes. Three in four are found, by several detections
    of decreasing score and overlap; the rest of an image's 100 detections lie anywhere.
    """
    rng = np.random.default_rng(0)
    width, height = SIDES
    content: dict[str, Any] = {
        "images": [{"id": i, "width": width, "height": height} for i in range(images)],
        "categories": [{"id": i + 1, "name": f"category {i + 1}"} for i in range(CATEGORIES)],
        "annotations": [],
    }
    detections = []
    for image in range(images):
        around: list[tuple[int, np.ndarray, float]] = []
        for _ in range(rng.poisson(ANNOTATED)):
            category, box = int(rng.integers(CATEGORIES)) + 1, _box(rng)
            crowd = rng.random() < 0.01
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] / 2),
                    "iscrowd": int(crowd),
                    "segmentation": _encoded(box) if crowd else _diamond(box),
                }
            )
            if rng.random() < 0.75:
                for rank in range(int(rng.integers(1, 6))):
                    moved = box + rng.normal(0, 0.04 * (rank + 1), 4) * box[[2, 3, 2, 3]]
                    around.append((category, moved, rng.beta(4, 2) / (rank + 1)))
        for _ in range(DETECTED - len(around)):
            around.append((int(rng.integers(CATEGORIES)) + 1, _box(rng), rng.beta(1, 8)))
        for category, box, score in around:
            box = np.clip(box, [0, 0, 2, 2], [width - 2, height - 2, width, height])
            detections.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "score": float(score),
                    "bbox": box.tolist(),
                    "segmentation": _encoded(box),
                }
            )
    return content, detections


def _box(rng: np.random.Generator) -> np.ndarray:
    """Draw a (4,) box x, y, width, height in pixels with log-uniform sides."""
    size = np.exp(rng.uniform(np.log(12), np.log(400), 2)).clip(max=[SIDES[0] - 2, SIDES[1] - 2])
    return np.concatenate([rng.uniform(0, np.array(SIDES) - size), size])


def _diamond(box: np.ndarray) -> list[list[float]]:
    x, y, w, h = (float(v) for v in box)
    return [[x, y + h / 2, x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h]]


def _encoded(box: np.ndarray) -> dict[str, Any]:
    """Return the run-length encoding of a diamond."""
    one = masks.frPyObjects(_diamond(box), SIDES[1], SIDES[0])[0]
    return {"size": one["size"], "counts": one["counts"].decode()}


if __name__ == "__main__":
    sys.exit(main())
