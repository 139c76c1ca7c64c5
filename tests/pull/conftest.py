"""A server on loopback, and a kit whose sources are there."""

import hashlib
import io
import random
import tarfile
import zipfile

import pytest
import yaml

from tests.conftest import TINY
from tests.support.http_server import serving
from triplet import coco
from triplet.errors import KitError
from triplet.pull import download, sources
from triplet.signals import Stop

BODY = random.Random(0).randbytes(300_000)
SHA = f"sha256:{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture
def server(monkeypatch):
    """A server, and a client that has no patience to lose."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "STALL", 1)
    with serving() as running:
        yield running


@pytest.fixture
def get(server, tmp_path):
    """Fetch /file (and mirrors) with faults; gives the bytes that lie there at last."""

    def run(*faults, mirrors=(), checksum=SHA, size=None, token=None):
        server.files |= {"/file": BODY, "/mirror": BODY}
        server.faults["/file"] = list(faults)
        wanted = download.DownloadSpec("file", [server.url("file"), *mirrors], checksum, size, token)
        path = tmp_path / "to" / "file"
        try:
            download.download(wanted, path, Stop())
        except KitError:
            assert not path.exists()
            raise
        assert sorted(p.name for p in path.parent.iterdir()) == ["file"]
        return path.read_bytes()

    return run


@pytest.fixture
def kit(server, places, drawn, tmp_path, monkeypatch):
    """The kit with a small `coco` that the server has, in a sources.yaml of its own."""
    return Kit(server, places, drawn, tmp_path / "configs", monkeypatch)


class Kit:
    def __init__(self, server, places, drawn, configs, monkeypatch):
        monkeypatch.setattr(sources, "CONFIGS", configs)
        self.server, self.configs, self.drawn = server, configs, drawn
        self.folder = places / "datasets" / "coco"
        self.archives = {
            "train2017.zip": zipped(drawn, "train2017"),
            "val2017.zip": zipped(drawn, "val2017"),
            "annotations.tar.gz": tarred(drawn, "annotations"),
        }
        self.content = {"datasets": {"coco": self.coco()}, "weights": {}}
        server.files.update({f"/{name}": data for name, data in self.archives.items()})
        self.write()

    def coco(self):
        splits = ("train2017", "val2017")
        counts = {split: len(coco.read(self.drawn, split)["annotations"]) for split in splits}
        return {
            "about": "small",
            "licence": "none",
            "terms": "none",
            "files": [
                {
                    "name": name,
                    "urls": [self.server.url(name)],
                    "bytes": len(data),
                    "unpack": {},
                    "checksum": f"md5:{hashlib.md5(data).hexdigest()}",
                }
                for name, data in self.archives.items()
            ],
            "provides": ["train2017", "val2017", "annotations"],
            "expect": {
                "images": {"train2017": TINY.train, "val2017": TINY.val},
                "annotations": counts,
            },
        }

    def write(self):
        self.configs.mkdir(exist_ok=True)
        (self.configs / "sources.yaml").write_text(yaml.safe_dump(self.content))

    def whole(self):
        """Whether the data set is there, byte for byte, and its record, and nothing of what led to it."""
        seen = {path.name for path in self.folder.iterdir()}
        # The last are there after a kill.
        seen -= {".lock", ".foreign", "started.json", ".unpacked"} | {
            name for name in seen if name.endswith(".tmp")
        }
        return seen == {"annotations", "record.json", "train2017", "val2017"} and all(
            path.read_bytes() == (self.drawn / path.relative_to(self.folder)).read_bytes()
            for name in ("annotations", "train2017", "val2017")
            for path in (self.folder / name).iterdir()
        )


def zipped(folder, name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted((folder / name).iterdir()):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def tarred(folder, name):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder / name, name)
    return buffer.getvalue()
