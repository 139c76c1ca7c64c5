"""configs/sources.yaml itself, its schema, and what a user's own mirror may do."""

import re
from urllib.parse import urlsplit

import pytest

from tests.conftest import KIT
from triplet.config import parse
from triplet.errors import KitError
from triplet.published.methods import load_methods
from triplet.pull import stage
from triplet.pull.sources import Source, load_sources


def test_checksums_are_the_publishers():
    """Section 7 of the recipe."""
    known = {f.name: f.checksum for source in load_sources().datasets.values() for f in source.files}
    assert known == {
        "train2017.zip": "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
        "val2017.zip": "md5:442b8da7639aecaf257c1dceb8ba8c80",
        "annotations_trainval2017.zip": "md5:f4bbac642086de4f52a3fdda2de5fa2c",
        "VOCtrainval_06-Nov-2007.tar": "md5:c52e279531787c972589f7e41ab4ae64",
        "VOCtest_06-Nov-2007.tar": "md5:b6e924de25625d8de591ea690078ad9f",
        "VOCtrainval_11-May-2012.tar": "md5:6cd6e144f989b92b3379bac3b3de84fd",
        "ILSVRC2012_img_train.tar": "md5:1d675b47d978889d74fa0da5fadfb00e",
        "ILSVRC2012_img_val.tar": "md5:29b22e2961454d5413ddabcf34fc5622",
        "ILSVRC2012_devkit_t12.tar.gz": "md5:fa75699e90414af021442c21a62c3abf",
    }
    # torchvision's file names carry the first eight digits of their hash.
    weights = load_sources().weights["supervised-torchvision"].files[0]
    assert weights.name.split("-")[1].removesuffix(".pth") == weights.checksum[7:15]


def test_every_method_of_the_table_has_weights():
    assert set(load_methods()) <= set(load_sources().weights)
    ids = [f.urls[0] for source in load_sources().weights.values() for f in source.files]
    assert len(set(ids)) == len(ids)


def test_all_is_everything(places):
    sources = load_sources()
    assert [t.method or t.name for t in stage.targets(["all"])] == [*sources.datasets, *sources.weights]
    assert [t.method for t in stage.targets(["weights"], ["byol", "moco"])] == ["moco", "byol"]


def source(**changes):
    file = {"name": "a.tar", "checksum": "md5:" + "0" * 32}
    content = {
        "about": "a",
        "licence": "b",
        "terms": "c",
        "files": [file],
        "mirror": {"url": "MY_MIRROR", "token": "MY_TOKEN"},
        **changes,
    }
    return parse(content, Source, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": []}, "files"),
        ({"files": [{"name": "../a", "checksum": None}]}, "name"),
        ({"files": [{"name": "a", "unpack": {}}]}, "an archive must have a checksum"),
        ({"files": [{"name": "a", "checksum": "md5:12"}]}, "checksum"),
        ({"provides": ["../outside"]}, "provides"),
        ({"provides": ["/absolute"]}, "provides"),
        ({"lisence": "x"}, "did you mean 'licence'"),
    ],
)
def test_a_source_that_is_not_right_is_one_line(changes, message):
    with pytest.raises(KitError, match=message):
        source(**changes)


def test_the_users_mirror_comes_first_and_alone_gets_the_token(monkeypatch):
    monkeypatch.setenv("MY_MIRROR", "https://mirror.example/data/")
    monkeypatch.setenv("MY_TOKEN", "secret")
    own = source()
    assert own.urls(own.files[0]) == ("https://mirror.example/data/a.tar",)
    assert own.token("https://mirror.example/data/a.tar") == "secret"
    assert own.token("https://mirror.example.evil/data/a.tar") is None
    monkeypatch.setenv("MY_MIRROR", "http://mirror.example/data")
    with pytest.raises(KitError, match="MY_MIRROR must be https when MY_TOKEN is set"):
        own.urls(own.files[0])
    monkeypatch.delenv("MY_MIRROR")
    assert own.urls(own.files[0]) == ()
    assert own.token("https://mirror.example/data/a.tar") is None


def test_the_page_on_hosts_is_the_file_of_sources():
    page = (KIT / "docs" / "weights.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9-]+) \| `([^`]+)` \| ([^ |]+)[^|]*\| ([^ |]+)", page, re.M)
    assert rows == [
        (
            row,
            file.name,
            "Google" if "drive." in (host := urlsplit(file.urls[0]).hostname) else host,
            source.licence.split()[0],
        )
        for row, source in load_sources().weights.items()
        for file in source.files
    ]
    published = [row for row, source in load_sources().weights.items() if source.files[0].checksum]
    assert "only torchvision's has a published checksum" in page
    assert published == ["supervised-torchvision"]
