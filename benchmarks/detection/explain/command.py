"""The output of ``triplet explain``: the answer as a headline, aligned facts, the causes, the next
command."""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.detection.explain.experiment import Experiment, Invocation, cheapest
from benchmarks.detection.explain.reading import of_run, read
from triplet.commands import METHOD, WrittenPercent, spoken
from triplet.errors import KitError
from triplet.progress import harmless, say
from triplet.published.causes import EXCLUDED, SEEN, Cause, enough, ranked, span
from triplet.published.causes.cause import Result, amount
from triplet.published.causes.length import count, ratio
from triplet.published.curves import NOISE
from triplet.published.facts import Facts
from triplet.published.methods import load_methods
from triplet.published.reference import Reference

FRACTION = 0.7
"""Largest number that is read as a fraction of 1: no detector reaches 70 on COCO."""
CAUSE = ("", "cause", "verdict", "costs", "why")
"""Columns of the table of causes."""
STYLES = {SEEN: "bold", EXCLUDED: "dim"}
"""Style of a row on a terminal, by verdict."""


@dataclass(frozen=True)
class ExplainOptions:
    """The options of ``triplet explain``."""

    result: tuple[float, ...] | None = None
    """Box and mask AP on COCO val2017, in percent, or box AP alone; by default the log's or the run's."""
    method: str | None = None
    """Method of the table that the weights belong to."""
    target: tuple[float, ...] | None = None
    """Published AP to compare the result with, if it is not the method's in the table."""
    config: Path | None = None
    """The run's config: Detectron2's YAML or mmdetection's .py."""
    log: Path | None = None
    """The run's ``log.txt`` or ``metrics.json``."""
    weights: Path | None = None
    """The backbone that the run began with."""
    gpus: int | None = None
    """Number of GPUs of the training, if neither config nor log gives it."""
    run: str | None = None
    """A finished run of the kit's, whose records have all of this."""
    as_json: bool = False
    """Whether to print one JSON object for programs."""


@dataclass(frozen=True)
class Explanation:
    """The answer of ``triplet explain``."""

    reference: Reference
    result: Result
    facts: Facts
    causes: list[Cause]
    next: Experiment | None


def explain(options: ExplainOptions) -> None:
    """Print what could have made a result fall short.

    Raises:
        KitError: an unknown method, an impossible result, or files without information.
    """
    found = explanation(options)
    if options.as_json:
        say(json.dumps(_as_json(found), indent=2, allow_nan=False))
        return
    for line in lines(found, options):
        if isinstance(line, Table):
            width = max(60, shutil.get_terminal_size().columns)
            Console(markup=False, highlight=False, width=width).print(line)
        else:
            say(spoken("explain", line))


def explanation(options: ExplainOptions) -> Explanation:
    """Return the answer; KitError as in ``explain``."""
    methods = load_methods()
    if options.method is not None and options.method not in methods:
        raise KitError(f"no method {options.method!r} in the table; it has {', '.join(methods)}")
    names = [str(path.name) for path in (options.config, options.log) if path]
    reached: Result | None
    if options.run:
        facts, reached, method = of_run(options.run)
    else:
        judged = options.method or ("" if options.target else METHOD)
        facts, method = read(options.config, options.log, names, options.gpus, judged), ""
        reached = facts.reached
    method, convertible = options.method or (method if method in methods else ""), True
    if options.weights:
        from benchmarks.detection.explain.weights import of_weights  # torch takes seconds to import

        convertible = of_weights(facts, options.weights, method)
    result = _percent(options.result, "--result", facts) if options.result else reached
    if result is None and facts.diverged:
        facts.notes.append("no result was given, and the training diverged")
        result = 0.0, None
    if result is None:
        raise KitError("no result: add --result BOX MASK, in percent")
    if options.target:
        target = _percent(options.target, "--target", facts)
        reference = Reference.of_target(target, facts, method, " ".join(names))
    elif facts.other:
        raise KitError(
            "the table's numbers are for Mask R-CNN R50-C4 on COCO, and this run is of "
            f"{facts.other}; give the published AP to compare with as --target BOX MASK"
        )
    else:
        reference = Reference.of_method(method or METHOD)
    causes = ranked(facts, reference, result)
    return Explanation(
        reference,
        result,
        facts,
        causes,
        cheapest(causes, facts, reference, _invocation(options, convertible)),
    )


def _invocation(options: ExplainOptions, convertible: bool) -> Invocation:
    words: list[str] = []
    for name, values in (("--result", options.result), ("--target", options.target)):
        words += [name, *map(_shown, values)] if values else []
    for name, value in (("--method", options.method), ("--run", options.run), ("--gpus", options.gpus)):
        words += [name, str(value)] if value else []
    return Invocation(tuple(words), options.config, options.log, options.weights, convertible)


def _shown(value: float) -> str:
    """Format a number as the user wrote it."""
    return str(value) if isinstance(value, WrittenPercent) else f"{value:g}"


