"""`triplet pull` on folders, and against a real server on loopback."""

import hashlib
import json
import re
import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from triplet import cli
from triplet.errors import KitError
from triplet.pull import stage
from triplet.pull.fetch import Source, fetch, load_sources, unpack


@pytest.fixture
def small_demo(places):
    path = places / "demo.yaml"
    path.write_text(
        "data: {unlabelled: 3, train: 4, val: 2, radii: [18, 30], large: [28, 50], objects: [1, 2]}\n"
        "subset: {train: 3, val: 2}\n"
        "pretrain: configs/pretrain/demo.yaml\ndetection: configs/detection/demo.yaml\n"
        "rows: {triplet: []}\nseeds: [0]\n"
    )
    return path


def test_pull_demo_twice(places, small_demo, capsys):
    command = ["pull", "demo", "--config", str(small_demo)]
    assert cli.main(command) == 0
    assert len(list((places / "datasets" / "demo" / "train2017").iterdir())) == 4
    assert cli.main(command) == 0
    assert "pull: done already" in capsys.readouterr().out


def test_pull_subset(places, small_demo, drawn, capsys):
    command = ["pull", "subset", "--from", str(drawn), "--config", str(small_demo), "--name", "part"]
    assert cli.main(command) == 0
    folder = places / "datasets" / "part"
    for split, count in (("train2017", 3), ("val2017", 2)):
        truth = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        names = {image["file_name"] for image in truth["images"]}
        assert {p.name for p in (folder / split).iterdir()} == names
        assert len(names) == count
        assert {a["image_id"] for a in truth["annotations"]} == {i["id"] for i in truth["images"]}
        assert len(truth["categories"]) == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull", "subset"], "subset needs --from PATH"),
        (["pull", "subset", "--from", "/nonexistent"], "is not in COCO 2017's layout"),
        (["pull", "cocoo"], "unknown source 'cocoo'; known: demo, subset, coco, resnet50"),
    ],
)
def test_wrong_commands_get_one_line(places, capsys, arguments, message):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_annotated_image_that_is_missing_is_named(places, small_demo, tmp_path, drawn, capsys):
    source = tmp_path / "broken"
    (source / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (source / split).mkdir()
        name = f"instances_{split}.json"
        (source / "annotations" / name).write_text((drawn / "annotations" / name).read_text())
    assert cli.main(["pull", "subset", "--from", str(source), "--config", str(small_demo)]) == 2
    assert "is annotated but missing" in capsys.readouterr().err


@pytest.mark.parametrize("case", ["absolute", "escaping", "linked"])
def test_a_subset_never_touches_its_source(places, small_demo, tmp_path, drawn, capsys, case):
    source = tmp_path / "mine"
    shutil.copytree(drawn, source)
    before = sorted(p.name for p in source.rglob("*.png"))
    name = "part"
    if case == "linked":
        (places / "datasets").mkdir()
        (places / "datasets" / name).symlink_to(source)
    else:
        path = source / "annotations" / "instances_train2017.json"
        truth = json.loads(path.read_text())
        for image in truth["images"]:
            file = image["file_name"]
            image["file_name"] = str(source / "train2017" / file) if case == "absolute" else f"../{file}"
        path.write_text(json.dumps(truth))
    command = ["pull", "subset", "--from", str(source), "--config", str(small_demo), "--name", name]
    assert cli.main(command) == 2
    assert re.search("subset of itself|no plain file name", capsys.readouterr().err)
    assert sorted(p.name for p in source.rglob("*.png")) == before
    assert not (source / "started.json").exists()


class Files(BaseHTTPRequestHandler):
    """Serves what is in `content`; what is in `broken` is cut after half its bytes."""

    content: dict[str, bytes] = {}  # noqa: RUF012
    broken: set[str] = set()  # noqa: RUF012
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self):
        self.asked.append(self.path)
        body = self.content.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.broken else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        Files.content, Files.broken, Files.asked = {}, set(), []
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def source(url, *, unpack, provides, body=b""):
    checksum = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return Source(
        about="test", licence="none", into="datasets/test", provides=provides,
        files=[{"url": url, "checksum": checksum, "unpack": unpack}],
    )  # fmt: skip


