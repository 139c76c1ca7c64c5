"""Reproductions that fell short, as their threads tell them: inputs of explain, and the named cause."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.detection.explain.command import ExplainOptions, Explanation, explanation
from triplet.published.causes import EXCLUDED

FOLDER = Path(__file__).parent.parent / "detection" / "cases"
HEAD = "| Thread | got | due | named cause | explain's first two |\n|---|---|---|---|---|\n"


@dataclass(frozen=True)
class Case:
    """One thread."""

    name: str
    values: dict[str, Any]

    @property
    def causes(self) -> list[str]:
        """Names of causes of which any is what the thread calls the cause; empty where it calls none."""
        return self.values["cause"]

    def explain(self, folder: Path) -> Explanation:
        """What explain makes of the thread's numbers and files, which are written to a folder."""
        values = self.values
        paths: dict[str, Path] = {}
        for kind, suffix in (("config", values.get("suffix", ".yaml")), ("log", ".txt")):
            if kind in values:
                paths[kind] = folder / f"{values.get('name', kind)}{suffix}"
                paths[kind].write_text(values[kind])
        return explanation(
            ExplainOptions(
                result=tuple(values["result"]) if "result" in values else None,
                target=tuple(values["target"]) if "target" in values else None,
                method=values.get("method"),
                gpus=values.get("gpus"),
                **paths,
            )
        )


def load() -> list[Case]:
    """All cases, by name."""
    return [Case(path.stem, yaml.safe_load(path.read_text())) for path in sorted(FOLDER.glob("*.yaml"))]


def first_two(found: Explanation) -> list[str]:
    """The two likeliest causes."""
    return [cause.name for cause in found.causes if cause.verdict != EXCLUDED][:2]


def table(folder: Path) -> str:
    """The table of docs/explain.md."""
    methods = []
    for case in load():
        found = case.explain(folder)
        numbers = [_ap(found.result), _ap((found.reference.box, found.reference.mask))]
        if "result" not in case.values:
            numbers[0] = "none"
        named = " or ".join(case.causes) or "none known"
        cells = [case.values["thread"], *numbers, named, ", ".join(first_two(found))]
        methods.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(methods)


def _ap(values: tuple[float, float | None]) -> str:
    return " / ".join(f"{value:.1f}" for value in values if value is not None)
