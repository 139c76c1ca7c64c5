"""The report's first screen: what was reproduced, COCO's table as dots, and what to run next."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from triplet.published.causes import EXCLUDED, Cause
from triplet.published.curves import NOISE
from triplet.report.coco import CocoRow, of_zoo
from triplet.report.tables import NONE, UNPUBLISHED, anchor, gains, slug, why
from triplet.report.targets import TargetRow, TargetTable
from triplet.runs import Run, Unfinished, score
from triplet.scores import TASKS


@dataclass(frozen=True)
class Sentence:
    """The result of one run, or of all seeds of a run, in a sentence."""

    who: str
    text: str
    link: str
    """Anchor of its subject on the page."""
    kind: str = "plain"
    """good, short or plain."""
    cause: str = ""
    """The likeliest cause, if the result falls short."""
    cause_link: str = ""


@dataclass(frozen=True)
class NextStep:
    """Something to run next."""

    reason: str
    command: str


@dataclass(frozen=True)
class Mark:
    """One of our results on a scale; positions are in percent of the scale's length."""

    at: float
    low: float
    high: float
    """Ends of one standard deviation over seeds to either side; equal to ``at`` for one seed."""
    text: str
    full: bool = True
    """Whether it has the schedule of the published AP."""
    folder: bool = False
    """Whether it lies in a folder of its own, such as runs of another recipe."""
    beyond: bool = False
    """Whether it lies below the scale."""

    @property
    def shape(self) -> str:
        """Name of its sign: circle, diamond, square, or arrow for an AP below the scale's end."""
        if self.beyond:
            return "arrow"
        return "diamond" if not self.full else "square" if self.folder else "circle"


@dataclass(frozen=True)
class Track:
    """One task of one method on the scale."""

    published: float | None
    """Published AP of the method's own weights; None if there is none."""
    other: float | None
    """AP of the other source, README or zoo; None if it is equal or missing."""
    noise: tuple[float, float]
    """Range of noise around the published AP."""
    marks: tuple[Mark, ...]
    text: str
    """The numbers in words."""


@dataclass(frozen=True)
class Dots:
    """COCO's table as one figure: a line for each method, box and mask beside each other."""

    tasks: tuple[str, ...]
    ticks: dict[str, list[tuple[float, str]]]
    """Ticks of each task: position in percent, and label."""
    methods: list[tuple[str, list[Track]]]
    of_zoo: str = ""
    """Methods whose published AP comes from the zoo."""

    @property
    def shapes(self) -> set[str]:
        """Signs of all our results."""
        return {mark.shape for _, tracks in self.methods for each in tracks for mark in each.marks}


def sentences(
    runs: Sequence[Run],
    lines: Sequence[CocoRow],
    experiments: Mapping[str, list[Run]],
    causes: Mapping[str, list[Cause]],
    targets: Sequence[TargetTable] = (),
) -> list[Sentence]:
    """Return a sentence for each of our results in COCO's table, method of an experiment, result of another
    target, and stale run."""
    by_runs: dict[tuple[str, ...], list[CocoRow]] = {}
    for line in lines:
        if line.runs:
            by_runs.setdefault(line.runs, []).append(line)
    # The paper's method comes first; a method's own run comes before runs of experiments.
    first = sorted(
        by_runs.values(), key=lambda tasks: (tasks[0].method != "triplet", " (" in tasks[0].label)
    )
    found = [_of_lines(tasks, causes) for tasks in first]
    for name, alike in experiments.items():
        methods = sorted({run.method for run in alike}, key=lambda method: (method != "random", method))
        found += [_of_experiment(name, method, alike) for method in methods]
    # The same SVMs make both tables.
    found += [
        _of_target(table, line)
        for table in targets
        for line in table.lines
        if line.runs and table.name != "low-shot"
    ]
    for run in runs:
        if run.stale:
            found.append(Sentence(run.name, f"{run.stale}.", anchor(run.name), "short"))
    return found


