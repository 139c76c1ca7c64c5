"""What was recorded is still so, here and in an archive on another machine."""

import json
import shutil
import zipfile

import pytest

from tests.conftest import KIT
from tests.support import run_records
from triplet import cli, files, paths
from triplet.report import crate, provenance, verify


def settle(patch, folder):
    patch.chdir(KIT)
    for name in ("datasets", "checkpoints", "reports"):
        patch.setenv(f"TRIPLET_{name.upper()}", str(folder / name))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Places with an exported crate of a run whose numbers can be computed again, and of another."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        settle(patch, folder)
        run_records.evaluated(folder)
        run_records.run("triplet", 41.5, 36.0, pictures=2)
        assert cli.main(["report", "--export", str(folder / "runs.zip")]) == 0
    return folder


@pytest.fixture
def archive(world, tmp_path, monkeypatch):
    """A copy of the crate, on the machine that made it."""
    settle(monkeypatch, world)
    return shutil.copy(world / "runs.zip", tmp_path / "runs.zip")


def wrong(found):
    return [finding for finding in found if finding.verdict == verify.WRONG]


def again(found):
    return [finding for finding in found if "evaluated again" in finding.what]


def changed(archive, name, content):
    """The archive with another content of a member; None leaves it out."""
    with zipfile.ZipFile(archive) as before:
        members = {info.filename: before.read(info) for info in before.infolist()}
    members[name] = content
    with zipfile.ZipFile(archive, "w") as after:
        for member, data in members.items():
            if data is not None:
                after.writestr(member, data)


def test_what_is_as_recorded_matches(places, capsys):
    run_records.evaluated(places)
    run_records.run("triplet", 41.5, 36.0, pictures=2)
    assert cli.main(["report", "--verify"]) == 0
    assert " 0 do not" in capsys.readouterr().out
    assert [finding.verdict for finding in again(verify.local())] == [verify.OK]


def test_a_changed_output_is_flagged(places, capsys):
    run_records.run("triplet", 41.5, 36.0)
    (paths.stage_folder("triplet", "convert") / "weights").write_text("other")
    (paths.stage_folder("triplet", "finetune") / "model").unlink()
    assert cli.main(["report", "--verify"]) == 2
    said = capsys.readouterr().out
    assert (
        "convert/record.json: weights DOES NOT MATCH: checkpoints/triplet/convert/weights has changed"
        in said
    )
    assert "finetune/model is gone" in said


def test_a_number_that_its_predictions_do_not_give_is_flagged(places):
    run_records.evaluated(places, shift=1.0)
    (found,) = again(verify.local())
    assert found.verdict == verify.WRONG
    assert found.why.startswith("AP ")


def test_without_the_annotations_it_says_so(places):
    run_records.evaluated(places).unlink()
    (found,) = [finding for finding in verify.local() if finding.verdict == verify.ABSENT]
    assert "triplet pull" in found.why


def test_an_archive_is_a_crate_that_verifies(archive, world, capsys):
    with zipfile.ZipFile(archive) as opened:
        names = opened.namelist()
        graph = {each["@id"]: each for each in json.loads(opened.read(crate.METADATA))["@graph"]}
    assert names[0] == crate.METADATA
    assert graph[crate.METADATA]["about"] == {"@id": "./"}
    assert graph[crate.METADATA]["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert {part["@id"] for part in graph["./"]["hasPart"]} == set(names) - {crate.METADATA}
    page = graph["reports/index.html"]
    assert page["sha256"] == files.sha256(world / "reports" / "index.html")
    action = graph["#checkpoints/triplet/finetune/record.json"]
    assert action["@type"] == "CreateAction"
    assert {"@id": "checkpoints/triplet/finetune/metrics.jsonl"} in action["result"]
    assert "checkpoints/demo/seed0/triplet/eval/log.txt" in names
    assert "checkpoints/demo/seed0/triplet/eval/coco_instances_results.json" in names
    capsys.readouterr()
    assert cli.main(["report", "--verify", str(archive)]) == 0
    assert "do not" in capsys.readouterr().out


def test_another_machine_verifies_it(archive, monkeypatch, tmp_path):
    """Without the checkpoints; the numbers where it has the data set."""
    monkeypatch.setenv("TRIPLET_CHECKPOINTS", str(tmp_path / "none"))
    monkeypatch.setenv("TRIPLET_REPORTS", str(tmp_path / "none"))
    found = verify.archived(archive)
    assert wrong(found) == []
    assert [finding.verdict for finding in again(found)] == [verify.OK]
    monkeypatch.setenv("TRIPLET_DATASETS", str(tmp_path / "none"))
    found = verify.archived(archive)
    assert wrong(found) == again(found) == []
    assert any("triplet pull" in finding.why for finding in found)


def test_the_weights_are_not_in_it(places):
    run_records.perform("triplet", "convert", texts={"detectron2.pkl": "large", "metrics": "{}\n"})
    path = places / "runs.zip"
    assert cli.main(["report", "--export", str(path)]) == 0
    with zipfile.ZipFile(path) as opened:
        assert not any(name.endswith(".pkl") for name in opened.namelist())
        assert "checkpoints/triplet/convert/metrics.jsonl" in opened.namelist()
    assert wrong(verify.archived(path)) == []


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("reports/results.csv", b"nothing", "has changed"),
        ("checkpoints/triplet/finetune/metrics.jsonl", b"{}", "has changed"),
        ("checkpoints/triplet/finetune/metrics.jsonl", None, "listed and not there"),
        ("checkpoints/triplet/eval/pictures/1.jpg", None, "listed and not there"),
        ("more.txt", b"more", "not in the list"),
    ],
)
def test_what_was_changed_in_an_archive_is_flagged(archive, name, content, why):
    changed(archive, name, content)
    assert any(finding.what == name and why in finding.why for finding in wrong(verify.archived(archive)))
    assert cli.main(["report", "--verify", str(archive)]) == 2


