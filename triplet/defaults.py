"""Defaults of a run from its method of the table: weights, detection config, recipe."""

import re
from pathlib import Path

from triplet import paths, records
from triplet.commands import typed
from triplet.errors import KitError
from triplet.paths import kit_config
from triplet.published.methods import load_methods

MSRA = "_msra"
"""Suffix of the name of a detection config for BGR images."""


def weights_of(run: str) -> Path:
    """Return the weights that a run converts by default.

    These are its own pretraining, or that of the run that ``seed<N>/`` repeats; without one, the file that
    ``triplet pull weights`` has fetched under the run's name.

    Raises:
        KitError: there is neither, or the file has changed since.
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
            f"run first: {typed('pretrain', '--run', run)}, "
            f"or: {typed('pull', 'weights', '--method', name)}"
        )
    return records.output(record, next(iter(record.outputs)))


def detection_config(run: str, config: Path | None = None, weights: Path | None = None) -> Path:
    """Return the config that the user named, or that of a run's method, in the colour order of its weights.

    Args:
        run: a run whose name ends with the name of a method, or of a method's weights.
        config: the file that the user named, if any.
        weights: the weights file; by default the run's converted one, or else the published one.

    Raises:
        KitError: the table has no such method.
    """
    if config is not None:
        return config
    name, methods = Path(run).name, load_methods()
    method = methods.get(name) or next((m for m in methods.values() if name in m.weights), None)
    if method is None:
        raise KitError(
            f"run {run!r} is not a method of the table ({', '.join(methods)}), so no config is "
            "its default; add --config FILE, one of configs/detection/"
        )
    if weights is not None:
        caffe2 = weights.suffix == ".pkl"
    elif converted := records.read(paths.stage_folder(run, "convert")):
        caffe2 = converted.results["format"] == "caffe2"
    else:
        caffe2 = method.weights.get(name) == "caffe2"
    return kit_config(f"detection/{method.detection}{MSRA if caffe2 else ''}.yaml")


def recipe(method: str, engine: str) -> Path:
    """Return the config for the pretraining of a method.

    Args:
        method: method of the table, the last part of a run's name.
        engine: folder below configs/: ``pretrain`` for the kit's own engine, or ``openselfsup``.

    Raises:
        KitError: there is no such method, or it is not pretrained here.
    """
    recipes = {name: each.pretrain for name, each in load_methods().items() if each.pretrain}
    if method not in recipes:
        raise KitError(
            f"no recipe for a method {method!r}; name one with --config, or take {', '.join(recipes)}"
        )
    return kit_config(f"{engine}/{recipes[method]}.yaml")
