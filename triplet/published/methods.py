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
    """Pretrained file that the numbers belong to, if it is not one of the method's weights."""


class Method(Settings):
    label: str
    weights: Annotated[dict[str, Literal["caffe2", "extracted", "torchvision"]], Field(min_length=1)]
    """Names in configs/sources.yaml, each with the format that ``triplet.weights`` recognises."""
    detection: str
    """Name of a file in configs/detection/."""
    readme: PublishedAP
    zoo: PublishedAP | None = None
    student: PublishedAP | None = None
    """AP of a later reproduction by others."""
    untrained: bool = False
    """Whether the method's weights are untrained."""
    pretrain: str | None = None
    """Name of its pretraining recipe, for either engine; None for a method that is not pretrained here."""

    @property
    def recipe(self) -> str:
        """The recipe with which the method's numbers were reached: authors or moco."""
        return self.detection.rpartition("_")[2]

    @property
    def source(self) -> Literal["README", "zoo"]:
        """The source of the AP of the method's own weights: README, unless README's is of another file."""
        return "README" if self.of_its_weights is self.readme else "zoo"

    @property
    def of_its_weights(self) -> PublishedAP:
        """The published AP of the method's own weights."""
        return self.zoo if self.readme.file and self.zoo else self.readme


class Methods(RootModel[dict[str, Method]]):
    """Methods by name, which their runs have as well."""


@functools.cache
def load_methods() -> dict[str, Method]:
    """Read the table's methods in order; KitError if the file does not fit the schema."""
    return parse_file(CONFIGS / "methods.yaml", Methods).root
