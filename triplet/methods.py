"""The rows of the COCO table: configs/methods.yaml."""

from pathlib import Path

from pydantic import RootModel

from triplet.config import Settings, parse_file

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


class Methods(RootModel[dict[str, Method]]):
    """By the name that a run of the row has."""


def load_methods(path: Path = PATH) -> dict[str, Method]:
    """The table's rows in order; KitError when the file does not fit the schema."""
    return parse_file(path, Methods).root
