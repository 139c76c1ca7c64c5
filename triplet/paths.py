"""Paths: the three places, the folders of runs and stages, the kit's own configs."""

import os
import re
from pathlib import Path, PurePath

from triplet.errors import KitError

PLACES = ("datasets", "checkpoints", "reports")
CONFIGS = Path(__file__).parent.parent / "configs"


def root(name: str) -> Path:
    """Return one of the three places: ``datasets``, ``checkpoints`` or ``reports``.

    Each is a folder of the working directory unless TRIPLET_DATASETS, TRIPLET_CHECKPOINTS or
    TRIPLET_REPORTS names another.
    """
    return Path(os.environ.get(f"TRIPLET_{name.upper()}") or name).absolute()


def kit_config(name: str) -> Path:
    """Return the path of one of the kit's own configs, such as ``demo.yaml``, as the user would type it, if
    that works."""
    path = CONFIGS / name
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def stage_folder(run: str, stage: str) -> Path:
    """Return the folder of a stage of a run, which is a path below the checkpoints such as
    ``demo/seed0/triplet``."""
    return _below("checkpoints", run, "--run", "triplet") / stage


def dataset_folder(name: str) -> Path:
    """Return the folder of a data set that the kit makes, a path below the data sets such as ``demo``."""
    return _below("datasets", name, "--name", "packed")


def _below(place: str, name: str, option: str, example: str) -> Path:
    """Return a folder below a place; KitError if the name leads out of the place or is the place itself."""
    return inside(root(place), name, option, example)


def inside(folder: Path, name: str, option: str, example: str) -> Path:
    """Return a folder below another one that an option names.

    Raises:
        KitError: the name leads out of the folder, or is the folder itself; the message has ``option`` and
            ``example``.
    """
    path = PurePath(name)
    if (
        not path.parts
        or path.is_absolute()
        or ".." in path.parts
        or not name.isprintable()  # no line break, no code of a terminal, no byte that is not UTF-8
    ):
        where = portable(folder)
        raise KitError(f"{option} names a folder below {where}/, for example {example!r}: found {name!r}")
    return folder / name


def portable(path: Path) -> str:
    """Write a path as ``<root>/<rest>`` if it lies in one of the places, else absolute; see
    ``printable``."""
    for name in PLACES:
        if path.absolute().is_relative_to(root(name)):
            return printable((Path(name) / path.absolute().relative_to(root(name))).as_posix())
    return printable(path.absolute().as_posix())


def printable(text: str) -> str:
    """Write ``%E9`` for each byte of a file name that is not UTF-8, which no JSON can hold."""
    return re.sub("[\ud800-\udfff]", lambda odd: f"%{ord(odd[0]) & 0xFF:02X}", text)


def local(path: str) -> Path:
    """Invert ``portable``; KitError for a portable path that leads out of its place."""
    name, _, rest = path.partition("/")
    if name not in PLACES:
        return Path(path)
    if PurePath(rest).is_absolute() or ".." in PurePath(rest).parts or "\0" in rest:
        raise KitError(f"a record names {path!r}, which lies outside of {name}/; remove that record")
    return root(name) / rest
