"""Tables of text for the page and the Markdown."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from triplet.published.causes import EXCLUDED, Cause
from triplet.published.curves import NOISE
from triplet.published.methods import Method
from triplet.records import Artifact, Record
from triplet.report import coco, deviations, provenance, targets
from triplet.report.costs import RunCost
from triplet.runs import METRICS, Run, Score, score
from triplet.scores import TASKS

NONE = "–"
UNPUBLISHED = "nothing published to compare it with"
EXTRA = ("epochs", "GPUs", "ours AP50", "zoo AP50", "ours AP75", "zoo AP75")
"""Columns of COCO's table that are hidden until the reader asks for them."""


@dataclass(frozen=True)
class Cell:
    text: str = NONE
    value: float | None = None
    """Key for sorting, if it is not the text."""
    kind: str = ""
    """command, code, prose, text (of a few words), word or ours."""
    link: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; the first cell of each row names the row."""

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: list[list[Cell]] = field(default_factory=list)
    extra: Sequence[str] = ()
    """Columns that the page hides until the reader asks for them."""

    def part(self, *, missing: bool) -> "Grid":
        """Return the rows that have results, or those that have a command to make them instead."""
        lacks = [any(cell.kind == "command" and cell.text != NONE for cell in row) for row in self.rows]
        rows = [row for row, lack in zip(self.rows, lacks, strict=True) if lack == missing]
        if not missing:
            return replace(self, rows=rows)
        return replace(self, name=f"{self.name}-missing", title=f"{self.title}, not run yet", rows=rows)

    def of(self, run: str) -> "Grid":
        """Return the rows whose first cell names a run."""
        rows = [row[1:] for row in self.rows if row[0].text == run]
        own = {"name": f"{self.name}-{slug(run)}", "title": f"{self.title}: {run}"}
        return replace(self, **own, rows=rows, columns=self.columns[1:])


def anchor(run: str) -> str:
    """Return the anchor of a run's records on the page."""
    return f"run-{slug(run)}"


def slug(text: str) -> str:
    """Return a text in a form fit for an anchor or a file name."""
    return re.sub(r"[^0-9A-Za-z]+", "-", text)


def why(cause: str) -> str:
    """Return the anchor of the causes of a result that falls short."""
    return f"why-{anchor(cause)}"


def number(value: float | None, form: str = ".1f", kind: str = "") -> Cell:
    return Cell(kind=kind) if value is None else Cell(formatted(value, form), value, kind)


def formatted(value: float, form: str = "+.1f") -> str:
    """Format a number, but never as -0.0."""
    text = format(value, form)
    return text if float(text) else text.replace("-", "+" if "+" in form else "")


def measured(value: Score | None, runs: Sequence[str] = (), form: str = ".1f") -> Cell:
    """Return the cell of our score, with a link to its records."""
    if value is None:
        return Cell(kind="ours")
    return Cell(value.text(form), value.mean, "ours", anchor(runs[0]) if runs else "")


COCO_COLUMNS = (
    "Method",
    "README AP",
    "zoo AP",
    "ours AP",
    "ours − published",
    "verdict, or what makes it",
    "expected AP",
    "recipe",
    "schedule",
    "epochs",
    "seeds",
    "GPUs",
    "ours AP50",
    "zoo AP50",
    "ours AP75",
    "zoo AP75",
)


