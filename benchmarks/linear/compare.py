"""Compare the fast protocol with the published one: python -m benchmarks.linear.compare.

On drawn images, of which there are few, and for two small backbones, one as drawn from a seed and one
trained with the labels of other images. On ImageNet the distance may be another.
"""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.linear.linear import linear
from benchmarks.linear.semi import semi
from benchmarks.linear.stage import ImageNetOptions
from triplet import environment, files, paths, records
from triplet.pretrain.stage import PretrainOptions, pretrain
from triplet.progress import Bar
from triplet.pull.synthetic import CLASSES, draw_image

COUNTS = {"train": 300, "val": 900, "other": 1200}
RADII = (28.0, 60.0)
PRETRAIN = paths.CONFIGS / "pretrain" / "demo.yaml"
COMMON = ["images={size: 64, shorter: 72, scale: [0.3, 1.0]}"]
EPOCHS = 40
RATES = (0.3, 3.0)
"""Learning rates of the published protocol; the better one is compared."""
PUBLISHED = f"""
training: {{num_replicas: 1, batch: 32, learning_rate: 1, epochs: {EPOCHS}, warmup_epochs: 4,
  evaluate_every: 10}}
"""
SUPERVISED = """
percent: 100
training: {num_replicas: 1, batch: 32, learning_rate: 0.05, epochs: 20, warmup_epochs: 1,
  weight_decay: 1.0e-4, evaluate_every: 20}
"""
FAST = f"""
sweep: {{crops: 4, held_out: 0.2, batch: 32, epochs: {EPOCHS}, warmup_epochs: 4, weight_decays: [0],
  learning_rates: [0.1, 0.3, 1, 3, 10]}}
"""


def draw(folder: Path, seed: int) -> None:
    """Draw images of one large shape each, in a folder for each class."""
    with Bar("drawing", sum(COUNTS.values())) as bar:
        for number, (split, count) in enumerate(COUNTS.items()):
            for i in range(count):
                image, shapes = draw_image(np.random.default_rng((seed, 7, number, i)), 1, RADII)
                place = folder / split / CLASSES[shapes[0].category].replace(" ", "-")
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{i:05d}.png")
                bar.step()


def compare(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Return the top-1 accuracy of both protocols for each backbone, in percent."""
    images = folder / "images"
    draw(images, seed)
    (folder / "published.yaml").write_text(PUBLISHED)
    (folder / "fast.yaml").write_text(FAST)
    found = []
    overrides = ["schedule.epochs=0", f"seed={seed}"]
    pretrain(PretrainOptions("random", PRETRAIN, images / "other", overrides))
    initial = records.output(records.require("random", "pretrain"), "checkpoint")
    other = folder / "supervised.yaml"
    other.write_text(SUPERVISED)
    options = ImageNetOptions("supervised", images / "other", images / "val", weights=initial, force=True)
    semi(other, options, [*COMMON, f"seed={seed}"], listed=None, draw=True)
    supervised = paths.stage_folder("supervised", "semi") / "supervised" / "checkpoint.pth"
    for method, weights in (("random", initial), ("supervised", supervised)):
        options = ImageNetOptions(method, images / "train", images / "val", weights=weights, force=True)
        top: dict[str, Any] = {}
        for rate in RATES:
            config = folder / "published.yaml"
            linear(config, options, [*COMMON, f"seed={seed}", f"training.learning_rate={rate}"])
            top[f"published_{rate}"] = _last(method, config)
        linear(folder / "fast.yaml", options, [*COMMON, f"seed={seed}"])
        top["fast"] = _last(method, folder / "fast.yaml")
        best = max(top[f"published_{rate}"] for rate in RATES)
        found.append({"seed": seed, "method": method, **top, "difference": top["fast"] - best})
    return found


def _last(run: str, config: Path) -> float:
    record = records.read(paths.stage_folder(run, "linear") / config.stem)
    assert record
    return float(record.results["last"]["top1"])


def main() -> None:
    """Compare for each seed and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "command": f"python -m benchmarks.linear.compare --seeds {' '.join(map(str, arguments.seeds))}",
        "date": datetime.now(UTC).date().isoformat(),
        "images": COUNTS,
        "epochs": EPOCHS,
        "commit": environment.commit(),
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "runs": [],
    }
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TRIPLET_CHECKPOINTS"] = f"{folder}/checkpoints"
            result["runs"] += compare(seed, Path(folder))
        files.write_text(arguments.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
