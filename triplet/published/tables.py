"""Published results of the methods on targets other than COCO: configs/published.yaml."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from triplet.config import Settings, parse_file
from triplet.paths import CONFIGS

PATH = CONFIGS / "published.yaml"
Benchmark = Literal["linear", "linear-multi", "semi-1percent", "semi-10percent", "svm", "voc-detection"]


class PublishedTable(Settings):
    """One table of one source."""

    benchmark: Benchmark
    source: str
    """Key of its source in ``sources``."""
    metrics: Annotated[list[str], Field(min_length=1)]
    methods: dict[str, list[float | None]]
    """One number per metric, by method."""
    files: dict[str, str] = Field(default_factory=dict)
    """Pretrained file that a method's numbers belong to, if it is not one of the method's weights."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for method, values in self.methods.items():
            if len(values) != len(self.metrics):
                raise ValueError(f"{method} has {len(values)} numbers for {len(self.metrics)} metrics")
        if unknown := [method for method in self.files if method not in self.methods]:
            raise ValueError(f"files names {unknown[0]!r}, a method that the table does not have")
        return self


class PublishedTables(Settings):
    sources: dict[str, str]
    """Description of each source by its short name."""
    tables: list[PublishedTable]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for table in self.tables:
            if table.source not in self.sources:
                raise ValueError(f"{table.benchmark} names an unknown source {table.source!r}")
        return self


class Value(Settings):
    """A published number."""

    method: str
    benchmark: Benchmark
    metric: str
    value: float
    source: str
    file: str = ""
    """Pretrained file that the number belongs to, if it is not one of the method's weights."""


def load_published(path: Path = PATH) -> list[Value]:
    """Read all tables in the file's order; KitError if the file does not fit the schema."""
    return [
        Value(
            method=method,
            benchmark=table.benchmark,
            metric=metric,
            value=value,
            source=table.source,
            file=table.files.get(method, ""),
        )
        for table in parse_file(path, PublishedTables).tables
        for method, values in table.methods.items()
        for metric, value in zip(table.metrics, values, strict=True)
        if value is not None
    ]