def _of_lines(tasks: Sequence[CocoRow], causes: Mapping[str, list[Cause]]) -> Sentence:
    first = tasks[0]
    parts = []
    for line in tasks:
        if (ours := line.ours[0]) is None:
            continue
        said = line.verdict or UNPUBLISHED
        if line.published is None:
            parts.append(f"{line.task} AP {ours.text()}: {said}")
        elif line.schedule == "2x" or not line.expected:
            parts.append(f"{line.task} AP {ours.text()}, {line.source} {line.published:.1f}: {said}")
        else:
            band = line.expected
            parts.append(
                f"{line.task} AP {ours.text()}, {band.mid:.1f} ({band.low:.1f} to {band.high:.1f}) "
                f"expected of this schedule: {said}"
            )
    seeds = f", {first.seeds} seeds" if first.seeds > 1 else ""
    short = any("below" in line.verdict for line in tasks)
    good = all("within" in line.verdict or "as expected" in line.verdict for line in tasks)
    cause = next((line.cause for line in tasks if line.cause and "below" in line.verdict), "")
    likeliest = causes[cause][0] if cause else None
    named = likeliest.name if likeliest and likeliest.verdict != EXCLUDED else ""
    return Sentence(
        f"{first.label}, {first.schedule} schedule{seeds}",
        f"{'; '.join(parts)}.",
        anchor(first.runs[0]),
        "short" if short else "good" if good else "plain",
        named,
        why(cause) if cause else "",
    )


def _of_experiment(name: str, method: str, alike: list[Run]) -> Sentence:
    of_method = [run for run in alike if run.method == method]
    parts = []
    for task, label in TASKS.items():
        if value := score([run.value(task, "AP") for run in of_method]):
            parts.append(f"{label} AP {value.text()}")
    text = ", ".join(parts) or "no AP"
    gain = gains(alike, method) if method != "random" else None
    if gain:
        text += f"; {gain.text('+.1f')} box AP over random in the same seed"
    seeds = f", {len(of_method)} seeds" if len(of_method) > 1 else ""
    return Sentence(f"{name}: {method}{seeds}", f"{text}.", f"experiment-{slug(name)}")


def _of_target(table: TargetTable, line: TargetRow) -> Sentence:
    numbers = [f"{metric} {value.text()}" for metric, value in line.ours.items() if value]
    if difference := line.difference:
        source, apart = difference
        published = line.published[source, next(iter(line.ours))]
        numbers[0] += f", {source.replace('readme', 'README')} {published:.1f} ({apart:+.1f})"
    seeds = f", {len(line.runs)} seeds" if len(line.runs) > 1 else ""
    return Sentence(
        f"{line.label}, {table.title}{seeds}",
        f"{', '.join(numbers) or 'no number'}; protocol {line.protocol}.",
        anchor(line.runs[0]),
    )


def dots(lines: Sequence[CocoRow]) -> Dots:
    """Return the figure of COCO's table: published AP with its noise, and our AP."""
    tasks = tuple(TASKS.values())
    methods = list(dict.fromkeys(line.method for line in lines))
    labels = {line.method: line.label.partition(" (")[0] for line in reversed(lines)}  # of its first line
    scales = {task: _scale([line for line in lines if line.task == task]) for task in tasks}
    found = []
    for method in methods:
        of_method = [line for line in lines if line.method == method and (line.runs or line.command)]
        tracks = [
            _track([line for line in of_method if line.task == task], *scales[task])
            for task in tasks
            if any(line.task == task for line in of_method)
        ]
        if tracks:
            found.append((labels[method], tracks))
    ticks = {task: _ticks(*scales[task]) for task in tasks}
    return Dots(tasks, ticks, found, of_zoo(lines))


