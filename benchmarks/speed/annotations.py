"""``python -m benchmarks.speed.annotations``: the check of annotations as many as in COCO's train2017."""

import argparse
import json
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.speed import results
from triplet import files
from triplet.annotations.coco import check
from triplet.annotations.shapes import Uses
from triplet.progress import say

IMAGES, ANNOTATIONS = 118_287, 860_001
"""Numbers of train2017's images and annotations."""
CROWDS = 85
"""Number of annotations per crowd: train2017 has 10 104 crowds."""
KINDS = 1000
"""Number of different outlines, each used in many images."""
CORNERS = 22.8
"""Mean number of corners of an outline, so that the file has train2017's 448 MB."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write JSON; return 0."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.annotations", description=__doc__)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"(default: {IMAGES}, as train2017)")
    arguments = parser.parse_args(argv)
    count = round(arguments.images * ANNOTATIONS / IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "instances_train2017.json"
        write(path, arguments.images, count)
        size, wall, cpu = path.stat().st_size, time.monotonic(), time.process_time()
        checked = check(path, Uses(masks=True, train=True))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    found = {
        "images": len(checked.content["images"]),
        "annotations": len(checked.content["annotations"]),
        "bytes": size,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    say(
        f"{count} annotations of {arguments.images} images ({size / 1e6:.0f} MB) read and checked in "
        f"{wall:.1f} s ({cpu:.1f} s of one core)"
    )
    if arguments.output:
        command = shlex.join(["python", "-m", "benchmarks.speed.annotations", *argv])
        content = {**results.header(command, 1, smoke=arguments.images < IMAGES), "check": found}
        files.write_text(arguments.output, json.dumps(content, indent=1) + "\n")
    return 0


def write(path: Path, images: int, annotations: int) -> None:
    """Write annotations in COCO's format, piece by piece: polygons, and crowds as run lengths."""
    rng = np.random.default_rng(0)
    outlines = []
    for _ in range(KINDS):
        corners = max(3, int(rng.exponential(CORNERS - 3)) + 3)
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        x, y = 320 + 200 * np.cos(angles), 240 + 150 * np.sin(angles)
        outlines.append(json.dumps([np.stack([x, y], 1).round(2).flatten().tolist()]))
    runs = rng.multinomial(640 * 480, np.full(300, 1 / 300)).tolist()
    crowd = json.dumps({"counts": runs, "size": [480, 640]})
    with path.open("w") as out:
        out.write('{"info": {}, "licenses": [], "images": [')
        out.write(
            ",".join(
                f'{{"license": 3, "file_name": "{i:012d}.jpg", "height": 480, "width": 640, "id": {i}}}'
                for i in range(1, images + 1)
            )
        )
        out.write('], "categories": [')
        out.write(",".join(f'{{"id": {i}, "name": "kind {i}"}}' for i in range(1, 81)))
        out.write('], "annotations": [')
        for i in range(annotations):
            single = i % CROWDS
            out.write(
                f'{"," * bool(i)}{{"segmentation": {outlines[i % KINDS] if single else crowd}, "area": '
                f'{50000.5 + i % 999}, "iscrowd": {int(not single)}, "image_id": {i % images + 1}, "bbox": '
                f'[119.95, 90.03, {300 + i % 99}.12, 299.5], "category_id": {i % 80 + 1}, "id": {i + 1}}}'
            )
        out.write("]}")


if __name__ == "__main__":
    sys.exit(main())
