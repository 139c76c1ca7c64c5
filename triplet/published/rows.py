"""The rows of the COCO table: configs/methods.yaml."""

import functools
from typing import Annotated, Literal

from pydantic import Field, RootModel

from triplet.config import Settings, parse_file
from triplet.paths import CONFIGS


class PublishedAP(Settings):
    """Average precision over IoU 0.50:0.95, in percent."""

    box: float
    mask: float
    box50: float | None = None
    """AP at IoU 0.50."""
    box75: float | None = None
    mask50: float | None = None
    mask75: float | None = None
    file: str = ""
    """Pretrained file that the numbers belong to, where it is not one of the row's weights."""


class Method(Settings):
    label: str
    weights: Annotated[dict[str, Literal["caffe2", "extracted", "torchvision"]], Field(min_length=1)]
    """Names in configs/sources.yaml, with the format that ``triplet.weights`` recognises."""
    detection: str
    """Name of a file in configs/detection/."""
    readme: PublishedAP
    zoo: PublishedAP | None = None
    student: PublishedAP | None = None
    """AP of a later reproduction by others."""
    untrained: bool = False
    """Whether the row's weights are initial ones."""
    pretrain: str | None = None
    """Name of its recipe, for either engine; None for a row that is not pretrained here."""

    @property
    def of_its_weights(self) -> PublishedAP:
        """AP published of the row's own weights: README's numbers unless they belong to another file."""
        return self.zoo if self.readme.file and self.zoo else self.readme


class Methods(RootModel[dict[str, Method]]):
    """Rows by the name of their runs."""


@functools.cache
def load_methods() -> dict[str, Method]:
    """Read the table's rows in order; KitError when the file does not fit the schema."""
    return parse_file(CONFIGS / "methods.yaml", Methods).root
