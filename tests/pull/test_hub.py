"""`hf://owner/name/file@revision` from a server on loopback that speaks the hub's protocol.

It answers at /owner/name/resolve/revision/file with X-Repo-Commit, X-Linked-Size and X-Linked-Etag, and
leads to another host for the bytes, as the hub does.
"""

import hashlib
import json
import random

import pytest

from tests.support import http_server as s
from triplet import cli, paths, records
from triplet.cli.options import weights_path
from triplet.errors import KitError
from triplet.pull import hub, stage

BODY = random.Random(1).randbytes(300_000)
COMMIT, NEXT = "a" * 40, "b" * 40
ADDRESS = f"hf://lab/resnet/weights/model.bin@{COMMIT}"
TOKEN = "hf_ThisIsASecret"


class Hub:
    """Repositories of the server's, each a file by revision."""

    def __init__(self, server):
        self.server, self.branches = server, {"main": COMMIT}
        self.content = {COMMIT: BODY, NEXT: BODY[::-1]}
        self.headers = {}
        for revision in ("main", "v1.0", COMMIT, NEXT):
            server.pages[f"/lab/resnet/resolve/{revision}/weights/model.bin"] = self.resolve
        server.pages["/lab/resnet/resolve/gone/weights/model.bin"] = self.refuse(404, "RevisionNotFound")
        server.pages["/lab/resnet/resolve/main/none.bin"] = self.refuse(404, "EntryNotFound")
        server.pages["/lab/none/resolve/main/model.bin"] = self.refuse(401, "RepoNotFound")
        server.pages["/lab/gated/resolve/main/model.bin"] = self.refuse(403, "GatedRepo")

    def resolve(self, handler):
        revision = handler.path.split("/")[4]
        commit = self.branches.get(revision, revision)
        body = self.content[commit]
        self.server.files[f"/cdn/{commit}"] = body
        handler.send_response(302)
        headers = {
            "X-Repo-Commit": commit,
            "X-Linked-Size": len(body),
            "X-Linked-Etag": f'"{hashlib.sha256(body).hexdigest()}"',
            "Location": f"http://localhost:{self.server.server_port}/cdn/{commit}",
            "Content-Length": 0,
            **self.headers,
        }
        for name, value in headers.items():
            handler.send_header(name, str(value))
        handler.end_headers()

    @staticmethod
    def refuse(status, code):
        return lambda handler: handler.answer(status, X_Error_Code=code, X_Error_Message="sorry")

    def asked(self, start):
        """The headers of requests, their names in lower case."""
        return [
            {name.lower(): value for name, value in headers.items()}
            for path, headers in self.server.asked
            if path.startswith(start)
        ]


@pytest.fixture
def lab(server, places, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(places / "no token"))
    return Hub(server)


def written(places):
    return b"".join(path.read_bytes() for path in places.rglob("*") if path.is_file())


def test_a_file_of_a_commit_is_fetched_verified_and_recorded(lab, places, capsys):
    assert cli.main(["pull", ADDRESS]) == 0
    folder = (
        places / "checkpoints" / "weights" / "hub" / "lab" / "resnet" / COMMIT / "weights" / "model.bin"
    )
    assert (folder / "model.bin").read_bytes() == BODY
    assert f"{paths.portable(folder)}/model.bin" in capsys.readouterr().out
    record = records.read(folder)
    assert record.config == {"hub": ADDRESS}
    assert record.outputs["model.bin"].sha256 == hashlib.sha256(BODY).hexdigest()


def test_what_is_there_and_named_by_its_commit_needs_no_network(lab, capsys):
    path = stage.pull_hub(ADDRESS)
    lab.server.asked.clear()
    assert weights_path(ADDRESS) == path
    assert lab.server.asked == []
    path.write_bytes(b"another")
    with pytest.raises(KitError, match="is changed since it was recorded"):
        stage.pull_hub(ADDRESS)
    assert cli.main(["pull", ADDRESS, "--force"]) == 0
    assert path.read_bytes() == BODY


