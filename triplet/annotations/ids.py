"""Ids of a table as integers, and references to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from triplet.annotations.findings import Findings, show

LARGEST = 2**53
"""Bound for ids, as COCO's evaluation keeps them as floats."""


def number_ids(values: Sequence[Any], table: str, problems: Findings) -> dict[Any, int]:
    """Give each id an integer: itself, or a number for a text.

    Texts of digits become those numbers, unless two would be equal; other texts are numbered in order.

    Args:
        values: ids of the table, in order.
        table: name of the table, for messages.
        problems: receives ids that have other types, are out of range, or repeat.

    Returns:
        Id as in the file -> its number, without wrong ids.
    """
    if _are_ids(values):
        return dict(zip(values, values, strict=True))
    known: list[int | str] = []
    places: dict[int | str, int] = {}
    for place, value in enumerate(values):
        if type(value) is float and value.is_integer():
            value = int(value)
        if type(value) not in (int, str) or (type(value) is int and not 0 <= value < LARGEST):
            text = f"{table}[{place}] has the id {show(value)}, expected a whole number from 0 on or a text"
            problems.add(f"{table} id", text)
        elif value in places:
            both = f"{table}[{places[value]}] and {table}[{place}]"
            problems.add(
                f"{table} twice", f"{both} have the same id {show(value)}, expected one of its own"
            )
        else:
            places[value] = place
            known.append(value)
    texts = [value for value in known if isinstance(value, str)]
    if not texts:
        return {value: int(value) for value in known}
    own = {value for value in known if type(value) is int}
    numbers = {text: int(text) for text in texts if text.isascii() and text.isdigit() and len(text) < 16}
    if len({*numbers.values()} - own) < len(texts):
        first = max(own, default=0) + 1
        numbers = {text: first + place for place, text in enumerate(texts)}
    return {value: numbers[value] if isinstance(value, str) else value for value in known}


def _are_ids(values: Sequence[Any]) -> bool:
    """Return whether the ids can stay as they are."""
    plain = {*map(type, values)} == {int} and len({*values}) == len(values)
    return plain and min(values) >= 0 and max(values) < LARGEST


def refer(values: Sequence[Any], numbers: Mapping[Any, int]) -> list[int | None]:
    """Return the number of each reference, as given by ``number_ids``; None for a dangling reference.

    A number may refer to a text of the same digits, and the other way round.
    """
    if {*map(type, values)} == {int} == {*map(type, numbers)}:
        return [*map(numbers.get, values)]
    return [_refer(value, numbers) for value in values]


def _refer(value: Any, numbers: Mapping[Any, int]) -> int | None:
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int:
        return numbers.get(value, numbers.get(str(value)))
    if type(value) is not str:
        return None
    digits = value.isascii() and value.isdigit() and len(value) < 16
    return numbers.get(value, numbers.get(int(value)) if digits else None)
