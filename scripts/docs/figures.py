"""Figures in README and docs: links to the JSON that they come from, with titles that say where in it.

``[19.4](benchmarks/results/speed-cpu.json "cases[1].ratios[0]")`` is right if that entry of the file,
rounded as the text is, gives 19.4. Nothing is replaced: pages read the same on the site, on GitHub and in
an editor, and a test compares every figure with its file.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

LINK = re.compile(r'\[([^\]]+)\]\(([^)\s]*benchmarks/results/([\w-]+\.json)) "([^"]+)"\)')
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?")
UNITS = {"GiB": 2.0**30, "minutes": 60.0, "GB": 1e9}
"""Divisor of the file's value (bytes, seconds) where the text names a unit."""


class Figure(NamedTuple):
    """A figure as a page shows it, and where it comes from."""

    text: str
    file: str
    path: str


def find_figures(markdown: str) -> Iterator[Figure]:
    """Yield every figure of a page."""
    for text, _, file, path in LINK.findall(markdown):
        yield Figure(text, file, path)


def look_up(data: Any, path: str) -> Any:
    """Follow a path: ``name``, ``[2]``, ``[key=value]``, which keeps the elements of a list that have it.

    Raises:
        KeyError, IndexError: the path leads nowhere.
    """
    for name, inside in re.findall(r"([\w-]+)|\[([^\]]+)\]", path):
        if inside and "=" in inside:
            key, _, value = inside.partition("=")
            data = [each for each in data if str(each[key]) == value]
        elif inside:
            data = data[int(inside)]
        else:
            data = [each[name] for each in data] if isinstance(data, list) else data[name]
    return data


def expected_numbers(value: Any, count: int) -> list[float]:
    """Return the numbers that a text of so many numbers shows of a value.

    One value is itself; a list is its mean, and its deviation where two numbers are shown; a measurement is
    its median, with its range where three numbers are shown, and its range alone for two.
    """
    if isinstance(value, dict) and "median" in value:
        keys = {1: ["median"], 2: ["low", "high"], 3: ["median", "low", "high"]}[count]
        return [value[key] for key in keys]
    if isinstance(value, dict):
        return [sum(value.values())]
    if isinstance(value, list) and count == 2 and len(value) > 1:
        return [fmean(value), stdev(value)]
    if isinstance(value, list):
        return [fmean(value)]
    return [float(value)]


def mistake(figure: Figure, results: Path) -> str | None:
    """Say what is wrong with a figure, or None where it is what its file says."""
    data = json.loads((results / figure.file).read_text())
    shown = [number.replace("−", "-") for number in NUMBER.findall(figure.text)]
    unit = next((UNITS[word] for word in figure.text.split() if word in UNITS), 1.0)
    try:
        values = expected_numbers(look_up(data, figure.path), len(shown))
    except (KeyError, IndexError, TypeError) as error:
        return f"{figure.file} has no {figure.path} ({error!r})"
    places = [len(text.partition(".")[2]) for text in shown]
    right = [f"{value / unit:.{digits}f}" for value, digits in zip(values, places, strict=False)]
    if len(values) != len(shown) or [float(text) for text in shown] != [float(text) for text in right]:
        return f"{figure.text!r} where {figure.file} has {', '.join(right) or values} at {figure.path}"
    return None
