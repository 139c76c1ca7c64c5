"""``triplet explain``: what could have made a result fall short, the likeliest first."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from triplet.errors import KitError
from triplet.progress import say
from triplet.published.causes import SEEN, Cause, Facts, enough, find, of_config, span
from triplet.published.curves import NOISE
from triplet.published.rows import load_methods

LINE = r"^\[\d\d/\d\d |^\d{4}-\d\d-\d\d "
"""How a line begins in Detectron2's log, and in the kit's."""


def explain(result: tuple[float, float], row: str, config: Path | None, log: Path | None) -> None:
    """Print the causes in order.

    Args:
        result: box and mask AP on COCO val2017, in percent.
        row: of the table.
        config: the run's Detectron2 YAML.
        log: its ``log.txt`` or ``metrics.json``.

    Raises:
        KitError: an unknown row, or files that tell nothing.
    """
    methods = load_methods()
    if row not in methods:
        raise KitError(f"no row {row!r} in the table; it has {', '.join(methods)}")
    if not all(0 <= value <= 100 for value in result):
        raise KitError(f"--result is box and mask AP in percent: found {result[0]:g} {result[1]:g}")
    target = methods[row].readme
    short = target.box - result[0]
    say(
        f"{methods[row].label}: box {result[0]:.1f}, mask {result[1]:.1f}; the paper's {target.box:.1f} / "
        f"{target.mask:.1f} is {short:+.1f} / {target.mask - result[1]:+.1f} away; noise is about {NOISE}"
    )
    if short <= NOISE and target.mask - result[1] <= NOISE:
        say("nothing to explain: not below the paper's by more than noise")
        return
    facts = read(config, log)
    if facts.other:
        raise KitError(
            "the table's numbers are those of Mask R-CNN R50-C4 on COCO: there is none to compare "
            f"{facts.other} with"
        )
    causes = sorted(find(facts, row, result), key=Cause.order)
    for number, cause in enumerate(causes, 1):
        cost = "no published size" if cause.box is None else span(cause.box)
        say(f"{number:2d}. {cause.name} [{cause.verdict}; {cost}] {cause.text}")
    seen = [cause for cause in causes if cause.verdict == SEEN]
    if seen:
        say(enough(seen, short))
    if config is None and log is None:
        say("nothing is known of the run: --config FILE and --log FILE turn possible into seen or excluded")


def read(config: Path | None, log: Path | None) -> Facts:
    """What a config and a log tell; the log's own copy of the config counts when none is given."""
    facts = Facts()
    text = ""
    if log:
        try:
            text = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(errors="replace"))
        except OSError as error:
            raise KitError(f"{log}: {error.strerror}") from None
    values: dict[str, Any] | None = None
    if config:
        from benchmarks.detection import model  # Detectron2 takes seconds to import

        values = yaml.safe_load(model.load_config(config).dump())
    elif blocks := re.findall(rf"Running with full config:\n(.*?)(?={LINE}|\Z)", text, re.S | re.M):
        try:
            values = yaml.safe_load(blocks[-1])  # of the latest session
        except yaml.YAMLError:
            raise _unreadable(log) from None
    if values:
        try:
            of_config(facts, values)
        except (LookupError, TypeError):
            raise _unreadable(log) from None
    found = len(text) > 0 and _of_log(facts, text)
    if log and not found and values is None:
        raise KitError(f"{log}: no iteration of Detectron2 in it; expected its log.txt or metrics.json")
    return facts


def _unreadable(log: Path | None) -> KitError:
    return KitError(f"{log}: its copy of the config cannot be read; add --config FILE")


def _of_log(facts: Facts, text: str) -> bool:
    """Whether there was anything in it."""
    steps = [(int(n), float(rate)) for n, rate in re.findall(r"iter: (\d+) .*? lr: ([\d.e+-]+)", text)]
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                step = json.loads(line)
                steps.append((int(step["iteration"]), float(step["lr"])))
            except (ValueError, KeyError, TypeError):
                continue
    if steps:
        last, facts.last_rate = steps[-1]  # a resumed run goes on in the same file
        facts.iterations = last + 1
        if facts.planned and abs(facts.planned - facts.iterations) < 20:  # a log's lines are 20 apart
            facts.iterations = facts.planned
    if world := re.search(r"World size: (\d+)|num_gpus=(\d+)", text):
        facts.gpus = int(world[1] or world[2])
    if pools := re.findall(r"BN over (\d+) images", text):
        facts.pool = int(pools[-1])
    facts.checked = bool(re.search(r"Loading (checkpoint )?from", text))
    blocks = re.findall(rf"not found in the checkpoint:\n(.*?)(?={LINE}|\Z)", text, re.S | re.M)
    blocks += re.findall(r"Skip loading parameter '([\w.]+)'", text)
    names = re.findall(r"(?:backbone|roi_heads\.res5\.\d)[\w.]*(?:\{[^}]*\})?", "\n".join(blocks))
    facts.unloaded = [name for name in names if not name.startswith("backbone.fpn")]
    if "Initializing model from scratch" in text and not facts.checked:
        facts.unloaded = ["every tensor"]
    if "iter: " in text:  # metrics.json does not tell
        facts.precise_ran = "recise-" in text
    return bool(steps or blocks or facts.gpus)
