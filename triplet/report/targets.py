"""The tables besides COCO's: ImageNet (linear layer, nearest neighbours, few labels) and VOC."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from triplet.published.methods import Method
from triplet.published.tables import Value, load_published
from triplet.pull.sources import load_sources
from triplet.report.coco import missing
from triplet.runs import Run, Score, recipe, score

SHOTS = ("1", "2", "4", "8", "16", "32", "64", "96")
# name -> title, metrics, description, the command that makes it
BENCHMARKS: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    "linear": (
        "ImageNet, linear layer on the frozen backbone",
        ("top1",),
        "Top-1 accuracy in percent (zoo: the best epoch's). Only the published protocol is like for like.",
        "linear",
    ),
    "knn": (
        "ImageNet, nearest neighbours",
        ("k=20", "k=200"),
        "Top-1 accuracy in percent by weighted neighbours. Nothing is published of these methods.",
        "knn",
    ),
    "semi-1percent": (
        "ImageNet, 1 % of the labels",
        ("top1", "top5"),
        "Accuracy in percent. The zoo's is the best of nine settings on the test set.",
        "semi PERCENT=1 LIST=1percent.txt",
    ),
    "semi-10percent": (
        "ImageNet, 10 % of the labels",
        ("top1", "top5"),
        "Accuracy in percent. The zoo's is the best of nine settings on the test set.",
        "semi PERCENT=10 LIST=10percent.txt",
    ),
    "svm": (
        "VOC07, linear SVMs",
        ("mAP",),
        "Mean average precision in percent, of the best layer.",
        "svm",
    ),
    "low-shot": (
        "VOC07, linear SVMs from few images",
        SHOTS,
        "Mean average precision in percent by the number of images of a class.",
        "svm",
    ),
    "voc-detection": (
        "VOC07+12 detection, Faster R-CNN R50-C4, 24 000 iterations",
        ("AP50", "AP", "AP75"),
        "Average precision in percent on the test set of 2007; the published ones are means of five runs.",
        "",
    ),
}
VOC = "DETECTION=configs/detection/voc_r50_c4_24k_moco.yaml COCO=voc"


@dataclass(frozen=True)
class TargetRow:
    """A method's published numbers and ours with one protocol, by metric."""

    method: str
    label: str
    protocol: str
    published: dict[tuple[str, str], float]
    """Published numbers by (source, metric)."""
    ours: dict[str, Score | None]
    runs: tuple[str, ...] = ()
    command: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    """Pretrained file that a source's numbers belong to, if it is not one of the method's weights."""

    @property
    def difference(self) -> tuple[str, float] | None:
        """(source, ours minus the source's) for the first metric; the source is README if its number is of
        the method's weights."""
        metric = next(iter(self.ours))
        ours = self.ours[metric]
        for source in ("readme", "zoo"):
            if ours and (source, metric) in self.published and source not in self.files:
                return source, ours.mean - self.published[source, metric]
        return None


@dataclass(frozen=True)
class TargetTable:
    name: str
    title: str
    note: str
    metrics: tuple[str, ...]
    sources: dict[str, tuple[str, ...]]
    """Sources of each metric."""
    lines: list[TargetRow]


def tables(runs: list[Run], methods: Mapping[str, Method]) -> list[TargetTable]:
    """Return all tables, each with every method that has a published or measured number."""
    files = {name: source.files[0].name for name, source in load_sources().weights.items()}
    values = load_published()
    return [_table(name, runs, methods, values, files) for name in BENCHMARKS]


