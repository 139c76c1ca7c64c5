"""Files of a model hub, ``hf://owner/name/file@revision``.

huggingface_hub gives a file's commit, length, SHA-256 and location. The kit's own download fetches the
bytes, as it resumes and verifies. The token that huggingface_hub finds (HF_TOKEN, or its login) goes to the
hub's host only; it is never written or printed.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from triplet import paths, records
from triplet.errors import KitError
from triplet.progress import say
from triplet.pull.answer import Refused

PREFIX = "hf://"
HUB = "https://huggingface.co"
LOCAL = ("localhost", "127.0.0.1", "::1")
_PART = r"\w[\w.-]*"
_ADDRESS = re.compile(
    rf"hf://(?P<repository>{_PART}/{_PART})/(?P<file>{_PART}(/{_PART})*)(@(?P<revision>{_PART}(/{_PART})*))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
REASONS = {
    "GatedRepoError": "wants its terms accepted, and a token: open its page, then set HF_TOKEN",
    "RepositoryNotFoundError": "has no such repository, or a private one: set HF_TOKEN for that",
    "RevisionNotFoundError": "has no such revision",
    "RemoteEntryNotFoundError": "has no such file",
    "OfflineModeIsEnabled": "is not asked: HF_HUB_OFFLINE is set",
}
"""Meaning of each of huggingface_hub's errors in a phrase."""


@dataclass(frozen=True)
class HubFile:
    """The parts of an ``hf://`` address."""

    repository: str
    """``owner/name``."""
    file: str
    revision: str
    """A commit, a tag or a branch."""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}/{self.file}@{self.revision}"


@dataclass(frozen=True)
class Location:
    """Location of a file's bytes, with their known properties."""

    url: str
    token: str | None = None
    checksum: str | None = None
    """``sha256:...``, which the hub gives for files in Git LFS or Xet."""
    bytes: int | None = None
    commit: str = ""


def parse(address: str) -> HubFile:
    """Parse an address; without a revision it means the newest commit of ``main``.

    Raises:
        KitError: it is not an ``hf://`` address.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise KitError(f"an address of the hub is hf://owner/name/file@revision: found {address!r:.200}")
    return HubFile(found["repository"], found["file"], found["revision"] or "main")


def resolve(url: str, token: str | None, checksum: str | None) -> Location:
    """Return the location of a URL: the URL itself, or the hub's answer for an ``hf://`` address.

    Args:
        url: https, http or hf.
        token: token for an https URL's own host.
        checksum: ``md5:...`` or ``sha256:...``, if known.

    Raises:
        Refused: the hub does not give the file, or has another one at this address.
    """
    if not url.startswith(PREFIX):
        return Location(url, token)
    found = locate(parse(url))
    if checksum and checksum.startswith("sha256:") and found.checksum not in (None, checksum):
        raise Refused(f"has a file whose {found.checksum}, expected {checksum}")
    return found


def locate(wanted: HubFile) -> Location:
    """Ask the hub for a file's location, commit and checksum.

    HF_ENDPOINT selects a hub other than the public one.

    Raises:
        Refused: the hub does not give the file; the message has the reason in a phrase.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url  # takes half a second

    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    token, parts = get_token(), urlsplit(endpoint)
    if token and parts.scheme != "https" and parts.hostname not in LOCAL:
        raise Refused("gets no token in plain text: HF_ENDPOINT must be https")
    try:
        url = hf_hub_url(wanted.repository, wanted.file, revision=wanted.revision, endpoint=endpoint)
        found = get_hf_file_metadata(url, token=token, endpoint=endpoint)
    except Exception as error:  # its own errors, and those of whichever HTTP library it uses
        reason = REASONS.get(type(error).__name__) or f"does not answer ({type(error).__name__})"
        raise Refused(f"{reason} ({endpoint})") from None
    commit, tag = found.commit_hash or "", found.etag or ""
    if not _COMMIT.fullmatch(commit):
        raise Refused(f"does not say of which commit the file is ({endpoint})")
    pinned = hf_hub_url(wanted.repository, wanted.file, revision=commit, endpoint=endpoint)
    checksum = f"sha256:{tag}" if _SHA256.fullmatch(tag) else None
    return Location(pinned, token, checksum, found.size, commit)


def folder_of(pinned: HubFile) -> Path:
    """Return the folder of a file at a commit, which also holds its record."""
    return paths.root("checkpoints") / "weights" / "hub" / pinned.repository / pinned.revision / pinned.file


def pin(wanted: HubFile) -> HubFile:
    """Return the same file with its commit; the hub is asked for it if a branch or a tag is named.

    Raises:
        KitError: the hub does not give the commit.
    """
    if _COMMIT.fullmatch(wanted.revision):
        return wanted
    try:
        pinned = replace(wanted, revision=locate(wanted).commit)
    except Refused as refused:
        raise KitError(f"{wanted} {refused}") from None
    say(f"pull: {wanted} is {pinned} today; write that to have the same file always")
    return pinned


def find(pinned: HubFile) -> Path | None:
    """Return the path of a file that was pulled earlier, None if it was not; KitError if it has changed."""
    record = records.read(folder_of(pinned))
    return records.output(record, Path(pinned.file).name) if record else None