def coco_table(lines: list[coco.CocoRow]) -> list[Grid]:
    """Return COCO's tables, boxes then masks; the verdict on a shortfall links to its causes."""
    found = []
    for task in TASKS.values():
        note = (
            "README: of the released code. Zoo: OpenSelfSup's, where the baselines' numbers come from (its "
            "Supervised, Random and MoCo v2 are DetCo's, digit for digit). "
            f"Published: README's, but of {coco.of_zoo(lines) or 'none'} the zoo's, because README's "
            f"belong to other weights. Two runs of the same thing differ by about {NOISE} AP; with several "
            "seeds ours is mean ± standard deviation. At the full schedule (2x) the verdict compares ours "
            "with the published AP, at a shorter one with what published curves let one expect of that "
            "length."
        )
        title = f"COCO val2017, Mask R-CNN R50-C4: {task} AP"
        grid = Grid(f"coco-{task}", title, note, COCO_COLUMNS, extra=EXTRA)
        for line in (line for line in lines if line.task == task):
            band, link = line.expected, why(line.cause) if line.cause else ""
            verdict = Cell(line.verdict or UNPUBLISHED, kind="text", link=link)
            grid.rows.append(
                [
                    Cell(line.label),
                    number(line.readme),
                    number(line.zoo[0]),
                    measured(line.ours[0], line.runs),
                    number(line.difference, "+.1f"),
                    Cell(line.command, kind="command") if line.command else verdict,
                    Cell(f"{band.low:.1f} to {band.high:.1f}", band.mid) if band else Cell(),
                    Cell(line.recipe or NONE, kind="word"),
                    Cell(line.schedule or NONE, kind="word"),
                    number(line.epochs),
                    number(line.seeds or None, "d"),
                    Cell(line.gpus or NONE, kind="text"),
                    measured(line.ours[1]),
                    number(line.zoo[1]),
                    measured(line.ours[2]),
                    number(line.zoo[2]),
                ]
            )
        found.append(grid)
    return found


def of_causes(name: str, causes: list[Cause]) -> Grid:
    """Return the table of what could have made a result fall short, in the words of ``triplet explain``."""
    first = causes[0]
    likeliest = "none of these" if first.verdict == EXCLUDED else f"the likeliest is {first.name}"
    return Grid(
        why(name),
        f"{name}: {likeliest}",
        "By published measurements (configs/causes.yaml), the likeliest first. Seen: known of the run. "
        "Possible: nothing is known. Excluded: known not to be so.",
        ("Cause", "verdict", "costs box AP", "why"),
        [
            [
                Cell(cause.name),
                Cell(cause.verdict, kind="word"),
                Cell(f"{cause.box[0]:.1f} to {cause.box[1]:.1f}", cause.box[1])
                if cause.box
                else Cell("not published"),
                Cell(cause.text, kind="prose"),
            ]
            for cause in causes
        ],
    )


def of_recipes(pairs: list[coco.Pair]) -> list[Grid]:
    """Return the tables of both recipes' results by method, and of the settings in which they differ."""
    results = Grid(
        "recipes",
        "The two recipes side by side: box AP",
        "Like for like are rows in one column at one schedule. README's Triplet stands in the left "
        "column and its baselines in the right one: that comparison mixes recipe and method, and only both "
        "recipes of one method tell them apart.",
        ("Method", "schedule", "authors' recipe", "baselines' recipe (moco)", "authors' − baselines'"),
        [
            [
                Cell(pair.label),
                Cell(pair.schedule, kind="word"),
                measured(pair.authors),
                measured(pair.moco),
                number(pair.difference, "+.1f"),
            ]
            for pair in pairs
        ],
    )
    settings = Grid(
        "recipe-settings",
        "Where the two recipes differ",
        "Every setting, of the released configs as Detectron2 resolves them.",
        ("Setting", "authors'", "baselines' (moco)"),
        [
            [Cell(key, kind="code"), Cell(ours, kind="text"), Cell(theirs, kind="text")]
            for key, ours, theirs in deviations.recipes()
        ],
    )
    return [results, settings]


def of_target(table: targets.TargetTable) -> Grid:
    columns = ["Method"]
    for metric in table.metrics:
        columns += [f"{metric} {source.replace('readme', 'README')}" for source in table.sources[metric]]
        columns.append(f"{metric} ours")
    columns += ["difference", "protocol", "what makes it"]
    shown = ("Method", "AP50 ", "AP ", "1 ", "8 ", "96 ", "difference", "protocol", "what makes it")
    extra = [name for name in columns if not name.startswith(shown)] if len(columns) > 11 else []
    grid = Grid(table.name, table.title, table.note, columns, extra=extra)
    for line in table.lines:
        cells = [Cell(line.label)]
        for metric in table.metrics:
            cells += [number(line.published.get((source, metric))) for source in table.sources[metric]]
            cells.append(measured(line.ours[metric], line.runs))
        difference = line.difference
        cells.append(
            Cell(f"{difference[1]:+.1f} to {difference[0].replace('readme', 'README')}", difference[1])
            if difference
            else Cell()
        )
        cells += [Cell(line.protocol or NONE, kind="text"), Cell(line.command or NONE, kind="command")]
        grid.rows.append(cells)
    return grid


