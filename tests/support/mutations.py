"""Seeded damage to files: what discs, editors, other programs and other people do to them."""

import random
from collections.abc import Iterator

ODD = (
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"0",
    b"",
    b"9" * 400,
    b"0x" + b"f" * 5000,
    b"1" * 5000,
    b"null",
    b"true",
    b"[",
    b"]",
    b"{",
    b"}",
    b"(",
    b"[" * 3000,
    b"{" * 3000,
    b"(" * 3000,
    b"- " * 500,
    b"&a [*a, *a]",
    b"<<: *a",
    b"!!python/object/apply:os.system ['true']",
    b"!!python/tuple [1, 2]",
    b"!!binary x",
    b"? [a]",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\r",
    b"\r\n",
    b"\x1b[31m",
    "\u2028\u00b2\u0663".encode(),
    b"'",
    b'"',
    b"`",
    b"\\",
    b": ",
    b"\t",
    b"iter: " * 2000,
    b"lr: " * 2000,
    b"backbone{" * 2000,
    b"opts=['a'" + b", 'b'" * 2000,
    b"2001-13-45",
    b".inf",
    b"~",
)
"""What is put in the place of something else."""


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """So many damaged copies of a file.

    Args:
        data: the whole file.
        count: number of copies.
        seed: of the damage, the same for the same seed.
    """
    rng = random.Random(seed)
    for _ in range(count):
        damaged = data
        for _ in range(rng.choice((1, 1, 2, 5))):
            damaged = _damage(damaged, rng)
        yield damaged


def _damage(data: bytes, rng: random.Random) -> bytes:
    """One damage: cut, repeat, move or replace a piece, a word or a line."""
    if not data:
        return rng.choice(ODD)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 4, 40, 400)))
    kind = rng.randrange(7)
    if kind == 0:
        return data[:start] + data[end:]
    if kind == 1:
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 2:
        return data[:start] + rng.choice(ODD) + data[start:]
    if kind == 3:
        return data[:start] + data[start:end] * rng.choice((2, 50)) + data[end:]
    if kind == 4:
        return data[:start]
    lines = data.split(b"\n")
    number = rng.randrange(len(lines))
    if kind == 5:  # the value of a setting
        name, mark, _ = lines[number].partition(rng.choice((b":", b"=")))
        lines[number] = name + mark + b" " + rng.choice(ODD)
    else:
        lines.insert(rng.randrange(len(lines)), lines.pop(number) * rng.choice((1, 2)))
    return b"\n".join(lines)
