"""Figures as SVG that takes the page's own text colour, and as PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from triplet.runs import Run

# Okabe and Ito's colours, told apart with any colour vision, and lines that differ in more than colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", ":", "-.")
POINTS = 12_000
"""Of all lines of a figure together: what keeps its SVG below some 300 kB."""
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
DRAWN = 1e30
"""What is larger, or no number, is left out: matplotlib overflows on an axis."""
SHOWN = 12
"""Categories at either end of the plot of differences."""


@dataclass(frozen=True)
class Plot:
    """A figure: ``<svg>`` for the page, a PNG for elsewhere, and what it shows in words."""

    name: str
    caption: str
    svg: str
    png: bytes


def curves(
    runs: Sequence[Run], stage: str, panels: Mapping[str, str], name: str, caption: str
) -> Plot | None:
    """Lines over iterations, a panel for each quantity and a line for each run; seeds share a colour.

    Args:
        runs: to compare.
        stage: whose ``metrics`` output (JSON lines with ``iteration``) is drawn.
        panels: key in those lines -> title; those that no line has are left out.
        name: of the figure.
        caption: what it shows.

    Returns:
        None when no run has such metrics.
    """
    series = [(run, lines) for run in runs if (lines := _read(run, stage))]
    there = {key for _, lines in series for line in lines for key in line}
    shown = {key: title for key, title in panels.items() if key in there}
    if not shown:
        return None
    labels = list(dict.fromkeys(run.label for run, _ in series))
    most = max(24, POINTS // (len(series) * len(shown)))
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    with _style(name):
        figure, axes = plt.subplots(
            rows, columns, figsize=(3 * columns, 2.3 * rows + 0.4), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(shown) :]:
            axis.set_axis_off()
        for axis, (key, title) in zip(axes.flat, shown.items(), strict=False):
            for run, lines in series:
                number = labels.index(run.label)
                points = [(line["iteration"], line[key]) for line in lines if line.get(key) is not None]
                if points:
                    axis.plot(
                        *_thin(np.array(points, dtype=float), most),
                        lw=1.3,
                        label=run.label,
                        color=COLOURS[number % len(COLOURS)],
                        ls=STYLES[number // len(COLOURS) % len(STYLES)],
                    )
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.25)
        for axis in axes[-1]:
            axis.set_xlabel("iteration")
        handles = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            fontsize=9,
            loc="outside lower left",
            ncols=min(5, len(handles)),
        )
        return _finish(figure, name, caption)


def budget(runs: Sequence[Run], row: str = "triplet") -> Plot:
    """Box AP against the length of the finetuning: published points, the row's expected band, our runs."""
    grid = np.geomspace(6_000, 240_000, 40)
    bands = [found.box for n in grid if (found := expected(row, "c4", n))]
    with _style("budget"):
        figure, axis = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
        low, high = [band.low for band in bands], [band.high for band in bands]
        axis.fill_between(grid, low, high, color=COLOURS[0], alpha=0.18, lw=0, label=f"expected of {row}")
        axis.plot(grid, [band.mid for band in bands], color=COLOURS[0], lw=1.5)
        points = [point for curve in published().curves if curve.detector == "c4" for point in curve.points]
        axis.plot(
            [p[0] for p in points],
            [p[1] for p in points],
            "o",
            mfc="none",
            color="gray",
            ms=5,
            label="published, all rows of R50-C4",
        )
        for number, own in enumerate(dict.fromkeys(run.row for run in runs if run.of_the_table)):
            alike = [run for run in runs if run.of_the_table and run.row == own]
            axis.plot(
                [run.iterations for run in alike],
                [run.value("bbox", "AP") or math.nan for run in alike],
                "sD^vP*Xph<"[number % 10],
                color=COLOURS[(number + 1) % len(COLOURS)],
                ms=7,
                label=f"ours: {own}",
            )
        axis.set_xscale("log")
        ticks = (11_250, 22_500, 45_000, 90_000, 180_000)
        axis.set_xticks(ticks, ["1/8x", "1/4x", "1/2x", "1x", "2x"])
        axis.minorticks_off()
        axis.set_xlabel("schedule (1x is 90 000 iterations of 16 images)")
        axis.set_ylabel("box AP")
        axis.grid(alpha=0.25)
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")
        caption = (
            "Box AP on val2017 against the length of the finetuning. Band: what published curves let one "
            f"expect of {row}; circles: published points; filled marks: runs of this machine."
        )
        return _finish(figure, "budget", caption)


def categories(name: str, ours: Run, base: Run) -> Plot | None:
    """Box AP of each category: a run's less another's, the largest differences at both ends."""
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
        return _finish(figure, name, f"{caption}.")


def _categories(run: Run) -> dict[str, float | None]:
    return run.stages["eval"].results.get("categories", {}).get("bbox", {}) if "eval" in run.stages else {}


def _style(name: str) -> Any:
    return plt.rc_context(
        {
            "text.parse_math": False,  # names of others are no formulas
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.family": "sans-serif",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )


def _finish(figure: Figure, name: str, caption: str) -> Plot:
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
    head = f'<svg fill="currentColor" role="img" aria-labelledby="caption-{escape(name)}" '
    return Plot(name, caption, svg.replace("<svg ", head, 1), image.getvalue())


def _thin(points: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, 2) -> x and y of at most ``most`` points, each the mean of its neighbours."""
    size = math.ceil(len(points) / most)
    parts = [points[first : first + size].mean(0) for first in range(0, len(points), size)]
    means = np.array(parts)
    return means[:, 0], means[:, 1]


def _read(run: Run, stage: str) -> list[dict[str, float]]:
    """The lines of a stage's metrics; Detectron2's with images/s beside the time of an iteration."""
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
    """Write each as ``<name>.svg`` and ``<name>.png``."""
    for plot in plots:
        files.write_text(folder / f"{plot.name}.svg", plot.svg.replace("currentColor", "#000000"))
        with files.atomic(folder / f"{plot.name}.png") as temporary:
            temporary.write_bytes(plot.png)