def archive(tmp_path, **members):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as content:
        for name, text in members.items():
            content.writestr(name, text)
    return path.read_bytes()


def test_fetch_verifies_and_unpacks(server, tmp_path):
    body = archive(tmp_path, **{"train2017/1.jpg": "one", "train2017/2.jpg": "two"})
    Files.content["/a.zip"] = body
    folder = tmp_path / "data"
    fetch(source(f"{server}/a.zip", unpack=True, provides=["train2017"], body=body), folder)
    assert (folder / "train2017" / "2.jpg").read_text() == "two"
    assert [p.name for p in folder.iterdir()] == ["train2017"]


def test_a_wrong_checksum_is_not_kept(server, tmp_path):
    Files.content["/w.pth"] = b"not what was published"
    with pytest.raises(KitError, match=r"could not be fetched: .*hash"):
        fetch(source(f"{server}/w.pth", unpack=False, provides=["w.pth"]), tmp_path / "data")
    assert not (tmp_path / "data" / "w.pth").exists()


def test_a_cut_download_is_not_kept_and_the_next_try_works(server, tmp_path):
    body = bytes(range(256)) * 100
    Files.content["/w.pth"], Files.broken = body, {"/w.pth"}
    wanted = source(f"{server}/w.pth", unpack=False, provides=["w.pth"], body=body)
    with pytest.raises(KitError, match="run the same command again"):
        fetch(wanted, tmp_path / "data")
    assert not (tmp_path / "data" / "w.pth").exists()
    Files.broken = set()
    fetch(wanted, tmp_path / "data")
    assert (tmp_path / "data" / "w.pth").read_bytes() == body
    fetch(wanted, tmp_path / "data")
    assert Files.asked == ["/w.pth", "/w.pth"]  # the right file is not fetched again


@pytest.mark.parametrize("url", ["/gone", None])
def test_no_file_or_no_server_is_one_line(server, tmp_path, url):
    address = f"{server}{url}" if url else "http://127.0.0.1:9/nothing"
    with pytest.raises(KitError, match="could not be fetched"):
        fetch(source(address, unpack=False, provides=["x"]), tmp_path / "data")


@pytest.mark.parametrize("name", ["../outside", "/absolute", "a/../../outside"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    archive(tmp_path, **{"fine": "1", name: "2"})
    (tmp_path / "to").mkdir()
    with pytest.raises(KitError, match="would lead out of"):
        unpack(tmp_path / "made.zip", tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []


def test_links_and_damaged_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as content:
        member = zipfile.ZipInfo("link")
        member.external_attr = 0o120777 << 16
        content.writestr(member, "/etc/passwd")
    with pytest.raises(KitError, match="would lead out of"):
        unpack(tmp_path / "link.zip", tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(KitError, match="is no zip archive"):
        unpack(tmp_path / "bad.zip", tmp_path)


def test_sources_of_the_kit():
    """Checksums as their publishers give them: section 7 of the recipe."""
    sources = load_sources()
    assert [f.checksum for f in sources["coco"].files] == [
        "md5:cced6f7f71b7629ddf16f17bbcfab6b2",
        "md5:442b8da7639aecaf257c1dceb8ba8c80",
        "md5:f4bbac642086de4f52a3fdda2de5fa2c",
    ]
    # torchvision's file names carry the first eight digits of their hash.
    weights = sources["resnet50"].files[0]
    assert weights.name.split("-")[1].removesuffix(".pth") == weights.checksum[7:15]


def test_a_source_leaves_a_record(server, places, tmp_path, monkeypatch):
    body = archive(tmp_path, one="1")
    Files.content["/a.zip"] = body
    wanted = source(f"{server}/a.zip", unpack=True, provides=["one"], body=body)
    monkeypatch.setattr(stage, "load_sources", lambda: {"test": wanted})
    assert cli.main(["pull", "test"]) == 0
    record = json.loads((places / "datasets" / "test" / "record.json").read_text())
    assert record["outputs"]["one"]["path"] == "datasets/test/one"