def _percent(values: tuple[float, ...], option: str, facts: Facts) -> Result:
    """Return box and mask AP in percent; fractions without a sign are converted, and this is noted.

    Raises:
        KitError: the numbers are not AP, or only one of them is a fraction.
    """
    shown = " ".join(map(_shown, values))
    if len(values) > 2 or not all(0 <= value <= 100 for value in values):
        raise KitError(f"{option} is box and mask AP in percent: found {shown}")
    small = [value <= FRACTION and not isinstance(value, WrittenPercent) for value in values]
    box, mask = values[0], values[1] if len(values) > 1 else None
    if all(small) and any(values):
        facts.notes.append(f"{option} {shown} was taken for fractions of 1")
        box, mask = 100 * box, None if mask is None else 100 * mask
    elif any(map(all, zip(values, small, strict=True))) and max(values) > 3 * min(values):
        raise KitError(
            f"{option} is box and mask AP in percent: found {shown}, of which one is a fraction of 1"
        )
    if mask is not None and mask > box + 1:
        facts.notes.append(f"{option} has a mask AP above the box AP: are the two swapped?")
    return box, mask


def lines(found: Explanation, options: ExplainOptions) -> Iterator[str | Table]:
    """Format the answer for people."""
    reference, result = found.reference, found.result
    short, masks = amount(reference, result)
    yield _headline(found)
    if short <= NOISE and (masks or 0.0) <= NOISE:
        yield "nothing to explain: the result is not below the published one by more than two runs differ"
        for note in found.facts.notes:
            yield f"note: {note}"
        return
    causes = [
        (
            cause.name,
            cause.verdict,
            "no published size" if cause.box is None else span(cause.box),
            cause.text,
        )
        for cause in found.causes
    ]
    if sys.stdout.isatty():
        yield _table(list(_facts(found)))
        yield _table([(f"{n}.", *cause) for n, cause in enumerate(causes, 1)], head=CAUSE)
    else:
        yield from (f"{name:<10}  {text}" for name, text in _facts(found))
        for number, (name, verdict, cost, text) in enumerate(causes, 1):
            yield f"{number:2d}. {name} [{verdict}; {cost}] {text}"
    seen = [cause for cause in found.causes if cause.verdict == SEEN]
    if seen:
        yield enough(seen, short)
    if not (options.config or options.log or options.run):
        yield "only the result is known: with --config FILE and --log FILE, fewer causes stay possible"
    if found.next:
        yield f"next: {found.next}"


def _headline(found: Explanation) -> str:
    reference, result = found.reference, found.result
    short, masks = amount(reference, result)
    mask = f", mask {result[1]:.1f}" if result[1] is not None else ""
    lacks, published = [short], f"{reference.box:.1f}"
    if masks is not None and reference.mask is not None:
        lacks, published = [short, masks], f"{published} / {reference.mask:.1f}"
    sides = ["below" if each >= 0 else "above" for each in lacks]
    away = " / ".join(f"{abs(each):.1f} {side}" for each, side in zip(lacks, sides, strict=True))
    if len({*sides}) == 1:
        away = away.replace(f" {sides[0]} /", " /")
    whose = "paper" if reference.of_table else "target"
    line = (
        f"{reference.label}: box {result[0]:.1f}{mask}; that is {away} the {whose}'s {published} "
        f"(two runs alike differ by about {NOISE})"
    )
    if short <= NOISE and (masks or 0.0) <= NOISE:
        return line
    likely = [cause for cause in found.causes if cause.verdict != EXCLUDED][:2]
    names = ", then ".join(f"{cause.name} ({cause.verdict})" for cause in likely)
    return f"{line}\nmost likely: {names or 'none of the known causes'}"


def _facts(found: Explanation) -> Iterator[tuple[str, str]]:
    """Yield the known facts of the run, aligned under the headline."""
    facts = found.facts
    trained = []
    if facts.length is not None:
        trained.append(
            f"{count(facts.length)} iterations of 16 images (published: "
            f"{count(found.reference.iterations)})"
        )
    for name, value in (
        ("batch", facts.batch),
        ("rate", facts.rate),
        ("GPUs", facts.gpus),
        ("BN", facts.norm),
    ):
        if value is not None:
            trained.append(f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}")
    if trained:
        yield "trained", ", ".join(trained)
    if text := ratio(found.reference, found.result):
        yield "box/mask", text
    for note in facts.notes:
        yield "note", note


def _table(rows: Sequence[tuple[str, ...]], head: tuple[str, ...] = ()) -> Table:
    """Return a table for a terminal, with texts wrapped in their columns and rows styled by verdict."""
    table = Table(box=None, pad_edge=False, show_header=bool(head))
    for number in range(len(rows[0]) if rows else 0):
        table.add_column(head[number] if head else "", overflow="fold")
    for row in rows:
        style = next((style for word, style in STYLES.items() if word in row[1:3]), "")
        table.add_row(*(harmless(spoken("explain", cell)) for cell in row), style=style)
    return table


def _as_json(found: Explanation) -> dict[str, Any]:
    """Return the answer as plain values for programs."""
    facts = {name: value for name, value in asdict(found.facts).items() if name != "notes"}
    return {
        "method": found.reference.method or None,
        "result": {"box": found.result[0], "mask": found.result[1]},
        "target": {
            "box": found.reference.box,
            "mask": found.reference.mask,
            "iterations": found.reference.iterations,
            "of_table": found.reference.of_table,
        },
        "short": dict(zip(("box", "mask"), amount(found.reference, found.result), strict=True)),
        "ratio": ratio(found.reference, found.result),
        "causes": [asdict(cause) for cause in found.causes],
        "facts": facts,
        "notes": found.facts.notes,
        "next": asdict(found.next) if found.next else None,
    }