def test_a_branch_is_pinned_to_todays_commit_and_that_is_said(lab, capsys):
    first = stage.pull_hub("hf://lab/resnet/weights/model.bin")
    assert f"hf://lab/resnet/weights/model.bin@main is {ADDRESS} today" in capsys.readouterr().out
    lab.branches["main"] = NEXT
    second = stage.pull_hub("hf://lab/resnet/weights/model.bin@main")
    assert (first.read_bytes(), second.read_bytes()) == (BODY, BODY[::-1])
    assert first.parent != second.parent


def test_a_broken_download_goes_on_where_it_stopped(lab, capsys):
    lab.server.faults[f"/cdn/{COMMIT}"] = [s.drops(0.5), s.drops(0.5)]
    assert stage.pull_hub(ADDRESS).read_bytes() == BODY
    starts = [int(h.get("range", "bytes=0-")[6:-1]) for h in lab.asked("/cdn/")]
    assert starts == [0, len(BODY) // 2, len(BODY) * 3 // 4]


def test_bytes_that_are_not_the_hubs_are_refused(lab, places):
    lab.server.faults[f"/cdn/{COMMIT}"] = [s.corrupt] * 4
    with pytest.raises(KitError, match="gave a file whose sha256 is"):
        stage.pull_hub(ADDRESS)
    assert not list(places.rglob("model.bin/model.bin"))


def test_a_known_checksum_decides_before_a_byte_is_fetched(lab, monkeypatch, tmp_path):
    monkeypatch.setattr("triplet.pull.sources.CONFIGS", tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  lab/resnet/weights/model.bin@{COMMIT}\n")
    with pytest.raises(KitError, match=f"has a file whose sha256:[0-9a-f]+, expected sha256:{'0' * 64}"):
        stage.pull_hub(ADDRESS)
    assert lab.asked("/cdn/") == []


@pytest.mark.parametrize("known", [BODY, BODY[:-1], None])
def test_a_file_whose_sum_the_hub_does_not_know_is_compared(lab, monkeypatch, tmp_path, known):
    """Of a small file that is in Git itself the hub tells Git's own hash, which is no SHA-256."""
    lab.headers = {"X-Linked-Etag": f'"{hashlib.sha1(BODY).hexdigest()}"'}
    monkeypatch.setattr("triplet.pull.sources.CONFIGS", tmp_path)
    if known:
        line = f"{hashlib.sha256(known).hexdigest()}  lab/resnet/weights/model.bin@{COMMIT}\n"
        (tmp_path / "SHA256SUMS").write_text(line)
    if known in (BODY, None):
        assert stage.pull_hub(ADDRESS).read_bytes() == BODY
    else:
        with pytest.raises(KitError, match="gave a file whose sha256 is"):
            stage.pull_hub(ADDRESS)


def test_a_location_is_that_of_the_commit_with_all_that_is_known(lab, monkeypatch):
    """Even where a branch is named, which may be another one when the bytes are asked for."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", lab.server.url("/"))
    checksum = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    url = lab.server.url(f"lab/resnet/resolve/{COMMIT}/weights/model.bin")
    expected = hub.Location(url, TOKEN, checksum, len(BODY), COMMIT)
    address = "hf://lab/resnet/weights/model.bin"
    assert hub.locate(hub.parse(address)) == expected
    for known in (None, checksum, f"md5:{hashlib.md5(BODY).hexdigest()}"):
        assert hub.resolve(address, "of the mirror", known) == expected
    plain = hub.Location("https://mirror.example/file", "of the mirror")
    assert hub.resolve(plain.url, plain.token, checksum) == plain


def test_the_token_goes_to_the_hub_alone_and_is_written_nowhere(lab, places, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    stage.pull_hub(ADDRESS)
    assert {headers["authorization"] for headers in lab.asked("/lab/")} == {f"Bearer {TOKEN}"}
    assert lab.asked("/cdn/")
    assert not [headers for headers in lab.asked("/cdn/") if "authorization" in headers]
    said = capsys.readouterr()
    assert TOKEN not in said.out + said.err
    assert TOKEN.encode() not in written(places)


def test_a_token_is_not_sent_in_plain_text(lab, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(KitError, match="HF_ENDPOINT must be https"):
        stage.pull_hub("hf://lab/resnet/weights/model.bin")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.2:9")  # without a token it is asked
    with pytest.raises(KitError, match="does not answer"):
        stage.pull_hub("hf://lab/resnet/weights/model.bin")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://lab/resnet/weights/model.bin@gone", "has no such revision"),
        ("hf://lab/resnet/none.bin", "has no such file"),
        ("hf://lab/none/model.bin", "has no such repository, or a private one"),
        ("hf://lab/gated/model.bin", "wants its terms accepted"),
        ("hf://lab/model.bin", "hf://owner/name/file@revision: found 'hf://lab/model.bin'"),
        ("hf://lab/resnet/../model.bin", "hf://owner/name/file@revision: found"),
        ("hf://lab/resnet/weights/model.bin?download=true", "hf://owner/name/file@revision: found"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(lab, capsys, address, message):
    assert cli.main(["pull", address]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert address in error
    assert error.count("\n") == 1


def test_offline_the_hub_is_not_asked(lab, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(KitError, match=r"model\.bin@main is not asked: HF_HUB_OFFLINE is set"):
        stage.pull_hub("hf://lab/resnet/weights/model.bin")
    assert lab.server.asked == []


def test_an_answer_without_a_commit_is_refused(lab):
    lab.headers = {"X-Repo-Commit": "main"}
    with pytest.raises(KitError, match="does not say of which commit"):
        stage.pull_hub(ADDRESS)


@pytest.mark.parametrize("command", ["convert", "pretrain", "linear", "knn", "semi", "svm"])
def test_weights_of_a_stage_may_be_on_the_hub(lab, capsys, command):
    """What is there is no file of weights; every command that takes weights has fetched it first."""
    assert cli.main([command, "--run", "triplet", "--weights", ADDRESS]) == 2
    assert hub.find(hub.parse(ADDRESS)).read_bytes() == BODY
    if command == "convert":
        assert "model.bin is not a PyTorch file of tensors" in capsys.readouterr().err


def test_mirrors_are_tried_in_turn_by_one_checksum(lab, kit, capsys):
    archives = kit.content["datasets"]["coco"]["files"]
    body = kit.archives[archives[0]["name"]]
    lab.content = {COMMIT: body, NEXT: BODY}
    archives[0]["urls"] = [kit.server.url("gone"), ADDRESS.replace(COMMIT, NEXT), ADDRESS]
    archives[0]["checksum"] = f"sha256:{hashlib.sha256(body).hexdigest()}"
    kit.write()
    assert cli.main(["pull", "coco"]) == 0
    assert kit.whole()
    assert lab.asked(f"/cdn/{NEXT}") == []
    archives[0]["urls"].pop()
    kit.write()
    assert cli.main(["pull", "coco", "--force"]) == 2
    error = capsys.readouterr().err
    assert "gone answers 404; hf://lab/resnet/weights/model.bin@" in error
    assert "has a file whose sha256:" in error
    assert "how to add a mirror: docs/weights.md" in error


def test_without_a_known_sum_no_mirror_is_asked(lab, kit, capsys):
    file = {"name": "r.pth", "urls": [kit.server.url("gone"), ADDRESS]}
    kit.content["weights"]["random"] = {"about": "r", "licence": "-", "terms": "-", "files": [file]}
    kit.write()
    assert cli.main(["pull", "weights"]) == 2
    assert "r.pth: its mirrors are not asked before its SHA-256 is known" in capsys.readouterr().out
    assert lab.asked("/lab/") == []


@pytest.mark.parametrize("url", ["ftp://host/file", "hf://owner/file", "/a/path"])
def test_a_url_of_another_kind_is_refused(kit, capsys, url):
    kit.content["datasets"]["coco"]["files"][0]["urls"] = [url]
    kit.write()
    assert cli.main(["pull", "coco"]) == 2
    assert url in capsys.readouterr().err


def test_an_address_reads_as_it_is_written():
    assert str(hub.parse(ADDRESS)) == ADDRESS
    assert json.dumps(str(hub.parse("hf://a/b/c"))) == '"hf://a/b/c@main"'
