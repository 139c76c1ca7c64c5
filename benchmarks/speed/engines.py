"""``python -m benchmarks.speed.engines``: the pretrain stage by the kit and by OpenSelfSup, in turn, on
the same images.

Both are started as a user starts them and train the Triplet method on the same batches' sizes; what is
compared is what their logs say of each step. On a GPU ResNet-50 and the recipe's sizes, on the CPU a
ResNet-18 at 96 pixels.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import results
from benchmarks.speed.photos import draw_photos
from benchmarks.speed.timing import spread
from triplet import files
from triplet.errors import KitError
from triplet.openselfsup import shims
from triplet.progress import say

ENGINES = ("kit", "openselfsup")
LEFT_OUT = 3
"""Steps to skip at the start of a run: workers start, memory is allocated, kernels are tuned."""
SMALL = {
    "kit": [
        "model.depth=18",
        "model.hidden=512",
        "views.size=96",
        "views.backend=opencv",
        "precision=float32",
        "views.online={smallest: 48, largest: 96}",
        "views.target={smallest: 64, largest: 96}",
    ],
    "openselfsup": [
        "model.backbone.depth=18",
        "model.neck.in_channels=512",
        "model.neck.hid_channels=512",
        "model.head.predictor.hid_channels=512",
        "data.train.pipeline1.0.size=96",
        "data.train.pipeline2.0.size=96",
        "use_fp16=false",
        "optimizer_config.use_fp16=false",
        "model.online=[48,96,1]",
        "model.target=[64,96,1]",
    ],
}


def settings(engine: str, batch: int, epochs: int, workers: int, small: bool) -> list[str]:
    """Return overrides of the method's recipe: one process, one micro-batch per step."""
    if engine == "kit":
        own = [
            f"loss.group={batch}",
            "optimizer.groups=1",
            "optimizer.accumulate=1",
            f"workers={workers}",
            f"schedule.epochs={epochs}",
            "schedule.warmup_epochs=1",
            "optimizer.learning_rate=0.1",
        ]
    else:
        own = [
            "gpus=1",
            f"data.imgs_per_gpu={batch}",
            "optimizer_config.update_interval=1",
            "custom_hooks.0.update_interval=1",
            f"data.workers_per_gpu={workers}",
            f"total_epochs={epochs}",
            "lr_config.warmup_iters=1",
            "optimizer.lr=0.1",
        ]
    return [*own, *(SMALL[engine] if small else ())]


def measure(engine: str, images: Path, place: Path, overrides: Sequence[str]) -> list[dict[str, Any]]:
    """Return the log's lines of one run; KitError if the run fails."""
    run = f"{engine}/triplet"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "triplet.cli",
            "pretrain",
            "--engine",
            engine,
            "--run",
            run,
            "--data",
            str(images),
            "--force",
            *overrides,
        ],
        env={**os.environ, "TRIPLET_CHECKPOINTS": str(place), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise KitError(f"{engine} failed: {done.stderr.strip().splitlines()[-1][:300]}")
    log = place / run / "pretrain" / "metrics.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()][LEFT_OUT:]


def summary(steps: list[dict[str, Any]], batch: int) -> dict[str, Any]:
    """Summarise all rounds' steps of an engine."""
    seconds = [step["step_time"] for step in steps]
    return {
        "steps": len(steps),
        "seconds_a_step": spread(seconds),
        "waiting_for_data": spread([step["data_time"] for step in steps]),
        "computing": spread([step["step_time"] - step["data_time"] for step in steps]),
        "images_per_second": batch / spread(seconds)["median"],
        "memory_bytes": max(step["memory"] for step in steps),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; return 0, or 2 with one line that says what is wrong."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.engines", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="real images (default: drawn JPEGs)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each engine (default: 3)")
    parser.add_argument("--steps", type=int, default=12, help="of a run (default: 12)")
    parser.add_argument("--batch", type=int, help="images in a step (default: GPU 196, CPU 24)")
    parser.add_argument("--workers", type=int, default=1, help="loader processes (default: 1)")
    arguments = parser.parse_args(argv)
    try:
        _run(arguments, shlex.join(["python", "-m", "benchmarks.speed.engines", *argv]))
    except (KitError, OSError) as error:
        print(f"benchmarks.speed.engines: {error}", file=sys.stderr)
        return 2
    return 0


def _run(arguments: argparse.Namespace, command: str) -> None:
    shims.locate()
    small = not torch.cuda.is_available()
    batch, per_epoch = arguments.batch or (24 if small else 196), 4
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as temporary:
        images = arguments.images
        if images is None:
            (photos := Path(temporary) / "photos").mkdir()
            images = draw_photos(photos, per_epoch * batch)
        for number in range(arguments.rounds):
            for engine in ENGINES:
                say(f"engines: round {number + 1}, {engine}")
                chosen = settings(engine, batch, -(-arguments.steps // per_epoch), arguments.workers, small)
                found[engine] += measure(engine, images, Path(temporary) / "runs", chosen)
    summaries = {engine: summary(steps, batch) for engine, steps in found.items()}
    ratio = summaries["kit"]["images_per_second"] / summaries["openselfsup"]["images_per_second"]
    for engine, each in summaries.items():
        parts = ("seconds_a_step", "computing", "waiting_for_data")
        whole, computing, waiting = (each[key]["median"] for key in parts)
        say(
            f"{engine:<12}{each['images_per_second']:8.1f} images/s; a step {whole:.3f} s: "
            f"computing {computing:.3f}, waiting for data {waiting:.3f}; "
            f"{each['memory_bytes'] / 2**30:.2f} GiB"
        )
    say(f"the kit is {ratio:.2f} times as fast")
    if arguments.output:
        sizes = {"batch": batch, "small": small, "workers": arguments.workers, "rounds": arguments.rounds}
        header = results.header(command, 1, smoke=False)
        content = {**header, "sizes": sizes, "engines": summaries, "ratio": ratio}
        files.write_text(arguments.output, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
