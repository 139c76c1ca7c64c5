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

Weights, archives, annotations, configs, records and logs come from others, by mistake or by intent not as
they should be. The kit reads them without running anything in them, and within bounds: a small file cannot
take much memory or time, whatever it says of itself, and a large honest one is read. What is refused gets
one line (what was found, where, the bound, what to do) and exit code 2.

- **Pickles** (PyTorch's files, `.pkl`) are surveyed first, with stand-ins for everything that they name
  (`triplet/weights/pickles.py`): a tensor, an array or a storage is not larger than the file that it is in.
  Only then torch or numpy makes the tensors, as tensors and plain values alone. CRCs inside are checked.
- **safetensors** are read without a library; tensors lie inside the file, and on no other one.
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
{seconds_a_case} s and {gigabytes} GB. It may return a result or refuse in one line. Everything else (a
traceback, a hang, too much memory, a crash) is a failure. `.ci/run` does it for two minutes.

Of {cases} cases in {minutes:g} minutes (seed {seed}, version {kit}) {failed} failed:

| reader | what | cases | results | refused | failed | slowest | most memory |
|---|---|--:|--:|--:|--:|--:|--:|"""

KILLED = """
## What may end it

A stage may be killed at any moment: what is trained, unpacked or computed by then is gone on from, and the
end is the same as of a stage that was never killed. What only an unfinished stage needs is deleted once its
record is on the disk. Checkpoints say which settings and inputs they are of, so that nothing goes on from
those of others, even where what the stage set out to do is damaged. A file of the data that is replaced
while a stage works is noticed when it ends: by its content, in a folder by its size and time of writing.

Two kills in a pretraining, and one at an end, are among the slow tests. With 50 at random moments, and 20
aimed at the ends of the stages:

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
