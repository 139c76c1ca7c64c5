"""The methods of the COCO table: configs/methods.yaml."""

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
    """Pretrained file that the numbers belong to, where it is not one of the method's weights."""


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
    """Whether the method's weights are initial ones."""
    pretrain: str | None = None
    """Name of its recipe, for either engine; None for a method that is not pretrained here."""

    @property
    def source(self) -> Literal["README", "zoo"]:
        """Where the AP of the method's own weights is published: README, unless it is of another file."""
        return "zoo" if self.readme.file and self.zoo else "README"

    @property
    def of_its_weights(self) -> PublishedAP:
        """AP published of the method's own weights."""
        return self.zoo if self.source == "zoo" and self.zoo else self.readme


class Methods(RootModel[dict[str, Method]]):
    """Methods by the name of their runs."""


@functools.cache
def load_methods() -> dict[str, Method]:
    """Read the table's methods in order; KitError when the file does not fit the schema."""
    return parse_file(CONFIGS / "methods.yaml", Methods).root
