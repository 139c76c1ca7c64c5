"""Download, verify, unpack: configs/sources.yaml."""

import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath
from typing import Annotated

import pooch
import requests
from pydantic import Field, RootModel

from triplet.config import Settings, parse_file
from triplet.errors import KitError
from triplet.progress import Bar, say

SOURCES = Path(__file__).parents[2] / "configs" / "sources.yaml"


class SourceFile(Settings):
    url: str
    checksum: Annotated[str, Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")]
    unpack: bool = False

    @property
    def name(self) -> str:
        """Of the file: the last part of its URL."""
        return PurePosixPath(self.url).name


class Source(Settings):
    about: str
    licence: str
    into: Annotated[str, Field(pattern=r"^(datasets|checkpoints)/[\w/-]+$")]
    files: list[SourceFile]
    provides: list[str]
    """What must be there afterwards."""


class Sources(RootModel[dict[str, Source]]):
    """By name."""


def load_sources(path: Path = SOURCES) -> dict[str, Source]:
    """What can be fetched; KitError when the file does not fit the schema."""
    return parse_file(path, Sources).root


def fetch(source: Source, folder: Path) -> None:
    """Make a source whole in a folder; files that are there and right are not fetched again.

    Downloads stay in ``folder/.downloads`` until the source is whole.

    Raises:
        KitError: the network, a wrong checksum, too little disk, or a file that is not there at last.
    """
    downloads = folder / ".downloads"
    for file in source.files:
        archive = downloads / file.name if file.unpack else folder / file.name
        marker = downloads / f"{file.name}.unpacked"
        if marker.exists():
            continue
        _download(file, archive)
        if file.unpack:
            unpack(archive, folder)
            marker.touch()
            archive.unlink()
    missing = [name for name in source.provides if not (folder / name).exists()]
    if missing:
        raise KitError(f"{folder}: {missing[0]} is missing after all archives were unpacked")
    shutil.rmtree(downloads, ignore_errors=True)


def _download(file: SourceFile, path: Path) -> None:
    """Fetch to a temporary name, verify, rename (pooch)."""
    say(f"pull: {file.url}")
    try:
        pooch.retrieve(
            file.url, file.checksum, fname=path.name, path=path.parent,
            downloader=pooch.HTTPDownloader(progressbar=os.isatty(1), timeout=60),
        )  # fmt: skip
    except (requests.RequestException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise KitError(f"{file.url} could not be fetched: {reason}; run the same command again") from None


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip; nothing in it may lead out of the folder or be a link.

    Raises:
        KitError: no zip, a path that escapes, or more bytes than the disk has room for.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = content.infolist()
            for member in members:
                path = PurePosixPath(member.filename)
                if path.is_absolute() or ".." in path.parts or (member.external_attr >> 28) == 0xA:
                    raise KitError(f"{archive}: {member.filename!r} would lead out of {folder}")
            needed, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
            if needed > free:
                raise KitError(
                    f"{archive}: unpacked it has {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} free"
                )
            with Bar(f"pull: unpacking {archive.name}", len(members)) as bar:
                for member in members:
                    content.extract(member, folder)
                    bar.step()
    except zipfile.BadZipFile as error:
        raise KitError(f"{archive} is no zip archive: {error}") from None
