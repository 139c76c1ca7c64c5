"""Figures as SVG in the page's text colour, as PNG, and as numbers that the page's script draws."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from triplet import files, paths
from triplet.published.curves import expected, published
from triplet.report.coco import schedule
from triplet.runs import Run

# Okabe and Ito's colours, which any colour vision can tell apart; the line styles differ as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
POINTS = 6_000
"""Most points of all lines of a figure together, which keeps its SVG below some 150 kB, and its numbers
below 80 kB."""
NAMED = 6
"""Most lines of a panel whose last value the alternative text gives."""
PRETRAIN = {
    "loss": "loss",
    "positive_cosine": "cosine of positives",
    "negative_cosine": "cosine of hard negatives",
    "feature_std": "feature spread",
    "feature_rank": "feature rank",
    "learning_rate": "learning rate",
    "images_per_second": "images/s",
    "knn": "k-NN accuracy (%)",
}
FINETUNE = {
    "total_loss": "loss",
    "loss_cls": "loss of classes",
    "loss_mask": "loss of masks",
    "lr": "learning rate",
    "images_per_second": "images/s",
    "data_time": "waiting for data (s)",
}
CLASSIFY = {"loss": "loss", "top1": "top-1 (%)", "learning_rate": "learning rate"}
TICKS = {11_250: "1/8x", 22_500: "1/4x", 45_000: "1/2x", 90_000: "1x", 180_000: "2x"}
"""Iterations of 16 images -> Detectron2's name for a schedule of that length."""
DRAWN = 1e30
"""Largest value that is drawn: beyond it, matplotlib overflows on an axis."""
SHOWN = 12
"""Number of categories at either end of the plot of differences."""


@dataclass(frozen=True)
class Series:
    """One line, or a set of points."""

    label: str
    x: np.ndarray
    y: np.ndarray
    run: str = ""
    """The run that it belongs to, if it is a single run's."""
    kind: str = "line"
    """line, points, both, faint (both, in gray), low or high (the edges of a band)."""


@dataclass(frozen=True)
class Panel:
    title: str
    series: list[Series]


@dataclass(frozen=True)
class Plot:
    """A figure: ``<svg>`` for paper and for browsers without scripts, a PNG, and its numbers."""

    name: str
    caption: str
    svg: str
    png: bytes
    words: str = ""
    """Description of the figure with its numbers."""
    live: dict[str, Any] | None = None
    """Panels of series that the page's script draws; None for a static figure."""