def test_a_table_that_the_records_do_not_give_is_flagged(archive):
    """Even where somebody has mended the list of hashes."""
    with zipfile.ZipFile(archive) as opened:
        metadata = json.loads(opened.read(crate.METADATA))
        numbers = json.loads(opened.read(verify.RESULTS))
    numbers[0]["value"] += 1
    text = json.dumps(numbers).encode()
    changed(archive, verify.RESULTS, text)
    entry = next(each for each in metadata["@graph"] if each["@id"] == verify.RESULTS)
    entry["sha256"] = verify.hashlib.sha256(text).hexdigest()
    changed(archive, crate.METADATA, json.dumps(metadata).encode())
    (found,) = wrong(verify.archived(archive))
    assert (found.what, found.why) == (verify.RESULTS, "is not what the records say")


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "a\\..\\evil", "folder/"])
def test_an_archive_whose_names_lead_elsewhere_is_refused(archive, name, capsys):
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(zipfile.ZipInfo(name), "evil")
    assert cli.main(["report", "--verify", str(archive)]) == 2
    assert "which no crate of the kit does" in capsys.readouterr().err


def test_a_link_in_an_archive_is_refused(archive, capsys):
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr(info, "/etc/passwd")
    assert cli.main(["report", "--verify", str(archive)]) == 2
    assert "'link'" in capsys.readouterr().err


def test_an_archive_cannot_read_outside_the_data_sets(archive, world):
    secret = world / "secret.json"
    secret.write_text("{}")
    name = "checkpoints/demo/seed0/triplet/eval/record.json"
    with zipfile.ZipFile(archive) as opened:
        record = json.loads(opened.read(name))
    for path in (str(secret), "datasets/../secret.json"):
        record["inputs"]["annotations"] = {"path": path, "sha256": files.sha256(secret), "bytes": 2}
        changed(archive, name, json.dumps(record).encode())
        assert again(verify.archived(archive)) == []


def test_an_archive_that_grows_without_bound_is_refused(archive, capsys):
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros.txt", bytes(30 << 20))
    assert cli.main(["report", "--verify", str(archive)]) == 2
    assert "'zeros.txt'" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"[{}]", b"{}", b"[1", b"[]", b'[{"image_id": 99, "bbox": 1}]'])
def test_predictions_of_another_shape_are_flagged(archive, content):
    changed(archive, "checkpoints/demo/seed0/triplet/eval/coco_instances_results.json", content)
    assert any("eval/record.json: numbers" in finding.what for finding in wrong(verify.archived(archive)))


@pytest.mark.parametrize("results", [{"bbox": 3}, {"bbox": {"AP": []}}])
def test_a_record_of_another_shape_is_no_traceback(archive, results):
    name = "checkpoints/triplet/eval/record.json"
    with zipfile.ZipFile(archive) as opened:
        record = json.loads(opened.read(name))
    changed(archive, name, json.dumps(record | {"results": results}).encode())
    assert cli.main(["report", "--verify", str(archive)]) == 2


def test_folders_are_listed_in_the_order_of_a_walk(places):
    folder = places / "checkpoints" / "x"
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "c/a.txt", "a.txt", "b/a.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    walked = [name for name, _ in files.walk(folder)]
    assert sorted(walked, key=verify._walked) == walked


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_what_is_no_crate_is_refused_in_one_line(places, content, capsys):
    path = places / "x.zip"
    path.write_bytes(content)
    assert cli.main(["report", "--verify", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "x.zip is damaged or not a crate" in line


def test_a_foreign_archive_is_refused(places, capsys):
    with zipfile.ZipFile(places / "x.zip", "w") as opened:
        opened.writestr("a.txt", "a")
    assert cli.main(["report", "--verify", str(places / "x.zip")]) == 2
    assert "what triplet report --export wrote" in capsys.readouterr().err


def test_a_number_goes_back_through_its_records(places):
    run_records.run("triplet", 41.5, 36.0)
    assert cli.main(["report"]) == 0
    document = json.loads((places / "reports" / "provenance.json").read_text())
    stages = [name.split("/")[2] for name in document["numbers"][0]["chain"]]
    assert stages == ["eval", "finetune", "convert", "pretrain"]
    finetune = document["records"]["checkpoints/triplet/finetune/record.json"]
    assert {
        "config",
        "command",
        "commit",
        "image",
        "seed",
        "hardware",
        "versions",
        "inputs",
    } <= finetune.keys()
    assert provenance.chain("checkpoints/none/record.json", {}) == []


def test_own_images_and_weights_for_and_of_others_are_not_packed(places):
    run_records.perform(
        "method", "predict/photos", texts={"results.json": "[]", "pictures/me.jpg": "private"}
    )
    run_records.perform("method", "export/safetensors", texts={"backbone.safetensors": "weights"})
    run_records.perform(
        "weights", "hub/model.bin", texts={"model.bin": "weights"}, config={"hub": "hf://a/b/model.bin"}
    )
    pulled = paths.root("checkpoints") / "weights" / "hub" / "model.bin" / "record.json"
    pulled.write_text(pulled.read_text().replace('"stage": "hub"', '"stage": "pull"'))
    crate.export(places / "runs.zip", crate.all_records(), [])
    with zipfile.ZipFile(places / "runs.zip") as archive:
        assert set(archive.namelist()) == {crate.METADATA, paths.portable(pulled)}
