"""Read logs and configs as users have them: in any encoding and length, coloured, or wrapped."""

import codecs
import gzip
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from triplet import untrusted
from triplet.errors import KitError

HEAD, TAIL = 4 << 20, 12 << 20
"""Bytes to read from the two ends of a longer file; a log of 180k iterations has 3 MB."""
MOST = 256 << 20
"""Most bytes to unpack of a compressed log."""
LINE = 20_000
"""Most characters to keep of a line."""
LINES = 100_000
"""Most lines to keep at each end of a longer log."""
PREFIXES = (
    r"\[\d+,(?P<rank>\d+)\]<\w+>:",  # mpirun --tag-output
    r"\[?(?:rank|default|worker)[ _-]?(?P<rank>\d+)\]?:",  # torchrun, accelerate
    r"(?P<rank>\d{1,5}):",  # srun --label
    r"\(\w[\w ]{0,40}pid=\d+(?:, ip=[\d.]+)?\)",  # Ray
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[\d.]*(?:Z|[+-]\d\d:?\d\d)",  # docker logs -t, kubectl
    r"[\w.-]{1,60} +\|",  # docker compose
    r"(?:stdout|stderr) [FP]",  # Kubernetes' own files
)
"""Prefixes that launchers write before every line."""
_LEVEL = r"(?:DEBUG|INFO|WARN(?:ING)?|ERROR|CRITICAL)"
LOGGER = re.compile(
    # Detectron2 on the screen, and in its log.txt
    rf"\[\d\d/\d\d \d\d:\d\d:\d\d[^\]]{{0,80}}\]:? ?(?:[\w.]{{1,60}} {_LEVEL}: )?|"
    # the kit, maskrcnn-benchmark, mmdetection and mmengine
    rf"(?:\d{{4}}[-/])?\d\d[-/]\d\d \d\d:\d\d:\d\d(?:[.,]\d+)?"
    rf"(?: (?:- )?[\w.]{{1,60}} (?:- )?{_LEVEL}(?:: | - ))?(?: - )? ?|"
    rf"[IWEF]\d{{4}} \d\d:\d\d:\d\d[^\]]{{0,80}}\] |"  # glog
    rf"{_LEVEL} [\w.]{{1,60}}: *\d+: |{_LEVEL}:[\w.]{{1,60}}:"  # Detectron, and logging's default
)
"""Beginning of a line with which a message begins."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]{0,20}[ -/]{0,4}[@-~]|\x1b[()][A-Z0-9]|[\x00\x07\x08]")


@dataclass(frozen=True)
class Line:
    """A line of a log without the prefixes of launchers and loggers."""

    text: str
    begins: bool
    """Whether a message of a logger begins with the line."""


def read_text(path: Path, limit: int = HEAD + TAIL) -> tuple[str, bool]:
    """Read the text of a file, or the two ends of a long one; also return whether all was read.

    UTF-8 and UTF-16 are recognised with or without a byte order mark; other bytes are replaced.

    Raises:
        KitError: the file cannot be read, or is not text.
    """
    try:
        with open(path, "rb", opener=untrusted.unblocked) as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            data, whole = _unpacked(file, limit) if packed else _ends(file, limit)
    except (OSError, ValueError) as error:  # a name with a null byte raises ValueError
        raise KitError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    encoding = _encoding(data)
    if encoding == "utf-8" and data[:4096].count(0) > len(data[:4096]) // 50:
        raise KitError(f"{path}: is not text; expected a log or a config")
    return data.decode(encoding, errors="replace").lstrip("\ufeff"), whole


def _ends(file: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """Read the beginning and the end of a file; also return whether that is all of it."""
    data = file.read(limit + 1)
    if len(data) <= limit:
        return data, True
    size = file.seek(0, 2)
    file.seek(max(limit // 4, size - (limit - limit // 4)))
    return data[: limit // 4] + b"\n" + file.read(limit - limit // 4), False


def _unpacked(file: BinaryIO, limit: int) -> tuple[bytes, bool]:
    """Read the beginning and the end of a gzip file, whose end may be missing; see ``_ends``."""
    head, tail, size = b"", b"", 0
    with gzip.GzipFile(fileobj=file) as stream:
        try:
            while size < MOST and (more := stream.read1(1 << 20)):
                size += len(more)
                part, more = more[: limit // 4 - len(head)], more[limit // 4 - len(head) :]
                head, tail = head + part, (tail + more)[-(limit - limit // 4) :]
        except (EOFError, zlib.error):
            return head + tail, False
    return (head + tail, True) if size <= limit else (head + b"\n" + tail, False)


def _encoding(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    start = data[:400]  # PowerShell's UTF-16 without a mark has a null byte beside each letter
    if len(start) > 20 and start[1::2].count(0) > 0.8 * len(start[1::2]):
        return "utf-16-le"
    if len(start) > 20 and start[::2].count(0) > 0.8 * len(start[::2]):
        return "utf-16-be"
    return "utf-8"


def lines(text: str) -> list[Line]:
    """Return the non-blank lines of a log, of a single rank if several wrote it."""
    plain = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    found = [line[:LINE] for line in plain.split("\n") if line and not line.isspace()]
    if len(found) > 2 * LINES:
        found = found[:LINES] + found[-LINES:]
    for _ in range(3):  # launchers may be nested
        shorter = _without_prefix(found)
        if shorter is found:
            break
        found = shorter
    return [_without_logger(line) for line in found]


def _without_prefix(found: list[str]) -> list[str]:
    """Return the lines of the lowest rank without a prefix that nearly all lines have; the same list if
    there is none."""
    sample = found[:2000]
    if not sample:
        return found
    for prefix in PREFIXES:
        pattern = re.compile(rf"\s{{0,8}}{prefix} ?")
        matches = [pattern.match(line) for line in sample]
        if sum(match is not None for match in matches) < 0.9 * len(sample):
            continue
        if "rank" not in pattern.groupindex:
            return [line[match.end() :] if (match := pattern.match(line)) else line for line in found]
        ranks = Counter(match["rank"] for match in matches if match)
        lowest = min(ranks, key=int)
        of_rank = [match for line in found if (match := pattern.match(line)) and match["rank"] == lowest]
        return [match.string[match.end() :] for match in of_rank]
    return found


def _without_logger(line: str) -> Line:
    match = LOGGER.match(line)
    return Line(line[match.end() :], begins=True) if match and match.end() else Line(line, begins=False)
