"""`triplet pull weights`: from a server that answers as Google Drive does, checked, loaded and recorded."""

import hashlib
import io
import pickle
from urllib.parse import parse_qs, urlsplit

import pytest
import torch

from tests.support import http_server as s
from triplet import cli, records
from triplet.models.resnet import ResNet
from triplet.pull import checksums

FORM = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<form id="download-form" action="{action}" method="get"><input type="submit" value="Download anyway"/>
<input type="hidden" name="id" value="ID"><input type="hidden" name="export" value="download">
<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="12-34"></form>"""
SIGN_IN = b"<html><head><title>Sign in - Google Accounts</title></head><form action='/in'></form></html>"


def saved(state, **more):
    buffer = io.BytesIO()
    torch.save({"state_dict": state, **more}, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def states():
    """A ResNet-50 as it is drawn, and one that has seen images, as files."""
    torch.manual_seed(0)
    state = ResNet(50).state_dict()
    seen = {
        name: torch.rand_like(value) + 0.5 if name.endswith("running_var") else value
        for name, value in state.items()
    }
    return {"random": saved(state), "triplet": saved(seen, author="x")}


@pytest.fixture
def zoo(kit, states, places):
    """A sources.yaml with weights that only Drive has; the methods are real ones."""
    for method, data in states.items():
        kit.server.files[f"/{method}.pth"] = data
        kit.content["weights"][method] = {
            "about": method,
            "epochs": {"random": 0, "triplet": 200}[method],
            "licence": "none",
            "terms": "none",
            "files": [{"name": f"{method}.pth", "urls": [kit.server.url(f"download?id={method}")]}],
        }
    kit.write()
    kit.server.pages["/download"] = drive
    kit.server.piece = 1 << 20
    kit.folder = places / "checkpoints" / "weights"
    return kit


def drive(handler):
    """Drive's way: a page with a form first, a cookie with it, then the file."""
    asked = parse_qs(urlsplit(handler.path).query)
    if asked.get("confirm") == ["t"] and asked["uuid"] == ["12-34"]:
        assert "NID=secret-cookie" in handler.headers["Cookie"]
        s.honest(handler, handler.server.files[f"/{asked['id'][0]}.pth"])
    else:
        page = FORM.format(action=handler.server.url("download?drop=me")).replace("ID", asked["id"][0])
        handler.answer(200, page.encode(), Content_Type="text/html", Set_Cookie="NID=secret-cookie; Path=/")


def refuses(page):
    return lambda handler: handler.answer(200, page, Content_Type="text/html")


def test_all_methods_are_pulled_checked_and_recorded(zoo, states, capsys):
    assert cli.main(["pull", "weights"]) == 0
    for method, data in states.items():
        path = zoo.folder / method / f"{method}.pth"
        assert path.read_bytes() == data
        record = records.read(zoo.folder / method)
        found = record.results[f"{method}.pth"]
        assert record.results["epochs"] == {"random": 0, "triplet": 200}[method]
        assert (found["format"], found["tensors"]) == ("extracted", 318)
        assert found["variances"] == (
            [1.0, 1.0] if method == "random" else pytest.approx([0.5, 1.5], abs=0.01)
        )
        assert record.outputs[f"{method}.pth"].sha256 == hashlib.sha256(data).hexdigest()
        assert f"{hashlib.sha256(data).hexdigest()}  {method}/{method}.pth" in (
            (zoo.folder / "SHA256SUMS").read_text()
        )
    assert not [p for p in zoo.folder.rglob("*") if p.is_file() and b"secret-cookie" in p.read_bytes()]
    zoo.server.asked.clear()
    assert cli.main(["pull", "weights", "--check"]) == 0
    assert zoo.server.asked == []
    path = zoo.folder / "triplet" / "triplet.pth"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    assert cli.main(["pull", "weights", "--method", "triplet", "--check"]) == 2
    assert "its sha256 is" in capsys.readouterr().out


def test_another_file_than_the_first_is_refused(zoo, states, capsys):
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 0
    zoo.server.files["/triplet.pth"] = states["random"]
    assert cli.main(["pull", "weights", "--method", "triplet", "--force"]) == 2
    assert "gave a file whose sha256 is" in capsys.readouterr().err
    assert not (zoo.folder / "triplet" / "triplet.pth").exists()


def test_a_committed_checksum_comes_first(zoo, states, capsys):
    right = hashlib.sha256(states["triplet"]).hexdigest()
    (zoo.configs / "SHA256SUMS").write_text(f"{'0' * 64}  triplet/triplet.pth\n")
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    assert f"expected {'0' * 64}" in capsys.readouterr().err
    (zoo.configs / "SHA256SUMS").write_text(f"{right}  triplet/triplet.pth\n")
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 0
    assert not (zoo.folder / "SHA256SUMS").exists()


