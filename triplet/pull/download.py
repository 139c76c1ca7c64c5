"""Download one file over HTTP, completely and verified, despite network failures.

The transport is libcurl (pycurl): it is as fast as curl, its wheels need nothing of the system, and it
handles redirects, proxies, cookies in memory, tokens that stay with their host, and stalls. requests, httpx
and pooch restart a file when a connection breaks. This module adds what curl's --continue-at leaves out:
the remote file is still the one that was begun (RFC 9110, 8.8 and 13.1.5), it has the published length and
checksum, https never redirects to http, and the file is not a web page.
"""

import os
import random
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import certifi
import pycurl
from pydantic import BaseModel, ValidationError

from triplet import files, untrusted
from triplet.errors import KitError
from triplet.progress import Bar, amount, say
from triplet.pull import checksums, hub
from triplet.pull.answer import Again, Answer, Mismatch, Refused, leads_to_plain_text, sendable
from triplet.pull.webpage import WebPage
from triplet.signals import Stop

STALL = 30
"""Seconds after which a connection slower than SLOWEST bytes a second is dropped."""
SLOWEST = 1000
TRIES = 5
"""Number of tries in a row with less than LEAST bytes of progress, after which the next URL is tried."""
LEAST = 10_000
"""Least bytes that count as progress: SLOWEST times the longest pause between tries."""
PAUSE = 1.0
"""Seconds before the second try; the pause doubles each time."""
LONGEST_PAUSE = 120
"""Longest wait in seconds that a server may ask for before the next URL is tried."""
BUFFER = 512 * 1024
"""Size of the receive buffer in bytes, libcurl's largest: fewer calls into Python."""
LARGEST_PAGE = 1 << 20
RESERVE = 1 << 30
"""Bytes of free disk that a file of unknown length must leave."""
STRIDE = 64 << 20
"""Bytes between checks of the free disk."""
BEARER = 1 << 6
"""CURLAUTH_BEARER of curl/curl.h, which pycurl does not define."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class DownloadSpec:
    """A file to download, with its known properties."""

    name: str
    """Name of the file in messages."""
    urls: Sequence[str]
    checksum: str | None = None
    """Checksum, as ``md5:...`` or ``sha256:...``."""
    bytes: int | None = None
    token: str | None = None
    """Token for the first URL's host alone; ``hf://`` uses the hub's own token."""


class _Begun(BaseModel):
    """Sidecar of a partial download; identifies the remote file."""

    url: str
    validator: str | None
    bytes: int | None


def download(wanted: DownloadSpec, path: Path, stop: Stop) -> str:
    """Fetch a file to ``path`` unless it exists, resuming a partial download.

    Args:
        wanted: the file; its URLs are tried in order.
        path: where the complete, verified file goes; until then, ``path.part`` holds the received bytes.
        stop: polled all the time.

    Returns:
        The URL that gave the file.

    Raises:
        KitError: no URL gave the file; the message has each one's reason.
        Interrupted: a signal stopped the download; the part is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for number, url in enumerate(wanted.urls):
        say(f"pull: {wanted.name} from {plain(url)}")
        try:
            at = hub.resolve(url, wanted.token if number == 0 else None, wanted.checksum)
            known = (wanted.checksum or at.checksum, wanted.bytes or at.bytes)
            spec = DownloadSpec(wanted.name, wanted.urls, *known, at.token)
            with closing(_Transfer(spec, at.url, path, stop)) as transfer:
                transfer.run()
        except Refused as refused:
            reasons.append(f"{plain(url)} {refused}")
        else:
            return url
    raise KitError(f"{wanted.name} could not be fetched: {'; '.join(reasons)}")


