"""Try every reader on changed files for some minutes.

``python -m tests.fuzz.run --minutes 2`` (or ``make fuzz MINUTES=2``) forks a process for each case from
this one, which has imported the kit: each has 30 s and 2 GB. What it may do is return a result, or refuse
in one line. Everything else is a failure, is shown with the command that repeats it, and makes the exit
code 1.
"""

import argparse
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from PIL import Image

from tests.fuzz import weights
from tests.fuzz.child import MEMORY, RESULT, SECONDS, Outcome, attempt
from tests.fuzz.readers import READERS
from triplet import __version__
from triplet.config import load
from triplet.paths import CONFIGS
from triplet.pretrain.config import Pretrain

WARM = (
    "benchmarks.detection.data",
    "benchmarks.detection.explain",
    "benchmarks.detection.plan",
    "benchmarks.linear.config",
    "tests.support.run_records",
    "triplet.demo",
    "triplet.images",
    "triplet.pretrain.methods",
    "triplet.pull.download",
    "triplet.pull.pack",
    "triplet.pull.stage",
    "triplet.report.stage",
)


def main(argv: list[str] | None = None) -> int:
    """Run the cases; returns 0 when all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"), help="(default: the date)")
    parser.add_argument("--reader", action="append", choices=READERS, help="only these")
    parser.add_argument("--case", type=int, help="only this one of --reader, with its output")
    parser.add_argument("--output", type=Path, help="JSON of what was tried and held")
    options = parser.parse_args(argv)
    warm_up()
    os.chdir(CONFIGS.parent)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name)
        if options.case is not None:
            return repeat(root, options.reader[0], options.seed, options.case)
        found = campaign(root, options.reader or list(READERS), options.seed, 60 * options.minutes)
    if options.output:
        options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    show(found)
    return 1 if found["failures"] else 0


def warm_up() -> None:
    """Import and compute once what every case needs, so that no fork has to."""
    for module in WARM:
        importlib.import_module(module)
    Image.init()
    weights.state()
    load(CONFIGS / "pretrain" / "demo.yaml", Pretrain)
    gc.freeze()  # else collecting would copy every page of the parent's


def campaign(root: Path, names: list[str], seed: str, seconds: float) -> dict[str, Any]:
    """Give each reader the same time until it is spent, and one case at least.

    Returns:
        Counts by reader, and each failure with the number of its case.
    """
    begun = time.monotonic()
    spent, tried, prepared = Counter[str](), Counter[str](), set[str]()
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    failures: list[dict[str, Any]] = []
    while time.monotonic() - begun < seconds or len(tried) < len(names):
        name = min(names, key=lambda name: spent[name])
        if name not in prepared:
            prepare(root, name)
            prepared.add(name)
            spent[name] += 1e-3
            continue
        outcome = case(root, name, seed, tried[name])
        outcomes[name].append(outcome)
        if not outcome.held:
            failures.append(
                {"reader": name, "case": tried[name], "kind": outcome.kind, "text": outcome.text[-300:]}
            )
            print(
                f"fuzz: {name} {tried[name]}: {outcome.kind}: {outcome.text.strip().splitlines()[-1]:.200}",
                flush=True,
            )
        tried[name] += 1
        spent[name] += outcome.seconds
    return {
        "kit": __version__,
        "seed": seed,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "seconds_a_case": SECONDS,
        "bytes_a_case": MEMORY,
        "readers": {name: summary(name, found) for name, found in outcomes.items()},
        "failures": failures,
    }


def prepare(root: Path, name: str) -> None:
    """Make a reader's honest files, in a fork: what it imports and sets stays there."""
    folder = honest(root, name)
    if folder.exists() or not (make := READERS[name].prepare):
        return
    folder.mkdir()
    done = attempt(partial(make, folder), root / "log")
    if done.kind != RESULT:
        sys.exit(f"fuzz: {name} cannot be prepared: {done.text} {(root / 'log').read_text()[-2000:]}")


def honest(root: Path, name: str) -> Path:
    """The folder of a reader's honest files."""
    return root / getattr(READERS[name].prepare, "__name__", "nothing")


def case(root: Path, name: str, seed: str, number: int) -> Outcome:
    """Run one case of a prepared reader."""
    scratch = root / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    random = Random(f"{seed} {name} {number}")
    return attempt(partial(READERS[name].case, honest(root, name), scratch, random), root / "log")


def repeat(root: Path, name: str, seed: str, number: int) -> int:
    """Run one case again and show its output."""
    prepare(root, name)
    outcome = case(root, name, seed, number)
    print((root / "log").read_text(errors="replace")[-4000:])
    print(f"{outcome.kind} after {outcome.seconds:.1f} s, {outcome.bytes / 1e6:.0f} MB: {outcome.text}")
    return 0 if outcome.held else 1


def summary(name: str, outcomes: list[Outcome]) -> dict[str, Any]:
    """Counts of one reader's cases."""
    kinds = Counter(outcome.kind if outcome.held else "failed" for outcome in outcomes)
    return {
        "about": READERS[name].about,
        "cases": len(outcomes),
        **{kind: kinds[kind] for kind in ("result", "refused", "failed")},
        "slowest_seconds": round(max((outcome.seconds for outcome in outcomes), default=0.0), 1),
        "largest_mb": round(max((outcome.bytes for outcome in outcomes), default=0) / 1e6),
    }


def show(found: dict[str, Any]) -> None:
    """Print the table, and how each failure is repeated."""
    print(f"{'reader':18}{'cases':>7}{'result':>8}{'refused':>9}{'failed':>8}{'slowest':>9}{'largest':>9}")
    for name, row in found["readers"].items():
        counts = f"{row['cases']:7}{row['result']:8}{row['refused']:9}{row['failed']:8}"
        print(f"{name:18}{counts}{row['slowest_seconds']:7.1f} s{row['largest_mb']:6} MB")
    for each in found["failures"]:
        options = f'--reader "{each["reader"]}" --seed {found["seed"]} --case {each["case"]}'
        print(f"repeat by: .venv/bin/python -m tests.fuzz.run {options}")


if __name__ == "__main__":
    sys.exit(main())
