"""The report stage: turn records into a page, Markdown, CSV, JSON and plots."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import triplet
from triplet import environment, files, paths, records
from triplet.config import load
from triplet.errors import KitError
from triplet.progress import say
from triplet.published.methods import Method, load_methods
from triplet.records import Record
from triplet.report import (
    answer,
    coco,
    compare,
    costs,
    crate,
    plots,
    provenance,
    results,
    tables,
    targets,
    verify,
)
from triplet.report.compare import Comparison
from triplet.report.page import page, render
from triplet.report.plots import Plot
from triplet.runs import Run, Unfinished, collect, unfinished

BASES = ("supervised", "random")
"""Methods with which others are compared by category; the first one that was run is taken."""


def report(export: Path | None = None) -> None:
    """Write ``reports/`` from every record below the checkpoints, for any number of methods.

    Args:
        export: path at which to write everything as an RO-Crate (ZIP) as well.
    """
    folder = paths.root("reports")
    runs = collect(paths.root("checkpoints"))
    known = crate.all_records()

    def work(job: records.Job) -> None:
        texts, figures = documents(runs, known)
        for name, (file, text) in texts.items():
            files.write_text(folder / file, text)
            job.outputs[name] = folder / file
        plots.save(figures, folder / "plots")
        job.outputs["plots"] = folder / "plots"
        job.results["runs"] = len(runs)

    inputs = {name: paths.local(name) for name in known}
    records.perform("report", folder, config={}, inputs=inputs, work=work, force=True, clear=False)
    say(f"report: {paths.portable(folder / 'index.html')} ({len(runs)} runs)")
    if export:
        written = [
            folder / name
            for name in ("index.html", "report.md", "results.csv", "results.json", "provenance.json")
        ]
        count = crate.export(export, known, [*written, *sorted((folder / "plots").glob("*.*g"))])
        say(f"report: {export} ({count} files, SHA-256 {files.sha256(export)})")


def documents(
    runs: list[Run], known: Mapping[str, Record], *, drawn: bool = True
) -> tuple[dict[str, tuple[str, str]], list[Plot]]:
    """Return the texts of the report, each with the name of its file, and the figures.

    Args:
        runs: this machine's runs.
        known: their records, by portable path.
        drawn: whether to make the figures, which takes seconds.

    Raises:
        KitError: a record has other content than its stage writes; the message names the run.
    """
    try:
        return _documents(runs, known, drawn)
    except verify.ODD as error:
        for run in runs:
            own = {
                path: each for path, each in known.items() if path.startswith(f"checkpoints/{run.name}/")
            }
            try:
                _documents([run], own, drawn)
            except verify.ODD as found:
                raise KitError(
                    f"checkpoints/{run.name}: a record there does not hold what its stage writes "
                    f"({type(found).__name__}: {found}); run its stages again with --force, or move it away"
                ) from None
        raise error


def _documents(
    runs: list[Run], known: Mapping[str, Record], drawn: bool
) -> tuple[dict[str, tuple[str, str]], list[Plot]]:
    numbers = results.flat(runs)
    compared = compare.comparisons(groups(runs))
    figures = draw(runs, compared) if drawn else []
    content = contents(runs, load_methods(), known, compared, unfinished(paths.root("checkpoints")))
    texts = {
        "page": ("index.html", page(content, runs, figures, known, compared)),
        "markdown": ("report.md", render("report.md.j2", content)),
        "csv": ("results.csv", results.as_csv(numbers)),
        "json": ("results.json", json.dumps(numbers, indent=1)),
        "provenance": ("provenance.json", json.dumps(provenance.document(numbers, known), indent=1)),
    }
    return texts, figures


def check(archive: Path | None) -> int:
    """Verify this machine's records, or an archive's; return the exit code, 2 if something is wrong."""
    found = verify.archived(archive) if archive else verify.local()
    for finding in found:
        if finding.verdict != verify.OK:
            say(f"{finding.what} {finding.verdict}: {finding.why}")
    count = {verdict: sum(f.verdict == verdict for f in found) for verdict in (verify.OK, verify.WRONG)}
    rest = len(found) - sum(count.values())
    say(
        f"verify: {count[verify.OK]} of {len(found)} match, {count[verify.WRONG]} do not, "
        f"{rest} cannot be checked here"
    )
    return 2 if count[verify.WRONG] else 0


def contents(
    runs: list[Run],
    methods: Mapping[str, Method],
    known: Mapping[str, Record],
    compared: Sequence[Comparison] = (),
    begun: Sequence[Unfinished] = (),
) -> dict[str, Any]:
    """Collect the content of the page and the Markdown.

    Args:
        runs: this machine's runs.
        methods: the table's methods.
        known: the runs' records, by portable path.
        compared: see ``compare.comparisons``.
        begun: see ``runs.unfinished``.
    """
    power = load(costs.PATH, costs.Power)
    formula = (
        f"Energy: {costs.FORMULA}, by configs/power.yaml: utilisation {power.utilisation:g}, PUE "
        f"{power.pue:g}. An upper bound for the GPUs, without the rest of the machine; unknown GPUs and "
        "CPUs have none."
    )
    lines, found = coco.lines(runs, methods), coco.causes(runs, methods)
    spent, named = costs.costs(runs, power), experiments(runs)
    measured = targets.tables(runs, methods)
    return {
        "version": triplet.__version__,
        "commit": environment.commit(),
        "runs": runs,
        "sentences": answer.sentences(runs, lines, named, found, measured),
        "lines": lines,
        "dots": answer.dots(lines),
        "steps": answer.steps(runs, lines, begun),
        "coco": tables.coco_table(lines),
        "missing": answer.all_of([(line.method, line.command) for line in lines if line.command]),
        "short": [tables.of_causes(name, each) for name, each in found.items()],
        "recipes": tables.of_recipes(coco.pairs(runs, methods)),
        "targets": [tables.of_target(table) for table in measured],
        "experiments": [tables.of_experiment(name, alike) for name, alike in named.items()],
        "seeds": compare.of_seeds(
            [run for run in runs if run.of_the_table],
            next((each for each in compared if each.title == "table"), None),
        ),
        "analyses": [grid for each in compared for grid in compare.tables_of(each)],
        "spent": spent,
        "costs": tables.of_costs(spent, formula),
        "deviations": tables.of_deviations(runs, methods),
    }


def experiments(runs: list[Run]) -> dict[str, list[Run]]:
    """Group the evaluated runs that belong to no published table by what they may be compared with."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if "eval" in run.stages and not run.of_the_table and not run.of_voc:
            found.setdefault(run.experiment or "other data or detectors", []).append(run)
    return found


