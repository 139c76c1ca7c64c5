"""docs/robustness.md, from the bounds in ``triplet/untrusted.py`` and from what a run of the fuzzer
counted.

``python -m tests.fuzz.page`` writes it anew.
"""

import ast
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from triplet import untrusted
from triplet.paths import CONFIGS

ROOT = CONFIGS.parent
RESULTS = ROOT / "benchmarks" / "results" / "fuzz.json"
PAGE = ROOT / "docs" / "robustness.md"

INTRODUCTION = """# What files of others may do

Weights, archives, annotations, configs, records and logs come from others, and some are damaged or hostile.
The kit runs nothing that is in them and reads them within bounds: a small file cannot take much memory or
time, whatever it says of itself, and a large honest file is read. A file that is refused gets one line
(what was found, where, the bound, what to do) and exit code 2.

- **Pickles** (PyTorch's files, `.pkl`) are surveyed first, with stand-ins for everything that they name
  (`triplet/weights/pickles.py`): no tensor, array or storage may be larger than the file. Only then does
  torch or numpy build tensors and plain values, and nothing else. CRCs inside the file are checked.
- **safetensors** are read without a library; each tensor must lie inside the file and overlap no other.
- **Archives** unpack to at most 20 times their size, below their folder, without links and devices.
- **YAML** is counted with its aliases written out before it is built; **JSON** has bounds of size and
  depth.

## Bounds

In `triplet/untrusted.py`:

| bound | value | why |
|---|---|---|"""
TRIED = """
## What was tried

`make fuzz MINUTES=60` changes honest files at random and gives them to each reader, each in a process with
{seconds_a_case} s and {gigabytes} GB. The reader may return a result, or refuse in one line. Everything
else (a traceback, a hang, too much memory, a crash) is a failure. `.ci/run` includes two minutes of this.

Of {cases} cases in {minutes:g} minutes (seed {seed}, version {kit}) {failed} failed:

| reader | what | cases | results | refused | failed | slowest | most memory |
|---|---|--:|--:|--:|--:|--:|--:|"""

KILLED = """
## Kills

A stage may be killed at any moment. The same command continues from what was trained, unpacked or computed
by then, and ends as if the stage had never been killed. Files that only an unfinished stage needs are
deleted after its record is on the disk. A checkpoint names the settings and inputs that it belongs to, so
no other run continues from it. If a data file is replaced while a stage works, the stage notices when it
ends: by the file's content, and in a folder by its size and time of writing.

SIGTERM, Ctrl-C and a closed terminal stop every command at its next step, with one line that says how to
go on, and exit code 143, 130 or 129. A signal that comes after the last step of some work is not forgotten:
the command stops before its next work.

The slow tests kill a pretraining twice, and a stage once at its end. This command kills at 50 random
moments, and kills or stops at 20 moments near the ends of stages:

```sh
KILLS=50 FAILPOINTS=20 .venv/bin/pytest -n 0 tests/test_kills.py tests/linear/test_kills.py
```
"""


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(RESULTS.read_text())))


def page(found: dict[str, Any]) -> str:
    """The page's Markdown for one run's counts."""
    rows = found["readers"]
    lines = [INTRODUCTION]
    lines += [f"| `{name}` | {shown(value)} | {reason} |" for name, value, reason in bounds()]
    counts = {
        "cases": sum(row["cases"] for row in rows.values()),
        "failed": len(found["failures"]),
        "gigabytes": found["bytes_a_case"] >> 30,
    }
    lines.append(TRIED.format(**found, **counts))
    for name, row in rows.items():
        cells = [name, *(row[key] for key in ("about", "cases", "result", "refused", "failed"))]
        cells += [f"{row['slowest_seconds']} s", f"{row['largest_mb']} MB"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, KILLED])


def bounds() -> Iterator[tuple[str, Any, str]]:
    """Each constant of ``triplet/untrusted.py``: name, value and reason."""
    body = ast.parse(Path(untrusted.__file__).read_text()).body
    for here, after in itertools.pairwise(body):
        if (
            isinstance(here, ast.Assign)
            and isinstance(here.targets[0], ast.Name)
            and isinstance(after, ast.Expr)
        ):
            name = here.targets[0].id
            if isinstance(after.value, ast.Constant) and name.isupper():
                yield name, getattr(untrusted, name), " ".join(str(after.value.value).split())


def shown(value: Any) -> str:
    """A bound for people."""
    if isinstance(value, tuple):
        return ", ".join(value)
    if value >= 1 << 62:
        return "2^63 - 1"
    if value >= 1 << 20 and value % (1 << 18) == 0:
        return f"{value >> 30} GiB" if value >> 30 else f"{value >> 20} MiB"
    return f"{value:,}".replace(",", " ")


if __name__ == "__main__":
    sys.exit(main())
