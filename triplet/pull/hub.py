"""Files of a model hub, ``hf://owner/name/file@revision``.

huggingface_hub says what a file is: its commit, length and SHA-256, and where its bytes are. They come by
the kit's own download, which resumes and verifies. The token that huggingface_hub finds (HF_TOKEN, or its
login) goes to the hub's host only; it is written and printed nowhere.
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
"""Meaning of huggingface_hub's errors, in a phrase each."""


@dataclass(frozen=True)
class HubFile:
    """The parts of an address."""

    repository: str
    """``owner/name``."""
    file: str
    revision: str
    """A commit, a tag or a branch."""

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}/{self.file}@{self.revision}"


@dataclass(frozen=True)
class Location:
    """Location of a file's bytes, and what is known of them."""

    url: str
    token: str | None = None
    checksum: str | None = None
    """``sha256:...``, which the hub knows of files that Git LFS or Xet holds."""
    bytes: int | None = None
    commit: str = ""


def parse(address: str) -> HubFile:
    """Parse an address; without a revision it means the newest of ``main``.

    Raises:
        KitError: it is no such address.
    """
    found = _ADDRESS.fullmatch(address)
    if not found:
        raise KitError(f"an address of the hub is hf://owner/name/file@revision: found {address!r:.200}")
    return HubFile(found["repository"], found["file"], found["revision"] or "main")


def resolve(url: str, token: str | None, checksum: str | None) -> Location:
    """Return where a URL leads: itself, or what the hub says of an ``hf://`` address.

    Args:
        url: https, http or hf.
        token: for an https URL's own host.
        checksum: ``md5:...`` or ``sha256:...`` where one is known.

    Raises:
        Refused: the hub does not give the file, or has another one under this address.
    """
    if not url.startswith(PREFIX):
        return Location(url, token)
    found = locate(parse(url))
    if checksum and checksum.startswith("sha256:") and found.checksum not in (None, checksum):
        raise Refused(f"has a file whose {found.checksum}, expected {checksum}")
    return found


def locate(wanted: HubFile) -> Location:
    """Ask the hub where a file is, at which commit, and what it is known by.

    HF_ENDPOINT names another hub than the public one.

    Raises:
        Refused: with the reason in a phrase.
    """
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url  # takes half a second

    endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    token, parts = get_token(), urlsplit(endpoint)
    if token and parts.scheme != "https" and parts.hostname not in LOCAL:
        raise Refused("gets no token in plain text: HF_ENDPOINT must be https")
    try:
        url = hf_hub_url(wanted.repository, wanted.file, revision=wanted.revision, endpoint=endpoint)
        found = get_hf_file_metadata(url, token=token, endpoint=endpoint)
    except Exception as error:  # its own, and those of whichever HTTP library it uses
        reason = REASONS.get(type(error).__name__) or f"does not answer ({type(error).__name__})"
        raise Refused(f"{reason} ({endpoint})") from None
    commit, tag = found.commit_hash or "", found.etag or ""
    if not _COMMIT.fullmatch(commit):
        raise Refused(f"does not say of which commit the file is ({endpoint})")
    pinned = hf_hub_url(wanted.repository, wanted.file, revision=commit, endpoint=endpoint)
    checksum = f"sha256:{tag}" if _SHA256.fullmatch(tag) else None
    return Location(pinned, token, checksum, found.size, commit)


def folder_of(pinned: HubFile) -> Path:
    """Return the location of a file of a commit, with its record."""
    return paths.root("checkpoints") / "weights" / "hub" / pinned.repository / pinned.revision / pinned.file


def pin(wanted: HubFile) -> HubFile:
    """The same file with its commit, which the hub is asked where a branch or a tag is named.

    Raises:
        KitError: it does not say.
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
    """The file where an earlier pull has left it, None for nowhere; KitError if it has changed since."""
    record = records.read(folder_of(pinned))
    return records.output(record, Path(pinned.file).name) if record else None