def groups(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the groups in which methods are compared: COCO's table, and each experiment."""
    table = [run for run in runs if run.of_the_table]
    return ({"table": table} if table else {}) | experiments(runs)


def draw(runs: list[Run], compared: Sequence[Comparison] = ()) -> list[Plot]:
    """Draw all figures."""
    found: list[Plot | None] = [plots.budget(runs)]
    found.append(
        plots.curves(
            runs,
            "pretrain",
            plots.PRETRAIN,
            "pretrain",
            "Pretraining. Feature spread is 1 for features spread evenly over the sphere and 0 after a "
            "collapse; the rank falls with it.",
        )
    )
    found.append(plots.curves(runs, "finetune", plots.FINETUNE, "finetune", "Finetuning the detector."))
    for stage in sorted(
        {stage for run in runs for stage in run.stages if stage.startswith(("linear", "semi"))}
    ):
        name = tables.slug(stage)
        found.append(plots.curves(runs, stage, plots.CLASSIFY, name, f"{stage.replace('/', ', config ')}."))
    for name, alike in groups(runs).items():
        first = sorted(alike, key=lambda run: (run.name != run.method, run.name), reverse=True)
        methods = {run.method: run for run in first}
        base = next((methods[method] for method in BASES if method in methods), None)
        ours = methods.get("triplet")
        if base and ours:
            found.append(plots.categories(f"categories-{tables.slug(name)}", ours, base))
    found += [compare.precision(each) for each in compared]
    return [plot for plot in found if plot]
