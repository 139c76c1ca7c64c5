"""Write the authors' and OpenSelfSup's detection configs, resolved, for the report and its tests.

Detectron2 itself reads each file that a training can be given; what differs from its defaults is noted, and
the defaults themselves, since the report does without Detectron2.
Clones of both, and the run (seconds), from the root of the kit:

    git clone https://github.com/wanggrun/triplet /tmp/authors
    git -C /tmp/authors checkout c1bbaa9
    git clone https://github.com/open-mmlab/OpenSelfSup /tmp/openselfsup
    git -C /tmp/openselfsup checkout 1db69ec
    .venv/bin/python scripts/golden_detection.py /tmp/authors /tmp/openselfsup

Their RetinaNet's anchors are an expression that Python evaluates: run it on these commits alone.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path

from detectron2.config import get_cfg

KIT = Path(__file__).parents[1]
PINS = dict(re.findall(r"^(\w+)=(\w+)$", (KIT / "docker" / "versions.env").read_text(), re.M))
COMMITS = {
    "authors": "c1bbaa941f1b5867145deb2bbf7f1c0ff0bf238a",
    "openselfsup": PINS["OPENSELFSUP_COMMIT"],
}
OUTPUT = KIT / "configs" / "released" / "detection.json"
DEFAULTS = OUTPUT.with_name("detectron2_defaults.json")


def flat(values: dict, prefix: str = "") -> dict:
    """Nested settings by dotted name, tuples as lists."""
    found = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = json.loads(json.dumps(value))
    return found


def main() -> None:
    """Resolve all of both and write the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in COMMITS:
        parser.add_argument(name, type=Path, help="checkout")
    arguments = parser.parse_args()
    defaults = flat(get_cfg())
    lines = []
    for name, commit in COMMITS.items():
        checkout = getattr(arguments, name)
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, changed"],
            cwd=checkout,
            capture_output=True,
            text=True,
        ).stdout.strip()
        if described != commit:
            parser.error(f"{checkout} is at {described or 'no commit'}, expected {commit}")
        for path in sorted((checkout / "benchmarks" / "detection" / "configs").glob("[ckp]*.yaml")):
            cfg = get_cfg()
            cfg.merge_from_file(str(path), allow_unsafe=True)
            changed = {key: value for key, value in flat(cfg).items() if value != defaults[key]}
            lines.append(f"{json.dumps(f'{name}/{path.stem}')}: {json.dumps(changed, sort_keys=True)}")
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    DEFAULTS.write_text(json.dumps(defaults, indent=0, sort_keys=True) + "\n")
    print(f"{OUTPUT}: {len(lines)} configs")


if __name__ == "__main__":
    main()
