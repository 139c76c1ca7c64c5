"""The rows of the COCO table, configs/methods.yaml, and what a run takes from its row by default."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, RootModel

from triplet import paths, records
from triplet.config import Settings, parse_file
from triplet.errors import KitError
from triplet.paths import CONFIGS

MSRA = "_msra"
"""Ends the name of a detection config for BGR images."""


class Published(Settings):
    """Average precision over IoU 0.50:0.95, in percent."""

    box: float
    mask: float
    box50: float | None = None
    """At IoU 0.50."""
    box75: float | None = None
    mask50: float | None = None
    mask75: float | None = None


class Method(Settings):
    label: str
    weights: Annotated[dict[str, Literal["caffe2", "extracted", "torchvision"]], Field(min_length=1)]
    """Names in configs/sources.yaml, and the format that ``triplet.weights`` finds."""
    detection: str
    """Name of a file in configs/detection/."""
    readme: Published
    zoo: Published | None = None
    untrained: bool = False
    """Its weights are initial ones."""
    pretrain: str | None = None
    """Name of its recipe, for either engine; None for a row that is not pretrained here."""


class Methods(RootModel[dict[str, Method]]):
    """By the name that a run of the row has."""


def load_methods(path: Path = CONFIGS / "methods.yaml") -> dict[str, Method]:
    """The table's rows in order; KitError when the file does not fit the schema."""
    return parse_file(path, Methods).root


def weights_of(run: str) -> Path:
    """What a run converts by default.

    Its own pretraining, or that of the run that ``seed<N>/`` repeats; without one, what ``triplet pull
    weights`` has fetched under the run's name.

    Raises:
        KitError: neither is there, or it has changed since.
    """
    name = Path(run).name
    known = any(name in method.weights for method in load_methods().values())
    folder = paths.root("checkpoints") / "weights" / name
    repeated = "/".join(part for part in Path(run).parts if not re.fullmatch(r"seed\d+", part))
    if (
        not paths.stage_folder(run, "pretrain").exists()
        and paths.stage_folder(repeated, "pretrain").exists()
    ):
        run = repeated
    if not known or paths.stage_folder(run, "pretrain").exists():
        return records.output(records.require(run, "pretrain"), "checkpoint")
    if (record := records.read(folder)) is None:
        raise KitError(
            f"run {run!r} has no pretrain stage, and the published weights of {name} are not here; "
            f"run first: make pretrain RUN={run}, or: make pull-data PULL=weights METHOD={name}"
        )
    return records.output(record, next(iter(record.outputs)))


def detection_config(run: str, weights: Path | None = None) -> Path:
    """The detection config of a run's row, for the colour order of its weights.

    Args:
        run: whose name ends with a row's, or with the name of weights of a row.
        weights: the file in question; without one, what the run has converted, or else what was published.

    Raises:
        KitError: no row of the table.
    """
    name, methods = Path(run).name, load_methods()
    method = methods.get(name) or next((m for m in methods.values() if name in m.weights), None)
    if method is None:
        raise KitError(
            f"run {run!r} is no row of the table ({', '.join(methods)}), so no config is its default; "
            "add --config FILE, one of configs/detection/ (make: DETECTION=FILE)"
        )
    if weights is not None:
        caffe2 = weights.suffix == ".pkl"
    elif converted := records.read(paths.stage_folder(run, "convert")):
        caffe2 = converted.results["format"] == "caffe2"
    else:
        caffe2 = method.weights.get(name) == "caffe2"
    path = CONFIGS / "detection" / f"{method.detection}{MSRA if caffe2 else ''}.yaml"
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def recipe(row: str, engine: str) -> Path:
    """The config that a row is pretrained by.

    Args:
        row: of the table, the last part of a run's name.
        engine: ``pretrain`` for the kit's own, ``openselfsup``: folder below configs/.

    Raises:
        KitError: no such row, or none that is pretrained here.
    """
    rows = {name: method.pretrain for name, method in load_methods().items() if method.pretrain}
    if row not in rows:
        raise KitError(
            f"no recipe for a row {row!r}; name one with --config, or take one of {', '.join(rows)}"
        )
    return CONFIGS / engine / f"{rows[row]}.yaml"