def curves(
    runs: Sequence[Run], stage: str, panels: Mapping[str, str], name: str, caption: str
) -> Plot | None:
    """Draw lines over iterations, a panel for each quantity and a line for each run; seeds share a colour.

    Args:
        runs: the runs to compare.
        stage: the stage whose ``metrics`` output (JSON lines with ``iteration``) is drawn.
        panels: key in those lines -> title; keys that no line has are left out.
        name: name of the figure.
        caption: description of the figure.

    Returns:
        The figure; None if no run has such metrics.
    """
    logs = [(run, lines) for run in runs if (lines := _read(run, stage))]
    there = {key for _, lines in logs for line in lines for key in line}
    shown = {key: title for key, title in panels.items() if key in there}
    if not shown:
        return None
    most = max(12, POINTS // (len(logs) * len(shown)))
    found = [Panel(title, list(_series(logs, key, most))) for key, title in shown.items()]
    return draw(found, name, caption, "iteration")


def _series(logs: list[tuple[Run, list[dict[str, float]]]], key: str, most: int) -> Iterator[Series]:
    for run, lines in logs:
        points = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            yield Series(run.label, *_thin(np.array(points, dtype=float), most), run.name)


def draw(panels: list[Panel], name: str, caption: str, across: str) -> Plot:
    """Draw panels of lines that share their legend.

    Args:
        panels: at least one.
        name: name of the figure.
        caption: description of the figure.
        across: label of the horizontal axes.
    """
    labels = list(dict.fromkeys(each.label for panel in panels for each in panel.series))
    columns = min(4, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _style(name):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3 * columns, 2.3 * rows + 0.4), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, panel in zip(axes.flat, panels, strict=False):
            for each in panel.series:
                number = labels.index(each.label)
                axis.plot(
                    each.x,
                    each.y,
                    lw=1.3,
                    label=each.label,
                    color=COLOURS[number % len(COLOURS)],
                    ls=STYLES[number // len(COLOURS) % len(STYLES)],
                )
            axis.set_title(panel.title, fontsize=10)
            axis.grid(alpha=0.25)
        for axis in axes[-1]:
            axis.set_xlabel(across)
        handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            fontsize=9,
            loc="outside lower left",
            ncols=min(5, len(handles)),
        )
        return _finish(figure, name, caption, _in_words(panels), _live(panels, across))


def _in_words(panels: Sequence[Panel]) -> str:
    """Say the last value of each line, averaged over lines that share a label."""
    said = []
    for panel in panels:
        last: dict[str, list[float]] = {}
        for each in panel.series:
            if each.y.size:
                last.setdefault(each.label, []).append(float(each.y[-1]))
        values = [f"{label} {np.mean(ends):.3g}" for label, ends in list(last.items())[:NAMED]]
        more = f" and {len(last) - NAMED} more" if len(last) > NAMED else ""
        said.append(f"{panel.title}: {', '.join(values)}{more}")
    return f"Last values. {'; '.join(said)}."


def _live(panels: Sequence[Panel], across: str, **more: Any) -> dict[str, Any]:
    """Return the drawn series as plain values; lines with the same x share one copy of it."""
    xs: list[list[float]] = []
    found = []
    for panel in panels:
        lines = []
        for each in panel.series:
            x = _short(each.x)
            if x not in xs:
                xs.append(x)
            line = {"label": each.label, "x": xs.index(x), "y": _short(each.y)}
            line |= {"run": each.run} if each.run else {}
            line |= {"kind": each.kind} if each.kind != "line" else {}
            lines.append(line)
        found.append({"title": panel.title, "series": lines})
    return {"across": across, "xs": xs, "panels": found, **more}


def _short(values: np.ndarray) -> list[float]:
    """Round each to four digits, more than a screen can show."""
    return [int(value) if float(value).is_integer() else float(f"{value:.4g}") for value in values]


def budget(runs: Sequence[Run], method: str = "triplet") -> Plot:
    """Plot box AP over the length of the finetuning: published points, the expected band, our runs."""
    table = [run for run in runs if run.of_the_table and run.value("bbox", "AP") is not None]
    # Where a schedule has a name or a run has its result, the band is to be read as well.
    lengths = [n for n in (*TICKS, *(run.iterations for run in table)) if 6_000 <= n <= 240_000]
    grid = np.union1d(np.geomspace(6_000, 240_000, 20), lengths)
    bands = [found.box for n in grid if (found := expected(method, "c4", n))]
    series = [
        Series(f"expected of {method}, low", grid, np.array([band.low for band in bands]), kind="low"),
        Series(f"expected of {method}, high", grid, np.array([band.high for band in bands]), kind="high"),
        Series(f"expected of {method}", grid, np.array([band.mid for band in bands])),
    ]
    for curve in published().curves:
        if curve.detector == "c4":
            x, y = (np.array([point[i] for point in curve.points], float) for i in (0, 1))
            series.append(Series(f"published: {curve.init} ({curve.source})", x, y, kind="faint"))
    own: dict[str, list[Run]] = {}
    for run in table:
        own.setdefault(run.method, []).append(run)
    for name, alike in own.items():
        points = sorted((run.iterations, run.value("bbox", "AP") or 0.0) for run in alike)
        x, y = (np.array([point[i] for point in points], float) for i in (0, 1))
        series.append(Series(f"ours: {name}", x, y, kind="points"))
    caption = (
        "Box AP on val2017 against the length of the finetuning. Band: what published curves let one "
        f"expect of {method}; circles: published points; filled marks: runs of this machine."
    )
    return _draw_budget(series, method, caption)


def _draw_budget(series: Sequence[Series], method: str, caption: str) -> Plot:
    low, high, middle = series[:3]
    with _style("budget"):
        figure, axis = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
        axis.fill_between(low.x, low.y, high.y, color=COLOURS[0], alpha=0.18, lw=0, label=middle.label)
        axis.plot(middle.x, middle.y, color=COLOURS[0], lw=1.5)
        label = "published, all methods on R50-C4"
        for each in series:
            if each.kind == "faint":
                axis.plot(each.x, each.y, "o", mfc="none", color="gray", ms=5, label=label)
                label = "_"
        for number, each in enumerate(each for each in series if each.kind == "points"):
            colour = COLOURS[(number + 1) % len(COLOURS)]
            axis.plot(each.x, each.y, "sD^vP*Xph<"[number % 10], color=colour, ms=7, label=each.label)
        axis.set_xscale("log")
        axis.set_xticks([*TICKS], [*TICKS.values()])
        axis.minorticks_off()
        axis.set_xlabel("schedule (1x is 90 000 iterations of 16 images)")
        axis.set_ylabel("box AP")
        axis.grid(alpha=0.25)
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
        at = {name: float(np.interp(n, middle.x, middle.y)) for n, name in TICKS.items()}
        words = f"Expected of {method}: {', '.join(f'{ap:.1f} at {name}' for name, ap in at.items())}. "
        # uPlot takes one value of a line at each length, and seeds share theirs.
        dots = [
            replace(each, x=np.array([x]), y=np.array([y]))
            for each in series
            if each.kind == "points"
            for x, y in zip(each.x, each.y, strict=True)
        ]
        said = [
            f"{each.label.removeprefix('ours: ')} {each.y[0]:.1f} at {schedule(int(each.x[0]))}"
            for each in dots
        ]
        words += f"Ours: {'; '.join(said)}." if said else "No run of this machine yet."
        ticks = {str(n): name for n, name in TICKS.items()}
        lines = [each for each in series if each.kind != "points"]
        live = _live([Panel("box AP", [*lines, *dots])], "schedule", log=True, ticks=ticks)
        return _finish(figure, "budget", caption, words, live)


def precision(lines_of: Mapping[str, Mapping[str, Sequence[float]]], name: str, caption: str) -> Plot:
    """Plot precision over recall.

    Args:
        lines_of: title of a panel -> label -> precision in percent at the recalls 0, 0.01, ... 1.
        name: name of the figure.
        caption: description of the figure.
    """
    recalls = np.linspace(0, 100, 101)
    panels = [
        Panel(title, [Series(label, recalls, np.array(values)) for label, values in lines.items()])
        for title, lines in lines_of.items()
    ]
    plot = draw(panels, name, caption, "recall (%)")
    said = [
        f"{panel.title}: " + ", ".join(f"{each.label} {each.y.mean():.1f}" for each in panel.series[:NAMED])
        for panel in panels
    ]
    return replace(plot, words=f"Mean precision in percent. {'; '.join(said)}.")


def categories(name: str, ours: Run, base: Run) -> Plot | None:
    """Plot a run's box AP minus another's by category, for the largest differences at both ends."""
    theirs = _categories(base)
    both = {
        category: value - other
        for category, value in _categories(ours).items()
        if value is not None and (other := theirs.get(category)) is not None
    }
    if not both:
        return None
    order = sorted(both, key=lambda category: both[category])
    if len(order) > 2 * SHOWN:
        order = order[:SHOWN] + order[-SHOWN:]
    with _style(name):
        figure, axis = plt.subplots(figsize=(7.5, 0.6 + 0.22 * len(order)), layout="constrained")
        values = [both[category] for category in order]
        axis.barh(order, values, color=[COLOURS[1] if value < 0 else COLOURS[0] for value in values])
        axis.axvline(0, color="gray", lw=0.8)
        axis.set_xlabel(f"box AP of {ours.name} less that of {base.name}")
        axis.tick_params(axis="y", labelsize=9)
        axis.margins(y=0.02)
        axis.grid(alpha=0.25, axis="x")
        caption = f"Box AP of each category, {ours.name} less {base.name}"
        if len(both) > len(order):
            caption += f": the {SHOWN} largest losses and gains of {len(both)}"
        words = ", ".join(f"{category} {both[category]:+.1f}" for category in reversed(order))
        bars = [(category, round(both[category], 2)) for category in reversed(order)]
        live = {"bars": bars, "most": max(abs(value) for value in values) or 1.0, "panels": []}
        return _finish(figure, name, f"{caption}.", f"{words}.", live)


def _categories(run: Run) -> dict[str, float | None]:
    return run.stages["eval"].results.get("categories", {}).get("bbox", {}) if "eval" in run.stages else {}


def _style(name: str) -> Any:
    return plt.rc_context(
        {
            "text.parse_math": False,  # a "$" in a user's name starts no formula
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _finish(
    figure: Figure, name: str, caption: str, words: str, live: dict[str, Any] | None = None
) -> Plot:
    buffer, image = io.StringIO(), io.BytesIO()
    if layout := figure.get_layout_engine():  # once for both formats
        layout.execute(figure)
        figure.set_layout_engine(None)
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for black in ("#000000", "#262626"):
        svg = svg.replace(black, "currentColor")
    # Text has no fill of its own and would stay black on a dark page.
    head = f'<svg fill="currentColor" role="img" aria-label="{escape(f"{caption} {words}")}" '
    return Plot(name, caption, svg.replace("<svg ", head, 1), image.getvalue(), words, live)


def _thin(points: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of (n, 2) points, thinned to at most ``most`` means of neighbours."""
    size = math.ceil(len(points) / most)
    parts = [points[first : first + size].mean(0) for first in range(0, len(points), size)]
    means = np.array(parts)
    return means[:, 0], means[:, 1]


def _read(run: Run, stage: str) -> list[dict[str, float]]:
    """Read the lines of a stage's metrics; to Detectron2's, add images/s from the time of an iteration."""
    record = run.stages.get(stage)
    if record is None or "metrics" not in record.outputs:
        return []
    path = paths.local(record.outputs["metrics"].path)
    if not path.exists():
        return []
    lines = [
        {name: value for name, value in values.items() if files.is_number(value) and abs(value) < DRAWN}
        for _, values in files.json_lines(path, "iteration")
    ]
    batch = record.results.get("images_per_batch")
    for values in lines:
        if isinstance(batch, int | float) and values.get("time"):
            values["images_per_second"] = batch / values["time"]
    return [values for values in lines if "iteration" in values]


def save(plots: Sequence[Plot], folder: Path) -> None:
    """Write each figure as ``<name>.svg`` and ``<name>.png``."""
    for plot in plots:
        files.write_text(folder / f"{plot.name}.svg", plot.svg.replace("currentColor", "#000000"))
        with files.atomic(folder / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.png)