@pytest.mark.parametrize(
    ("page", "title"),
    [(s.HTML, "Google Drive - Quota exceeded"), (SIGN_IN, "Sign in - Google Accounts")],
    ids=["quota", "sign-in"],
)
def test_a_page_that_leads_nowhere_is_said_at_once(zoo, states, tmp_path, capsys, page, title):
    zoo.server.pages["/download"] = refuses(page)
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    error = capsys.readouterr().err
    assert f"a web page instead of the file ('{title}')" in error
    assert (
        "fetch triplet.pth with a browser and run: triplet pull weights --method triplet --from F" in error
    )
    assert error.count("\n") == 1
    assert len(zoo.server.asked) == 1
    (tmp_path / "Unbenannt (1).download").write_bytes(states["triplet"])
    assert (
        cli.main(
            ["pull", "weights", "--method", "triplet", "--from", str(tmp_path / "Unbenannt (1).download")]
        )
        == 0
    )
    assert (zoo.folder / "triplet" / "triplet.pth").read_bytes() == states["triplet"]
    assert len(zoo.server.asked) == 1


def test_a_page_after_the_confirmation_is_said(zoo, capsys):
    def again(handler):
        confirmed = "confirm" in handler.path
        page = s.HTML if confirmed else FORM.format(action="/download").encode()
        handler.answer(200, page, Content_Type="text/html")

    zoo.server.pages["/download"] = again
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    assert "a web page again when it was confirmed" in capsys.readouterr().err


def test_one_method_that_fails_costs_no_other(zoo, states, capsys):
    zoo.server.files["/random.pth"] = b"<p>no weights"
    del zoo.server.files["/triplet.pth"]
    zoo.content["weights"]["byol"] = {
        **zoo.content["weights"]["triplet"],
        "files": [{"name": "b.pth", "urls": [zoo.server.url("b.pth")]}],
    }
    zoo.server.files["/b.pth"] = states["triplet"]
    zoo.write()
    assert cli.main(["pull", "weights"]) == 2
    out = capsys.readouterr()
    assert out.err.endswith(": 2 of 3 failed, see above; the others are done\n")
    assert "weights --method random: " in out.out
    assert (zoo.folder / "byol" / "record.json").exists()


@pytest.mark.parametrize(
    ("method", "file", "message"),
    [
        ("triplet", "random", "every BN statistic is its default, expected pretrained weights"),
        ("random", "triplet", "BN has seen images, expected initial weights"),
    ],
)
def test_weights_of_the_other_kind_are_refused(zoo, states, capsys, method, file, message):
    zoo.server.files[f"/{method}.pth"] = states[file]
    assert cli.main(["pull", "weights", "--method", method]) == 2
    assert message in capsys.readouterr().err
    assert not (zoo.folder / "SHA256SUMS").exists()
    assert not (zoo.folder / method / f"{method}.pth").exists()


class Evil:
    def __reduce__(self):
        return print, ("code of the file ran",)


@pytest.mark.parametrize(
    "content", [saved({"a": torch.ones(1)}), pickle.dumps(Evil()), b"\x80"], ids=["tensors", "code", "cut"]
)
def test_what_is_no_resnet_is_neither_run_nor_recorded(zoo, states, tmp_path, capsys, content):
    zoo.server.files["/triplet.pth"] = content
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    out = capsys.readouterr()
    assert "triplet.pth" in out.err
    assert "code of the file ran" not in out.out
    assert not (zoo.folder / "SHA256SUMS").exists()
    (tmp_path / "mine.pth").write_bytes(states["triplet"])  # nor is it in the way of the right one
    assert cli.main(["pull", "weights", "--method", "triplet", "--from", str(tmp_path / "mine.pth")]) == 0


def test_the_file_of_another_method_is_not_recorded(zoo, capsys):
    zoo.content["weights"]["moco"] = zoo.content["weights"]["triplet"]
    zoo.write()
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 0
    assert cli.main(["pull", "weights", "--method", "moco"]) == 2
    assert "moco/triplet.pth would be byte for byte triplet/triplet.pth" in capsys.readouterr().err
    assert (zoo.folder / "SHA256SUMS").read_text().count("\n") == 1


def test_a_form_that_leads_to_another_host_is_not_followed(zoo, capsys):
    page = FORM.format(action=zoo.server.url("download").replace("127.0.0.1", "localhost"))
    zoo.server.pages["/download"] = refuses(page.encode())
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    assert "sent a web page instead of the file" in capsys.readouterr().err
    assert len(zoo.server.asked) == 1


def test_a_damaged_lock_is_one_line(zoo, capsys):
    (zoo.configs / "SHA256SUMS").write_text("nonsense\n")
    assert cli.main(["pull", "weights", "--method", "triplet"]) == 2
    assert (
        "SHA256SUMS, line 1: expected a SHA-256, two blanks, method/file, found 'nonsense'"
        in capsys.readouterr().err
    )


def test_methods_recorded_side_by_side_all_stay(places):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: checksums.Lock().record(f"{i}/w.pth", f"{i:064x}"), range(40)))
    assert all(checksums.Lock().find(f"{i}/w.pth") == f"sha256:{i:064x}" for i in range(40))
