"""Curves of a run as SVG that takes the page's own text colour."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from triplet import records
from triplet.report.collect import Run

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def curves(runs: list[Run], stage: str, panels: dict[str, str]) -> str | None:
    """Lines over iterations, a panel for each quantity and a line for each run.

    Args:
        runs: to compare.
        stage: whose ``metrics`` output (JSON lines with ``iteration``) is drawn.
        panels: key in those lines -> title.

    Returns:
        An ``<svg>`` element, or None when no run has such metrics.
    """
    series = {run.name: _read(run, stage) for run in runs}
    series = {name: lines for name, lines in series.items() if lines}
    if not series:
        return None
    style: Any = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels), 2.6), squeeze=False, layout="constrained"
        )
        for axis, (key, title) in zip(axes[0], panels.items(), strict=True):
            for number, (name, lines) in enumerate(series.items()):
                points = [(line["iteration"], line[key]) for line in lines if key in line]
                if points:
                    colour = COLOURS[number % len(COLOURS)]
                    axis.plot(*zip(*points, strict=True), label=name, color=colour, lw=1.4)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("iteration")
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(alpha=0.25)
        axes[0][0].legend(frameon=False, fontsize=8)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for black in ("#000000", "#262626"):
        svg = svg.replace(black, "currentColor")
    # Text has no fill of its own and would stay black on a dark page.
    return svg.replace("<svg ", '<svg fill="currentColor" role="img" ', 1)


def _read(run: Run, stage: str) -> list[dict[str, float]]:
    record = run.stages.get(stage)
    if record is None or "metrics" not in record.outputs:
        return []
    path = records.local(record.outputs["metrics"].path)
    return _lines(path) if path.exists() else []


def _lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]
