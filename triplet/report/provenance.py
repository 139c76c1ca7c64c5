"""For every number the way back: records that lead to it, each with what it read."""

from collections.abc import Mapping
from typing import Any

from triplet import paths
from triplet.records import Record


def chain(name: str, known: Mapping[str, Record]) -> list[str]:
    """The records that one goes back to, itself first: each made something that a former one read.

    Args:
        name: portable path of its file.
        known: records by that path.
    """
    makers = {
        (artifact.path, artifact.sha256): maker
        for maker, record in known.items()
        for artifact in record.outputs.values()
    }
    found, left = [], [name]
    while left:
        here = left.pop(0)
        if here in found or here not in known:
            continue
        found.append(here)
        read = known[here].inputs.values()
        left += [makers[key] for each in read if (key := (each.path, each.sha256)) in makers]
    return found


def log_of(name: str) -> str:
    """Portable path of the log beside a record; '' for none."""
    path = paths.local(name).with_name("log.txt")
    return paths.portable(path) if path.is_file() else ""


def document(numbers: list[dict[str, Any]], known: Mapping[str, Record]) -> dict[str, Any]:
    """All of it as plain values: the numbers, each with its chain, and the records with their logs."""
    chains = {name: chain(name, known) for name in {number["record"] for number in numbers}}
    return {
        "numbers": [{**number, "chain": chains[number["record"]]} for number in numbers],
        "records": {
            name: {**record.model_dump(mode="json"), "log": log_of(name)} for name, record in known.items()
        },
    }
