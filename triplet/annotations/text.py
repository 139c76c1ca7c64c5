"""Read JSON files in UTF-8 with or without a byte order mark, UTF-16 or UTF-32."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triplet import untrusted
from triplet.errors import KitError

COMPRESSED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")
"""First bytes of files by gzip, zip, bzip2 and xz."""


def read_json(path: Path) -> tuple[Any, bool]:
    """Read a JSON file; return its content, and whether it is plain UTF-8, as other readers expect.

    Raises:
        KitError: the file cannot be opened, has another encoding, or is not JSON.
    """
    try:
        raw = untrusted.read_bytes(path, untrusted.ANNOTATIONS, "file of annotations")
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror})") from None
    if raw.startswith(COMPRESSED):
        raise KitError(f"{path} is compressed, expected JSON; unpack it first, by gunzip, unzip or tar xf")
    encoding = json.detect_encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise KitError(
            f"{path} is not text in UTF-8 or UTF-16 (byte 0x{raw[error.start]:02x} at {error.start}); if "
            "it is in Latin-1, convert it with: iconv -f LATIN1 -t UTF-8"
        ) from None
    del raw  # free its memory, as the next values are as large
    where = f"{path} is not in COCO's annotation format"
    values = untrusted.parse_json(text, where, most=untrusted.ANNOTATIONS, finite=False)
    return values, encoding == "utf-8"


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause garbage collection, which would scan millions of new objects without finding garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.freeze()  # else the next collection would look through all of them
            gc.enable()
