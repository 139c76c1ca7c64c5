"""The schema of configs/sources.yaml: what can be fetched, from where, and what it must contain."""

import os
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from triplet import paths
from triplet.config import Settings, load
from triplet.errors import KitError
from triplet.pull import hub

CONFIGS = paths.CONFIGS
"""Folder of sources.yaml, and of SHA256SUMS where a group keeps one."""
Inside = Annotated[str, Field(pattern=r"^\w[\w.-]*(/\w[\w.-]*)*$")]
"""A path below a source's folder."""


class Unpack(Settings):
    """Options for unpacking an archive."""

    into: Inside | Literal["."] = "."
    archives: bool = False
    """Whether its members are archives themselves, each unpacked into a folder of its own name."""


class SourceFile(Settings):
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]
    urls: tuple[str, ...] = ()
    """URLs to try in order, the publisher's before its mirrors: https, http, or
    hf://owner/name/file@commit."""
    checksum: Annotated[str | None, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")] = None
    """Published checksum; None if it is recorded at the first download instead."""
    bytes: Annotated[int | None, Field(gt=0)] = None
    unpack: Unpack | None = None
    unpacked: int | None = None

    @property
    def bytes_unpacked(self) -> int:
        """Approximate size in bytes after unpacking; an archive of images unpacks to its own size."""
        return (self.unpacked or self.bytes or 0) if self.unpack else 0

    @field_validator("urls")
    @classmethod
    def _urls_are_known(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if url.startswith(hub.PREFIX):
                try:
                    hub.parse(url)
                except KitError as error:
                    raise ValueError(str(error)) from None
            elif urlsplit(url).scheme not in ("https", "http"):
                raise ValueError(f"a URL begins with https://, http:// or {hub.PREFIX}: found {url!r:.100}")
        return urls

    @model_validator(mode="after")
    def _archives_are_published(self) -> Self:
        if self.unpack and not self.checksum:
            raise ValueError("an archive must have a checksum, which is checked before it is unpacked")
        return self


class Mirror(Settings):
    """Names of the environment variables with which a user sets a mirror of their own."""

    url: str
    token: str


class Sort(Settings):
    """A folder of ImageNet's validation images to sort into classes by the unpacked development kit."""

    images: Inside
    devkit: Inside


class Expect(Settings):
    """Expected content, by path below the source's folder."""

    images: dict[Inside, int] = Field(default_factory=dict)
    """Number of image files below a folder."""
    folders: dict[Inside, int] = Field(default_factory=dict)
    annotations: dict[str, int] = Field(default_factory=dict)
    """Number of images of a split in COCO's layout; every listed image must exist."""
    lists: dict[Inside, int] = Field(default_factory=dict)
    """Number of lines in a list of VOC's; each names an image and an annotation that must exist."""


class Source(Settings):
    about: str
    licence: str
    terms: str
    files: Annotated[list[SourceFile], Field(min_length=1)]
    epochs: Annotated[int | None, Field(ge=0)] = None
    """Epochs of the pretraining of weights, if they are known."""
    provides: list[Inside] = Field(default_factory=list)
    expect: Expect = Expect()
    sort: Sort | None = None
    by_hand: str | None = None
    """Instructions for files that have no URL."""
    mirror: Mirror | None = None

    def identity(self) -> dict[str, object]:
        """Return the settings that the result depends on, without those that say where files come from."""
        return {
            "files": {file.name: file.checksum for file in self.files},
            "expect": self.expect.model_dump(),
        }

    def urls(self, file: SourceFile) -> tuple[str, ...]:
        """Return the URLs to try in order, the user's own mirror first.

        Raises:
            KitError: a token would be sent in plain text.
        """
        own = self.mirror and os.environ.get(self.mirror.url)
        if self.mirror and own:
            parts = urlsplit(own)
            if self.token(f"{own}/") and parts.scheme != "https" and parts.hostname not in hub.LOCAL:
                raise KitError(f"{self.mirror.url} must be https when {self.mirror.token} is set")
            return (f"{own.rstrip('/')}/{file.name}", *file.urls)
        return file.urls

    def token(self, url: str) -> str | None:
        """Return the bearer token of the user's own mirror, which is never written anywhere."""
        own = self.mirror and os.environ.get(self.mirror.url)
        mine = self.mirror and own and url.startswith(own.rstrip("/") + "/")
        return os.environ.get(self.mirror.token) if self.mirror and mine else None


class Sources(Settings):
    datasets: dict[str, Source]
    weights: dict[str, Source]


def load_sources() -> Sources:
    """Read configs/sources.yaml; KitError if the file does not fit the schema."""
    return load(CONFIGS / "sources.yaml", Sources)