def _table(
    name: str,
    runs: list[Run],
    methods: Mapping[str, Method],
    values: list[Value],
    files: Mapping[str, str],
) -> TargetTable:
    title, metrics, note, stage = BENCHMARKS[name]
    published: dict[str, dict[tuple[str, str], float]] = {}
    others: dict[str, dict[str, str]] = {}
    for value in values:
        alike = value.benchmark == name or (name == "low-shot" and value.benchmark == "svm")
        if alike and value.metric in metrics:
            published.setdefault(value.method, {})[value.source, value.metric] = value.value
            if value.file:
                others.setdefault(value.method, {})[value.source] = value.file
    known = list(measured(name, runs))
    found = []
    labels = _labels(methods)
    for method, label in (labels | {m: m for run, *_ in known if (m := run.method) not in labels}).items():
        of_method = [each for each in known if each[0].method == method]
        if method not in methods and method not in published and not of_method:
            continue
        theirs, other = published.get(method, {}), others.get(method, {})
        for protocol in sorted({each[2] for each in of_method}):
            alike_runs = [each for each in of_method if each[2] == protocol]
            ours = {m: score([values.get(m) for *_, values in alike_runs]) for m in metrics}
            names = tuple(run.name for run, *_ in alike_runs)
            found.append(TargetRow(method, label, protocol, theirs, ours, names, files=other))
        if not of_method:
            nothing: dict[str, Score | None] = dict.fromkeys(metrics)
            command = _command(method, stage, methods, runs, files)
            found.append(TargetRow(method, label, "", theirs, nothing, command=command, files=other))
    sources = {
        m: tuple(s for s in ("readme", "zoo") if any((s, m) in line.published for line in found))
        for m in metrics
    }
    note += "".join(
        f" {source.replace('readme', 'README')}'s {label} is of {file}, not of the method's weights."
        for source, label, file in dict.fromkeys(
            (source, line.label, file) for line in found for source, file in line.files.items()
        )
    )
    return TargetTable(name, title, note, metrics, sources, found)


def _labels(methods: Mapping[str, Method]) -> dict[str, str]:
    """Return name -> label of the table's methods and of their other weights."""
    found = {}
    for name, method in methods.items():
        for weights in method.weights:
            extra = weights.removeprefix(name).strip("-")
            found[weights] = method.label + (f" ({extra})" if extra else "")
    return found


def measured(name: str, runs: list[Run]) -> Iterator[tuple[Run, str, str, dict[str, Any]]]:
    """Yield (run, stage, protocol, values by metric) for every measurement of a benchmark."""
    for run in runs:
        if name == "voc-detection" and run.of_voc:
            yield run, "eval", _prefixed(run, recipe(run)), run.stages["eval"].results["bbox"]
        for key, record in run.stages.items():
            if found := _of_stage(name, *key.partition("/")[::2], record.results):
                yield run, key, _prefixed(run, found[0]), found[1]


def _of_stage(
    name: str, stage: str, config: str, results: dict[str, Any]
) -> tuple[str, dict[str, Any]] | None:
    """Return the (protocol, values) of a stage's results for a benchmark."""
    best = results.get("best") or results.get("last") or {}
    if stage == name == "linear":
        fast = results.get("protocol") == "fast"
        return config + (", fast: not like for like" if fast else ""), best
    if stage == name == "knn":
        top1 = {k.replace("top1_", "k="): v for k, v in results.items() if k.startswith("top1_")}
        return config, top1
    if stage == "semi" and name == f"semi-{results.get('percent', 0):g}percent":
        drawn = ", images drawn: not like for like" if results.get("drawn") else ""
        return config + drawn, best
    if stage == "svm" and name in ("svm", "low-shot"):
        layer = results[results["best_layer"]]
        shots = {k: each["mean"] for k, each in layer["low_shot"].items()}
        return f"{config}, {results['best_layer']}", {"mAP": layer["mAP"], **shots}
    return None


def _prefixed(run: Run, protocol: str) -> str:
    return f"{run.experiment}: {protocol}" if run.experiment else protocol


def _command(
    method: str, stage: str, methods: Mapping[str, Method], runs: list[Run], files: Mapping[str, str]
) -> str:
    """Return the command that measures a method, with its own pretraining or the published weights."""
    if not stage:
        known = methods.get(method) or next(each for each in methods.values() if method in each.weights)
        steps = missing(f"voc/{method}", runs, known).replace("METHOD=voc/", "METHOD=")
        return f"{steps} RUN=voc/{method} {VOC}"
    if any(run.name == method and "pretrain" in run.stages for run in runs):
        return f"make {stage} METHOD={method}"
    of = next(name for name, each in methods.items() if method in each.weights)
    words = f"{stage} METHOD={method} WEIGHTS=checkpoints/weights/{method}/{files[method]}"
    return f"make pull PULL=weights METHOD={of} && make {words}"
