"""Seeded changes of bytes, of plain values, and of text."""

import copy
import json
from random import Random
from typing import Any

DIGITS = "@@5000 DIGITS@@"
"""Stands for a number that Python will not print, until the JSON or YAML is written."""
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    -0.0,
    0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    2**31,
    2**63 - 1,
    2**64,
    10**300,
    999_999_999_999,
    DIGITS,
    "",
    "x",
    "1",
    "d$\\frac{$",
    "../../etc/passwd",
    "/etc/passwd",
    "<script>alert(1)</script>",
    "=cmd|'/c calc'!A0",
    "\x00",
    "\ud800",
    "é" * 300,
    "a" * 100_000,
    "²",
    [],
    {},
    [[]],
    [None],
    [1, "a", None],
    {"": None},
]
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


def data(random: Random, content: bytes, *, most: int = 4) -> bytes:
    """Flip, cut, repeat, insert and overwrite bytes."""
    changed = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, most])):
        # Headers lie at both ends.
        near = random.choice([len(changed), 64, 512, 4096])
        place = random.randrange(min(len(changed), near) + 1)
        if random.random() < 0.3:
            place = len(changed) - place
        length = random.choice([1, 2, 4, 8, random.randint(1, 600)])
        match random.randrange(7):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << random.randrange(8)
            case 1:
                del changed[place:]
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length] * random.choice([1, 2, 50])
            case 4:
                changed[place : place + length] = random.randbytes(length)
            case 5:
                width = random.choice([1, 2, 4, 8])
                number = random.choice(EDGES) & ((1 << 8 * width) - 1)
                changed[place : place + width] = number.to_bytes(width, random.choice(["little", "big"]))
            case _:
                changed[place : place + length] = bytes(length)
    return bytes(changed)


def tree(random: Random, values: Any, *, most: int = 3) -> Any:
    """Put odd values, other values of the same tree, and deep ones into plain values; drop and repeat
    some."""
    changed = _copied(values)
    for _ in range(random.choice([1, 1, 1, 2, most])):
        places = list(_places(changed))
        if not places:
            return odd(random)
        holder, key = random.choice(places)
        match random.randrange(8):
            case 0:
                del holder[key]
            case 1:
                other, where = random.choice(places)
                holder[key] = _copied(other[where]) if _has(other, where) else None
            case 2 if isinstance(holder, list):
                holder.extend([_copied(holder[key])] * random.choice([1, 3, 1000]))
            case 2:
                holder[random.choice(["extra", "", "d$\\frac{$", "../x", "0"])] = odd(random)
            case 3 if isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
                holder[key] = random.choice(
                    [-holder[key], holder[key] * 1e9, str(holder[key]), holder[key] + 0.5]
                )
            case 4:
                holder[key] = [holder[key]]
            case _:
                holder[key] = odd(random)
    return changed


def _copied(values: Any) -> Any:
    """A copy that shares nothing; None for what ``odd`` has nested too deeply for one."""
    try:
        return copy.deepcopy(values)
    except RecursionError:
        return None


def odd(random: Random) -> Any:
    """One odd value; now and then a deep one."""
    if random.random() < 0.05:
        found: Any = []
        for _ in range(random.choice([50, 400, 900])):
            found = [found] if random.random() < 0.5 else {"a": found}
        return found
    return copy.deepcopy(random.choice(ODD))


def as_json(random: Random, values: Any) -> bytes:
    """JSON, in one of twelve cases with a byte order mark, and seldom with changed bytes or a million
    levels."""
    try:
        text = json.dumps(values).replace(f'"{DIGITS}"', "9" * 5000)
    except (ValueError, RecursionError):
        text = "[" * 2000
    content = text.encode("utf-8", "surrogatepass")
    chance = random.randrange(24)
    if chance < 2:
        return b"\xef\xbb\xbf" + content
    if chance < 6:
        return data(random, content)
    if chance == 6:
        return random.choice([b"[", b'{"a":']) * 1_000_000
    if chance == 7:
        return text.encode("utf-16")
    return content


def as_yaml(random: Random, values: Any) -> bytes:
    """YAML as JSON writes it, which it contains, or in blocks; seldom with laughs, tags and changed
    bytes."""
    import yaml

    chance = random.randrange(12)
    if chance == 0:
        return laughs(random).encode()
    if chance == 1:
        return random.choice([b"[", b"{a: ", b"- ", b"? "]) * random.choice([40, 3000, 200_000])
    try:
        text = yaml.safe_dump(values).replace(f"'{DIGITS}'", "9" * 5000)
    except (yaml.YAMLError, ValueError, RecursionError):
        text = "a: 1"
    if chance == 2:
        key = random.choice(["seed", "_BASE_", "<<", "loss"])
        text += f"\n{key}: {random.choice(TAGS)}\n"
    content = text.encode("utf-8", "surrogatepass")
    return data(random, content) if chance in (3, 4) else content


TAGS = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system",
    "!!binary aGk=",
    "!!set {a, b}",
    "2020-01-01",
    "0x" + "f" * 9000,
    "1:" * 20_000 + "1",
    "${oc.env:HOME}",
    "${${${a}}}",
    "???",
    "&a [*a]",
    "http://127.0.0.1:9/x.yaml",
    "/dev/zero",
    "'x'",
)


def laughs(random: Random) -> str:
    """A billion laughs: aliases of aliases; by merge keys, too."""
    width, levels = random.choice([(9, 9), (2, 30), (100, 5)])
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        names = ", ".join([f"*a{level - 1}"] * width)
        merged = random.random() < 0.5
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{names}]}}" if merged else f"[{names}]"))
    return "\n".join(lines)


def _places(values: Any) -> Any:
    """(holder, key) of everything in dicts and lists."""
    stack = [values]
    while stack:
        here = stack.pop()
        if isinstance(here, dict | list):
            for key in list(here) if isinstance(here, dict) else range(len(here)):
                yield here, key
                stack.append(here[key])


def _has(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
