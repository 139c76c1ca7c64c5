"""Seeded mutations of JSON values, of bytes, and of XML."""

import copy
import random
from typing import Any

NUMBERS = (0, -1, 1, 2, 7, 1.5, -0.0, 1e308, float("nan"), float("inf"), 2**53, 2**70, 10**400)
TEXTS = ("", "1", "x", "\ud800", "a\0b", "../../x", "/etc/passwd", "é" * 300)
LISTS = ([], [[]], [[[1, 2]]], [1, 2, 3], [1, 2, 3, 4], [["1", 2, 3, 4, 5, 6]], [[1, 2, 3, 4]], [[1] * 7])
MASKS = (
    {"size": [3, 3], "counts": "0"},
    {"size": [128, 128], "counts": [1]},
    {"size": "x"},
    {"counts": []},
)
ODD: tuple[Any, ...] = (None, True, False, *NUMBERS, *TEXTS, *LISTS, *MASKS, {})
"""Values that stand where another should."""


def _places(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) below a value; of long lists the first, the second and the last."""
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = sorted({0, 1, len(value) - 1} & set(range(len(value))))
    else:
        return []
    found = [(value, key) for key in keys]
    for key in keys:
        found += _places(value[key], depth + 1)
    return found


def mutate_json(content: Any, draw: random.Random) -> Any:
    """A copy in which one or two values are replaced, removed, repeated, exchanged or turned to text."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice((1, 1, 2))):
        places = _places(content)
        if not places:
            break
        container, key = draw.choice(places)
        how = draw.randrange(6)
        if how < 3:
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif how == 3:
            del container[key]
        elif how == 4:
            other, there = draw.choice(places)
            container[key] = copy.deepcopy(other[there])
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = str(container[key])[:500]
    return content


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut, with a byte changed, a stretch removed or repeated, or in another encoding."""
    place = draw.randrange(len(data))
    how = draw.randrange(6)
    if how == 0:
        return data[:place]
    if how == 1:
        return data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :]
    if how == 2:
        return data[:place] + data[place + draw.randrange(1, 40) :]
    if how == 3:
        return data[:place] + data[place : place + 30] * 2 + data[place + 30 :]
    if how == 4:
        return (
            data[:place]
            + draw.choice((b"\xe9", b'"', b"[", b"{", b"1e999", b"NaN", b"<", b"&x;"))
            + data[place:]
        )
    return draw.choice(
        (b"", b"\xef\xbb\xbf" + data, data.decode("latin-1").encode("utf-16"), b"[" * 100_000)
    )
