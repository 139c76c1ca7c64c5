"""Provenance of every number: the records that led to it, each with its inputs."""

from collections.abc import Mapping
from typing import Any

from triplet import paths
from triplet.records import Record


def chain(name: str, known: Mapping[str, Record]) -> list[str]:
    """Return the record and all records that it depends on, as each made an input of an earlier one.

    Args:
        name: portable path of the record's file.
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
    """Return the portable path of the log beside a record; '' if there is none."""
    path = paths.local(name).with_name("log.txt")
    return paths.portable(path) if path.is_file() else ""


def document(numbers: list[dict[str, Any]], known: Mapping[str, Record]) -> dict[str, Any]:
    """Return the provenance as plain values: the numbers with their chains, and the records with their
    logs."""
    chains = {name: chain(name, known) for name in {number["record"] for number in numbers}}
    return {
        "numbers": [{**number, "chain": chains[number["record"]]} for number in numbers],
        "records": {
            name: {**record.model_dump(mode="json"), "log": log_of(name)} for name, record in known.items()
        },
    }