def _scale(lines: Sequence[CocoRow]) -> tuple[float, float]:
    """Return the range of AP on the scale: all published AP, and our results up to 12 AP below it."""
    both = [ap for line in lines for ap in (line.readme, line.zoo[0])]
    published = [ap for ap in both if ap is not None]
    own = [line.ours[0].mean for line in lines if line.ours[0] and line.runs]
    low = max(min([*published, *own]), min(published) - 12)
    return low - 0.8, max([*published, *own]) + 0.8


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    step = next(each for each in (1, 2, 5, 10) if (high - low) / each <= 7)
    first = math.ceil(low / step) * step
    values = range(first, math.floor(high) + 1, step)
    return [(_place(value, low, high), str(value)) for value in values]


def _place(value: float, low: float, high: float) -> float:
    return round(min(100.0, max(0.0, 100 * (value - low) / (high - low))), 2)


def _track(lines: Sequence[CocoRow], low: float, high: float) -> Track:
    first = lines[0]
    marks = []
    for line in lines:
        if ours := line.ours[0]:
            spread = ours.deviation or 0.0
            text = f"{line.label}, {line.schedule}: {ours.text()}"
            at, least, most = (_place(ours.mean + each, low, high) for each in (0, -spread, spread))
            own = " (" in line.label
            marks.append(Mark(at, least, most, text, line.schedule == "2x", own, ours.mean < low))
    reached = sorted((line for line in lines if line.ours[0]), key=lambda line: " (" in line.label)
    best = reached[0].ours[0].text() if reached and reached[0].ours[0] else ""
    other = first.readme if first.source == "zoo" else first.zoo[0]
    if (published := first.published) is None:
        return Track(None, None, (0.0, 0.0), tuple(marks), f"{best or NONE} / {NONE}")
    return Track(
        _place(published, low, high),
        None if other in (None, published) else _place(other, low, high),
        (_place(published - NOISE, low, high), _place(published + NOISE, low, high)),
        tuple(marks),
        f"{best or NONE} / {published:.1f}",
    )


def steps(
    runs: Sequence[Run], lines: Sequence[CocoRow], unfinished: Sequence[Unfinished]
) -> list[NextStep]:
    """Return at most four steps to run next, the most useful first."""
    found = [NextStep("Every stage in small, on this machine", "make demo")] if not runs else []
    found += [
        NextStep(f"{each.run}: its {each.stage} was begun and is not finished", each.command)
        for each in unfinished
    ]
    found += [NextStep(f"{run.name}: {run.stale.partition(';')[0]}", run.mend) for run in runs if run.stale]
    box = [line for line in lines if line.task == "box" and (line.runs or line.command)]
    triplet = [line for line in box if line.method == "triplet"]
    full = [line for line in triplet if line.runs and line.schedule == "2x"]
    missing = [(line.method, line.command) for line in box if line.command]
    if ("triplet", command := dict(missing).get("triplet", "")) in missing:
        found.append(NextStep("The method that the paper is about", command))
    elif full and all(line.seeds == 1 for line in full):
        found.append(
            NextStep(
                "How far two runs of the same thing differ, from five seeds", "make seeds METHOD=triplet"
            )
        )
    if rest := [each for each in missing if each[0] != "triplet"]:
        found.append(NextStep(f"The other {len(rest)} methods of the table", all_of(rest)))
    if not found:
        found.append(NextStep("Nothing is missing: verify all of it", "make report VERIFY=1"))
    return found[:4]


def all_of(commands: Sequence[tuple[str, str]]) -> str:
    """Return one command that runs all of these, as a loop if they differ only in the method.

    Args:
        commands: pairs of method and command.
    """
    alike: dict[str, list[str]] = {}
    for method, command in dict.fromkeys(commands):
        alike.setdefault(
            command.replace(f"METHOD={method}", "METHOD=$method").replace(f"/{method}", "/$method"), []
        ).append(method)
    return " && ".join(
        template.replace("$method", methods[0])
        if len(methods) == 1
        else f"for method in {' '.join(methods)}; do {template} || break; done"
        for template, methods in alike.items()
    )