def commands(tables: Sequence[Grid]) -> str:
    """Join all commands in these tables into one."""
    each = [cell.text for grid in tables for row in grid.rows for cell in row if cell.kind == "command"]
    return " && ".join(dict.fromkeys(text for text in each if text != NONE))


def of_experiment(name: str, runs: list[Run]) -> Grid:
    """Return the table of methods trained alike, random first, with their gains over random in the same
    seed."""
    columns = ["Method", "seeds", *(f"{label} {metric}" for label in TASKS.values() for metric in METRICS)]
    grid = Grid(
        f"experiment-{slug(name)}",
        f"Experiment {name}",
        "Methods trained alike, but for the weights they start from; mean ± standard deviation over seeds. "
        "They were not evaluated as the paper's table is (all of val2017, R50-C4): no published number "
        "lies beside them.",
        [*columns, "box AP over random"],
    )
    for method in sorted({run.method for run in runs}, key=lambda method: (method != "random", method)):
        of_method = [run for run in runs if run.method == method]
        names = [run.name for run in of_method]
        cells = [Cell(method), number(len(of_method), "d")]
        for task in TASKS:
            for metric in METRICS:
                cells.append(measured(score([run.value(task, metric) for run in of_method]), names))
        gain = gains(runs, method) if method != "random" else None
        cells.append(Cell(gain.text("+.1f"), gain.mean, "ours") if gain else Cell())
        grid.rows.append(cells)
    return grid


def gains(runs: list[Run], method: str, base: str = "random") -> Score | None:
    """Return a method's box AP minus the base's in the same seed, over the seeds that have both."""
    by_name = {run.name: run.value("bbox", "AP") for run in runs}
    found: list[float | None] = []
    for run in runs:
        ours, theirs = by_name[run.name], by_name.get(run.name.removesuffix(method) + base)
        if run.method == method and ours is not None and theirs is not None:
            found.append(ours - theirs)
    return score(found)


def of_costs(costs: list[RunCost], formula: str) -> list[Grid]:
    """Return the tables of costs: the sum for each stage, and a row for each stage of each run."""
    energies = ("energy (kWh, at most)", "measured (kWh, GPUs alone)")
    columns = ("stage", "runs", "hours", "GPU hours", *energies)
    sums = Grid("costs", "Time, GPU hours and energy of all runs", formula, columns)
    for stage in dict.fromkeys(cost.stage.partition("/")[0] for cost in costs):
        alike = [cost for cost in costs if cost.stage.partition("/")[0] == stage]
        hours, gpu_hours = sum(cost.hours for cost in alike), sum(cost.gpu_hours for cost in alike)
        numbers = [number(len(alike), "d"), number(hours, ".2f"), number(gpu_hours or None, ".2f")]
        for values in ([cost.energy for cost in alike], [cost.measured for cost in alike]):
            known = [value for value in values if value is not None]
            numbers.append(number(sum(known) if known else None, ".2f"))
        sums.rows.append([Cell(stage), *numbers])
    each = Grid(
        "costs-each",
        "Of each stage of each run",
        "",
        ("Run", "stage", "hours", "GPUs", "GPU hours", *energies),
        [
            [
                Cell(cost.run, link=anchor(cost.run)),
                Cell(cost.stage, kind="word"),
                number(cost.hours, ".2f"),
                Cell(coco.machine([cost.gpu] if cost.gpu else [], cost.gpus), kind="text"),
                number(cost.gpu_hours if cost.gpus else None, ".2f"),
                number(cost.energy, ".2f"),
                number(cost.measured, ".2f"),
            ]
            for cost in costs
        ],
    )
    return [sums, each]


