"""The rows of the COCO table: configs/methods.yaml."""

from pathlib import Path

from pydantic import RootModel

from triplet.config import Settings, parse_file
from triplet.errors import KitError

PATH = Path(__file__).parent.parent / "configs" / "methods.yaml"


class Published(Settings):
    """Average precision over IoU 0.50:0.95, in percent."""

    box: float
    mask: float


class Method(Settings):
    label: str
    readme: Published
    zoo: Published | None = None
    untrained: bool = False
    """Its weights are initial ones."""
    pretrain: str | None = None
    """Name of its recipe, for either engine; None for a row that is not pretrained here."""


class Methods(RootModel[dict[str, Method]]):
    """By the name that a run of the row has."""


def load_methods(path: Path = PATH) -> dict[str, Method]:
    """The table's rows in order; KitError when the file does not fit the schema."""
    return parse_file(path, Methods).root


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
    return PATH.parent / engine / f"{rows[row]}.yaml"