def plain(url: str) -> str:
    """Return a URL for messages, without any part that may be a secret."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def speed(url: str, token: str | None, seconds: int) -> float:
    """Measure a URL's bytes per second for some seconds; nothing is kept.

    Raises:
        KitError: the URL gives nothing.
    """
    try:
        at = hub.resolve(url, token, None)
    except Refused as refused:
        raise KitError(f"{plain(url)} {refused}") from None
    curl = _curl(at.url, at.token)
    curl.setopt(pycurl.TIMEOUT, seconds)
    curl.setopt(pycurl.WRITEFUNCTION, lambda chunk: None)
    try:
        curl.perform()
    except pycurl.error as error:
        if error.args[0] != pycurl.E_OPERATION_TIMEDOUT or not curl.getinfo(pycurl.SPEED_DOWNLOAD):
            raise KitError(f"{plain(url)} gives nothing: {error.args[1]}") from None
    if "text/html" in (curl.getinfo(pycurl.CONTENT_TYPE) or ""):
        raise KitError(f"{plain(url)} gives a web page")
    return float(curl.getinfo(pycurl.SPEED_DOWNLOAD))


def _curl(url: str, token: str | None) -> pycurl.Curl:
    curl = pycurl.Curl()
    options = {
        pycurl.URL: url,
        pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.REDIR_PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
        pycurl.FOLLOWLOCATION: True,
        pycurl.MAXREDIRS: 10,
        pycurl.FAILONERROR: True,
        pycurl.NOSIGNAL: True,  # for threads
        pycurl.COOKIEFILE: "",  # cookies in memory, never on the disk
        pycurl.CONNECTTIMEOUT: STALL,
        pycurl.LOW_SPEED_LIMIT: SLOWEST,
        pycurl.LOW_SPEED_TIME: STALL,
        pycurl.BUFFERSIZE: BUFFER,
        pycurl.USERAGENT: "triplet-kit",
        pycurl.CAINFO: os.environ.get("SSL_CERT_FILE") or certifi.where(),
    }
    for option, value in options.items():
        curl.setopt(option, value)
    if token:  # libcurl sends it to the URL's own host only, despite redirects
        curl.setopt(pycurl.HTTPAUTH, BEARER)
        curl.setopt(pycurl.XOAUTH2_BEARER, token)
    return curl


class _Transfer:
    """All tries with one URL."""

    def __init__(self, wanted: DownloadSpec, url: str, path: Path, stop: Stop) -> None:
        self.wanted, self.url, self.path, self.stop = wanted, url, path, stop
        self.part = path.with_name(f"{path.name}.part")
        self.notes = path.with_name(f"{path.name}.part.json")
        self.curl = _curl(url, wanted.token)
        self.limit: int | None = None
        """Length of the file in bytes, if known."""
        self.came = 0
        """Number of bytes received so far."""

    def close(self) -> None:
        self.curl.close()

    def run(self) -> None:
        """Try until the file is complete and verified; Refused if this URL does not give it."""
        if self.path.exists():
            return
        failures, furthest, suspect = 0, self.position, self.position > 0
        with Bar(f"pull: {self.wanted.name}", self.wanted.bytes or 0, self.position, of_bytes=True) as bar:
            self.bar = bar
            while True:
                try:
                    self._get()
                    self._verify()
                    return
                except Mismatch as mismatch:
                    self._restart()
                    if not suspect:
                        raise Refused(str(mismatch)) from None
                    suspect, reason, pause = False, str(mismatch), 0.0  # retry, all from this URL
                except Again as again:
                    reason, pause = str(again), again.pause
                if self.position >= furthest + LEAST:
                    failures, furthest = 0, self.position
                suspect |= self.position > 0
                failures += 1
                if failures >= TRIES:
                    raise Refused(f"{reason} ({failures} tries)")
                if pause > LONGEST_PAUSE:
                    raise Refused(f"asks to wait {pause:.0f} s ({reason})")
                self._wait(max(pause, PAUSE * 2 ** (failures - 1) * random.uniform(0.75, 1.25)), reason)

    @property
    def position(self) -> int:
        """Number of bytes of the file on disk."""
        return self.part.stat().st_size if self.part.exists() else 0

    def _wait(self, seconds: float, reason: str) -> None:
        say(f"pull: {self.wanted.name}: {reason}; again in {seconds:.0f} s")
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._ask()
            time.sleep(min(0.2, seconds))

    def _ask(self) -> None:
        if self.stop:
            raise self.stop.interrupted(f"{amount(self.position)} of {self.wanted.name} are kept")

    def _restart(self) -> None:
        self.part.unlink(missing_ok=True)
        self.notes.unlink(missing_ok=True)
        self.bar.done = self.bar.start = 0

    def _begun(self) -> _Begun | None:
        """Read the sidecar of the part; None if the download cannot be resumed."""
        try:
            notes = untrusted.read_bytes(self.notes, untrusted.RECORD, "note")
            begun = _Begun.model_validate_json(notes)
        except (OSError, ValidationError, KitError):
            return None
        same = begun.url == self.url and begun.validator
        # Bytes from another URL may be resumed if a checksum decides in the end.
        return begun if same or (self.wanted.checksum and begun.bytes) else None

    def _get(self) -> None:
        """Send one request, or two if a page asks for confirmation; return when all bytes are there."""
        self._ask()
        begun = self._begun()
        if begun is None and self.position:
            self._restart()
        if begun and self.position == begun.bytes:
            return
        answer = self._request(self.url, begun)
        if answer.page is not None:
            here = self.curl.getinfo(pycurl.EFFECTIVE_URL)
            page = WebPage(bytes(answer.page), here)
            # Drive's form leads to its own host; a host that takes a token has no such pages.
            elsewhere = urlsplit(page.confirmed or "").hostname != urlsplit(here).hostname
            elsewhere |= leads_to_plain_text(here, page.confirmed or here)
            if page.confirmed is None or elsewhere or self.wanted.token:
                raise Refused(f"sent a web page instead of the file ({page.title!r})")
            answer = self._request(page.confirmed, begun)
            if answer.page is not None:
                page = WebPage(bytes(answer.page), "")
                raise Refused(f"sent a web page again when it was confirmed ({page.title!r})")
        begun = self._begun()
        if begun and begun.bytes is not None and self.position != begun.bytes:
            raise Again(f"{amount(self.position)} came of {amount(begun.bytes)}")

    def _request(self, url: str, begun: _Begun | None) -> Answer:
        start, answer = self.position, Answer(url)
        self.curl.setopt(pycurl.URL, url)
        headers = []
        if start:
            headers.append(f"Range: bytes={start}-")
            if begun and sendable(begun.validator) and begun.url == self.url:
                headers.append(f"If-Range: {begun.validator}")
        self.curl.unsetopt(pycurl.HTTPHEADER)  # setting an empty list would keep the previous headers
        self.curl.setopt(pycurl.HTTPHEADER, headers)
        self.curl.setopt(pycurl.HEADERFUNCTION, answer.header)
        self.curl.setopt(pycurl.NOPROGRESS, False)
        self.curl.setopt(pycurl.XFERINFOFUNCTION, lambda *_: bool(self.stop))
        with self.part.open("ab") as out:

            def write(chunk: bytes) -> int | None:
                try:
                    if not answer.begun:
                        answer.begun = True
                        self._first(answer, chunk, begun, start)
                    if answer.page is None:
                        self._check_room(len(chunk))
                        out.write(chunk)
                        self.bar.step(count=len(chunk))
                    elif len(answer.page) + len(chunk) <= LARGEST_PAGE:
                        answer.page += chunk
                    else:
                        raise Refused("sent a web page instead of the file, of more than a megabyte")
                except Exception as error:
                    answer.error = error
                    return -1
                return None

            self.curl.setopt(pycurl.WRITEFUNCTION, write)
            try:
                self.curl.perform()
            except pycurl.error as error:
                self._ask()
                self._explain(error, answer, begun)
        if not answer.begun:  # the body was empty
            self._first(answer, b"", begun, start)
        return answer

    def _explain(self, error: pycurl.error, answer: Answer, begun: _Begun | None) -> None:
        """Raise Again if another try may help, else Refused; first of all a callback's error."""
        if answer.error:
            raise answer.error
        status = answer.status
        if status == 416:  # the remote file is shorter than the part, or a different one
            self._restart()
            raise Again("has no more bytes than were fetched already; starting over")
        if status in TRANSIENT:
            raise Again(f"answers {status}", pause=float(self.curl.getinfo(pycurl.RETRY_AFTER)))
        if status >= 400:
            raise Refused(f"answers {status}")
        lasting = (
            pycurl.E_URL_MALFORMAT,
            pycurl.E_TOO_MANY_REDIRECTS,
            pycurl.E_PEER_FAILED_VERIFICATION,
            pycurl.E_SSL_CACERT_BADFILE,
        )
        reason = " ".join(error.args[1].split()) or f"libcurl error {error.args[0]}"
        raise (Refused if error.args[0] in lasting else Again)(reason)

    def _first(self, answer: Answer, chunk: bytes, begun: _Begun | None, start: int) -> None:
        """Identify the response by its headers and first bytes, and note it before any byte is kept."""
        if answer.shows_page(chunk):
            answer.page = bytearray()
            return
        answer.require_file(checksum_known=bool(self.wanted.checksum))
        total = answer.number("content-length")
        if answer.status == 206:
            if begun is None or not self._continues(answer, begun, start):
                self._restart()
                raise Again("has changed since it was begun; starting over")
            total = begun.bytes
        elif start:
            self.bar.done = self.bar.start = 0
        if self.wanted.bytes and total not in (None, self.wanted.bytes):
            raise Refused(f"offers {total} bytes, expected {self.wanted.bytes}")
        total = total or self.wanted.bytes
        if total is None and not self.wanted.checksum:
            raise Refused("does not say how long the file is, and no checksum is known")
        self._note(answer, total, begun, start)

    def _note(self, answer: Answer, total: int | None, begun: _Begun | None, start: int) -> None:
        """Note the file and its length in the sidecar, after which its bytes may be kept."""
        self.limit, status = total, answer.status
        self.came = start if status == 206 else 0
        new = _Begun(url=self.url, validator=answer.validator, bytes=total)
        if status == 206 and begun and begun.url == self.url:
            new = begun  # keep the validator that the first bytes came with
        folder, left = self.part.parent, (total or 0) - (start if status == 206 else 0)
        if left > (free := shutil.disk_usage(folder).free):
            raise KitError(f"{folder} has {amount(free)} free, {self.wanted.name} needs {amount(left)}")
        if status != 206:  # delete old bytes before the new note, so that a kill in between mixes nothing
            os.truncate(self.part, 0)
        if new != begun:
            files.write_text(self.notes, new.model_dump_json())
        self.bar.total = total or 0

    def _continues(self, answer: Answer, begun: _Begun, start: int) -> bool:
        """Return whether a 206 response continues the bytes on disk.

        A checksum decides in the end; without one the response must repeat a strong validator.
        """
        if answer.span is None or answer.span[0] != start:
            return False
        _, last, whole = answer.span
        if begun.bytes is not None and (whole not in (None, begun.bytes) or last >= begun.bytes):
            return False
        if self.wanted.checksum:
            return begun.url != self.url or not answer.contradicts(begun.validator)
        return begun.url == self.url and answer.repeats(begun.validator)

    def _check_room(self, more: int) -> None:
        """Stop an endless body: at the known length, else before it fills the disk."""
        before, self.came = self.came, self.came + more
        if self.limit is not None and self.came > self.limit:
            raise Mismatch(f"sent more than the {self.limit} bytes that it has")
        if self.limit is not None or self.came // STRIDE == before // STRIDE:
            return
        if (free := shutil.disk_usage(self.part.parent).free) < RESERVE:
            raise Refused(f"does not say how long it is, and left {amount(free)} of the disk free")

    def _verify(self) -> None:
        if not self.position:
            raise Mismatch("gave an empty file")
        if self.wanted.bytes and self.position != self.wanted.bytes:
            raise Mismatch(f"gave {self.position} bytes, expected {self.wanted.bytes}")
        expected = self.wanted.checksum
        if expected and (wrong := checksums.mismatch(self.part, expected, self.stop, self.wanted.name)):
            raise Mismatch(f"gave a file whose {wrong}")
        files.publish(self.part, self.path)
        self.notes.unlink(missing_ok=True)
