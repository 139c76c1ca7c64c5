"""Interpret a server's headers: a file's length, the part that is sent, and whether it is the file begun
earlier."""

import re
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

APART = 60
"""Seconds by which a response must be later than the file's date for the date alone to identify the
file."""
DIGITS = re.compile(r"[0-9]{1,18}")
SPAN = re.compile(r"(?i:bytes)\s+([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Refused(Exception):
    """The URL refuses the file."""


class Again(Exception):
    """The URL may give the file later."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class Mismatch(Exception):
    """All bytes have arrived, but they are not the expected file."""


@dataclass
class Answer:
    """The headers of the last response, and the state of its body."""

    url: str
    """URL of this response, after redirects."""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    begun: bool = False
    error: Exception | None = None
    """Error raised in a callback, which libcurl cannot pass on."""
    page: bytearray | None = None

    def header(self, line: bytes) -> int | None:
        """Take a header line; return -1, which ends the transfer, if it redirects from https to http."""
        text = line.decode("latin-1").strip()
        if text.upper().startswith("HTTP/"):  # every redirect has a status line too
            code = re.fullmatch(r"\S+\s+([0-9]{3})(\s.*)?", text)
            self.status, self.headers = int(code[1]) if code else 0, {}
            return None
        name, colon, value = text.partition(":")
        if colon:
            self.headers[name.strip().lower()] = value.strip()
        if name.lower() == "location" and 300 <= self.status < 400:
            leads, self.url = self.url, urljoin(self.url, value.strip())
            if leads_to_plain_text(leads, self.url):
                self.error = Refused("redirects from https to http")
                return -1
        return None

    def shows_page(self, chunk: bytes) -> bool:
        """Return whether headers or first bytes show that the response is a web page."""
        head = chunk[:64].lstrip().lower()
        html = "text/html" in self.headers.get("content-type", "")
        return html or head.startswith((b"<!doctype html", b"<html"))

    def require_file(self, *, checksum_known: bool) -> None:
        """Raise Refused if the body is a note about the file, or an encoding of it, instead of its bytes.

        Servers also call an archive encoded that is compressed itself; where a checksum is known, it
        decides.
        """
        if self.status not in (200, 206):
            raise Refused(f"answers {self.status}")
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity" and not checksum_known:
            raise Refused(f"sends it encoded ({encoding:.20}), and no checksum is known")

    def number(self, name: str) -> int | None:
        """Return a header's number of bytes; None if it is missing or not a number."""
        value = self.headers.get(name, "")
        return int(value) if DIGITS.fullmatch(value) else None

    @property
    def span(self) -> tuple[int, int, int | None] | None:
        """Parse Content-Range into first byte, last byte, and the length if it is given; None if they do
        not fit."""
        found = SPAN.fullmatch(self.headers.get("content-range", ""))
        if not found:
            return None
        first, last, whole = int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
        length = self.number("content-length")
        fits = first <= last and (whole is None or last < whole) and length in (None, last - first + 1)
        return (first, last, whole) if fits else None

    @property
    def validator(self) -> str | None:
        """Return the validator for If-Range: a strong ETag, else the date if the response is APART
        later."""
        tag, date = self.headers.get("etag"), self.headers.get("last-modified")
        if tag is not None:
            return tag if re.fullmatch(r'"[!#-~]{1,1000}"', tag) else None
        try:
            age = parsedate_to_datetime(self.headers["date"]) - parsedate_to_datetime(date or "")
            return date if age.total_seconds() >= APART else None
        except (LookupError, TypeError, ValueError, OverflowError):
            return None

    def repeats(self, validator: str | None) -> bool:
        """Return whether the response repeats a file's validator."""
        return validator is not None and validator == self._of_kind(validator)

    def contradicts(self, validator: str | None) -> bool:
        """Return whether the response has a validator other than the file's."""
        return validator is not None and self._of_kind(validator) not in (None, validator)

    def _of_kind(self, validator: str) -> str | None:
        return self.headers.get("etag" if validator.startswith('"') else "last-modified")


def leads_to_plain_text(url: str, target: str) -> bool:
    """Return whether a link or redirect leaves https for http."""
    return urlsplit(url).scheme.lower() == "https" != urlsplit(target).scheme.lower()


def sendable(validator: str | None) -> bool:
    """Return whether a validator is fit for a header; the stored one of a partial download may be
    damaged."""
    return validator is not None and validator.isascii() and validator.isprintable() and validator != ""