def of_deviations(runs: list[Run], methods: Mapping[str, Method]) -> Grid:
    """Return the table of deviations: those of the released configs, then those of each run."""
    found = [
        *deviations.stated(),
        *(each for run in runs for each in deviations.run_deviations(run, methods)),
    ]
    return Grid(
        "deviations",
        "Every setting that differs",
        "Told from resolved configs, key by key: where the release departs from what README and file names "
        "say, and where a run departs from the released config that its method's numbers were reached with "
        "(the nearest one, where there is none). Size: what published measurements say of the cause.",
        ("Run", "stage", "compared with", "setting", "there", "here", "kind", "size"),
        [
            [
                Cell(each.run or "the release"),
                Cell(each.stage, kind="word"),
                Cell(each.against, kind="text"),
                Cell(each.key, kind="code"),
                Cell(each.theirs, kind="text"),
                Cell(each.ours, kind="text"),
                Cell(each.kind, kind="word"),
                Cell(each.size or NONE, kind="word"),
            ]
            for each in found
        ],
    )


def of_records(run: Run, known: Mapping[str, Record]) -> Grid:
    """Return the table of the records behind a run's numbers: those of its stages, and those that they
    depend on."""
    names = [f"checkpoints/{run.name}/{stage}/record.json" for stage in run.stages]
    back = [name for first in names for name in provenance.chain(first, known)]
    shown = {name: known[name] for name in dict.fromkeys([*names, *back]) if name in known}
    stale = run.stale and f"Not all of it is shown: {run.stale}."
    return _records(anchor(run.name), run.name, stale, shown)


def of_others(runs: Sequence[Run], known: Mapping[str, Record]) -> Grid:
    """Return the table of the records of data sets and weights, which belong to no run."""
    own = {f"checkpoints/{run.name}/{stage}/record.json" for run in runs for stage in run.stages}
    others = {name: record for name, record in known.items() if name not in own}
    return _records("records-others", "Data sets, weights, and what no run has", "", others)


def _records(name: str, title: str, note: str, shown: Mapping[str, Record]) -> Grid:
    fields = {
        "command": [Cell(each.command or NONE, kind="command") for each in shown.values()],
        "config (SHA-256)": [_text(_config(each)) for each in shown.values()],
        "inputs (SHA-256)": [_text(_artifacts(each.inputs)) for each in shown.values()],
        "outputs (SHA-256)": [_text(_artifacts(each.outputs)) for each in shown.values()],
        "seed": [_text(NONE if each.seed is None else str(each.seed)) for each in shown.values()],
        "commit": [_text(each.commit) for each in shown.values()],
        "image": [_text(each.image or NONE) for each in shown.values()],
        "machine": [_text(_machine(each)) for each in shown.values()],
        "versions": [
            _text(", ".join(f"{k} {v}" for k, v in each.versions.items())) for each in shown.values()
        ],
        "seconds": [_text(f"{each.seconds:.1f}") for each in shown.values()],
        "images/s": [_text(str(each.images_per_second or NONE)) for each in shown.values()],
        "log": [_text(provenance.log_of(name) or NONE) for name in shown],
    }
    return Grid(
        name,
        title,
        note,
        ("Record", *(name.removesuffix("/record.json").removeprefix("checkpoints/") for name in shown)),
        [[Cell(field), *cells] for field, cells in fields.items()],
    )


def _text(text: str) -> Cell:
    return Cell(text, kind="text")


def _config(record: Record) -> str:
    return hashlib.sha256(json.dumps(record.config, sort_keys=True).encode()).hexdigest()[:12]


def _artifacts(artifacts: Mapping[str, Artifact]) -> str:
    return "; ".join(f"{name}: {a.path} {a.sha256[:12]}" for name, a in artifacts.items()) or NONE


def _machine(record: Record) -> str:
    gpus, cores = record.hardware.get("gpus") or [], record.hardware.get("cores")
    return f"{coco.machine(gpus, record.world_size)}; {record.hardware.get('cpu')}, {cores} cores"
