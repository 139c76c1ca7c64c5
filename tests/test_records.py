import hashlib
import json
import multiprocessing
import os
import sys
import time

import pytest

import triplet
from tests.support.copy_stage import Stage
from tests.support.killed_at import Killer
from triplet import files, paths, records
from triplet.errors import KitError
from triplet.report.crate import all_records

BEGUN = {"started": "2026-01-01T00:00:00+00:00", "seconds": 1.0}


@pytest.fixture
def stage(places):
    return Stage(places)


def test_a_record_says_everything(stage):
    record = stage.perform(seed=3)
    assert records.read(stage.folder) == record
    assert record.outputs["copy"].path == "checkpoints/run/copy/output.txt"
    assert record.outputs["copy"].sha256 == record.inputs["text"].sha256
    assert record.outputs["copy"].sha256.startswith("7692c3ad3540bb80")  # sha256 of "one"
    assert record.results == {"length": 3}
    assert record.seed == 3
    assert record.versions["torch"].startswith("2.")
    assert record.hardware["cores"] >= 1
    assert 0 <= record.seconds < 60
    assert not (stage.folder / "started.json").exists()


@pytest.mark.parametrize(("stage_name", "refused"), [("copy", True), ("pull", False)])
def test_an_old_record_is_refused_where_its_form_changed(stage, stage_name, refused):
    stage.perform()
    written = stage.folder / "record.json"
    old = json.loads(written.read_text()) | {"kit": "0.1.0", "stage": stage_name}
    written.write_text(json.dumps(old))
    if not refused:
        assert records.read(stage.folder).kit == "0.1.0"
        return
    with pytest.raises(KitError, match=r"made by version 0\.1\.0 of the kit.* --force") as caught:
        stage.perform()
    assert "\n" not in str(caught.value)
    assert stage.worked == 1
    assert stage.perform(force=True).kit == triplet.__version__


def test_a_record_names_the_image_that_made_it(stage, monkeypatch):
    """Records from before there were images, or from outside one, read as having none."""
    stage.perform()
    written = stage.folder / "record.json"
    old = json.loads(written.read_text())
    assert old.pop("image") is None
    written.write_text(json.dumps(old))
    assert records.read(stage.folder).image is None
    monkeypatch.setenv("TRIPLET_IMAGE", "registry/triplet-kit@sha256:0")
    assert stage.perform(force=True).image == "registry/triplet-kit@sha256:0"


def test_a_done_stage_does_nothing_until_forced(stage, capsys):
    first = stage.perform()
    assert stage.perform() == first
    assert "done already" in capsys.readouterr().out
    assert stage.worked == 1
    stage.perform(force=True)
    assert stage.worked == 2


def test_what_is_derived_is_replaced_without_asking(stage):
    stage.perform(derived=True)
    (stage.folder / "left.txt").touch()
    assert stage.perform(derived=True).config["rate"] == 1
    assert stage.worked == 1
    assert stage.perform(derived=True, config={"rate": 2}).config["rate"] == 2
    assert stage.worked == 2
    assert not (stage.folder / "left.txt").exists()
    with pytest.raises(KeyboardInterrupt):
        stage.perform(derived=True, config={"rate": 3}, fail=KeyboardInterrupt())
    (stage.folder / "left.txt").touch()
    stage.perform(derived=True, config={"rate": 3})
    assert (stage.folder / "left.txt").exists(), "the same plan goes on"


def test_a_changed_input_or_config_is_named_and_nothing_is_lost(stage):
    stage.perform()
    with pytest.raises(KitError, match=r"config\.rate 1 -> 2\); add --force"):
        stage.perform(config={"rate": 2, "pair": (1, 2)})
    stage.input.write_text("two!")
    with pytest.raises(KitError, match="input text 7692c3ad3540 -> "):
        stage.perform()
    assert stage.worked == 1
    assert (stage.folder / "output.txt").read_text() == "one"
    stage.perform(force=True)
    assert (stage.folder / "output.txt").read_text() == "two!"


def test_a_lost_or_cut_output_is_made_again(stage):
    stage.perform()
    (stage.folder / "output.txt").write_text("o")
    stage.perform()
    (stage.folder / "output.txt").unlink()
    stage.perform()
    assert stage.worked == 3


def test_a_failed_stage_is_not_done_and_goes_on(stage):
    stage.perform()
    with pytest.raises(RuntimeError):
        stage.perform(force=True, fail=RuntimeError("broke"))
    assert records.read(stage.folder) is None
    with pytest.raises(KitError, match=r"config\.rate"):  # what is half done is protected as well
        stage.perform(config={"rate": 2, "pair": (1, 2)})
    assert stage.perform().results == {"length": 3}


def test_force_empties_the_folder(stage):
    stage.perform()
    (stage.folder / "left").mkdir()
    (stage.folder / "left" / "over").touch()
    stage.perform(force=True)
    assert not (stage.folder / "left").exists()


def test_files_of_unknown_origin_are_neither_used_nor_lost(stage):
    stage.folder.mkdir(parents=True)
    (stage.folder / "step_0000001.pth").touch()
    with pytest.raises(KitError, match="holds files of unknown origin; add --force"):
        stage.perform()
    assert (stage.folder / "step_0000001.pth").exists()
    stage.perform(force=True)
    assert not (stage.folder / "step_0000001.pth").exists()


def test_a_data_folder_that_is_not_ours_is_never_emptied(places):
    folder = places / "datasets" / "coco"
    folder.mkdir(parents=True)
    (folder / "mine.jpg").touch()
    records.perform("pull", folder, config={}, inputs={}, work=lambda job: None, force=True)
    assert (folder / "mine.jpg").exists()
    with pytest.raises(KitError, match="held files before the kit worked there"):
        records.perform("pull", folder, config={}, inputs={}, work=lambda job: None, force=True)
    assert (folder / "mine.jpg").exists()


def test_a_folder_as_output_is_watched(places):
    folder = paths.stage_folder("run", "pull")

    def work(job):
        (job.folder / "images").mkdir(exist_ok=True)
        (job.folder / "images" / "1.png").write_text("1")
        job.outputs["images"] = job.folder / "images"
        worked.append(1)

    worked: list[int] = []
    for expected in (1, 1):
        records.perform("pull", folder, config={}, inputs={}, work=work)
        assert len(worked) == expected
    (folder / "images" / "1.png").unlink()
    records.perform("pull", folder, config={}, inputs={}, work=work)
    assert len(worked) == 2


def test_a_child_does_not_keep_the_lock(stage):
    """A loader process that outlives its killed parent must not block the restart."""
    children = []

    def work(job):
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        children.append(pid)

    records.perform("copy", stage.folder, config={}, inputs={}, work=work)
    try:
        records.perform("copy", stage.folder, config={}, inputs={}, work=lambda job: None, force=True)
    finally:
        os.kill(children[0], 9)
        os.waitpid(children[0], 0)


def _hold(folder, ready, release):
    def work(job):
        ready.set()
        release.wait(30)

    records.perform("copy", folder, config={}, inputs={}, work=work)


def test_two_processes_do_not_share_a_folder(stage):
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(stage.folder, ready, release))
    process.start()
    assert ready.wait(60)
    with pytest.raises(KitError, match="another process is at work"):
        stage.perform()
    release.set()
    process.join()
    assert process.exitcode == 0


def test_folders_are_described_by_names_and_sizes(places):
    folder = places / "datasets" / "images"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(b"123")
    (folder / ".hidden").touch()
    before = records.Artifact.of(folder)
    assert (before.path, before.files, before.bytes) == ("datasets/images", 1, 3)
    (folder / "a" / "1.png").rename(folder / "a" / "2.png")
    renamed = records.Artifact.of(folder)
    assert renamed.sha256 != before.sha256
    (folder / "a" / "2.png").write_bytes(b"1234")
    assert records.Artifact.of(folder).sha256 != renamed.sha256, "its size counts"
    assert before.sha256 == hashlib.sha256(b"3 a/1.png\n").hexdigest()
    with pytest.raises(KitError, match="nothing at"):
        records.Artifact.of(folder / "none")


def test_require_says_what_to_run(places):
    with pytest.raises(KitError, match="run first: triplet convert --run triplet"):
        records.require("triplet", "convert")


def test_record_is_plain_json(stage):
    stage.perform()
    content = json.loads((stage.folder / "record.json").read_text())
    assert content["stage"] == "copy"
    assert content["inputs"]["text"]["path"].startswith("/")


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints//etc/passwd",
        "checkpoints/../../secret",
        "datasets//etc/passwd",
        "reports/a/../../../b",
        "/etc/passwd",
        "../secret",
        "checkpoints/run/copy/link",
        "checkpoints/run/copy/folder/secret",
    ],
)
def test_an_output_outside_the_kits_places_is_refused_everywhere(stage, places, path):
    stage.perform()
    secret = places / "secret"
    secret.write_text("secret")
    (stage.folder / "link").symlink_to(secret)
    (stage.folder / "folder").symlink_to(places)
    written = stage.folder / "record.json"
    content = json.loads(written.read_text())
    content["outputs"]["copy"]["path"] = path
    written.write_text(json.dumps(content))
    for reading in (
        lambda: records.read(stage.folder),
        lambda: records.require("run", "copy"),
        lambda: stage.perform(),
        all_records,
    ):
        with pytest.raises(KitError, match=r"lies outside of .*remove that record"):
            reading()


def test_a_data_set_may_be_a_link_to_another_disk(stage, places):
    (places / "disk").mkdir()
    (places / "datasets").mkdir()
    (places / "datasets" / "mine").symlink_to(places / "disk")

    def work(job):
        (job.folder / "images.txt").write_text("")
        job.outputs["images"] = job.folder / "images.txt"

    folder = places / "datasets" / "mine"
    assert records.perform("pull", folder, config={}, inputs={}, work=work) == records.read(folder)


@pytest.mark.parametrize("kind", ["file", "dangling link", "file above it"])
def test_what_stands_in_place_of_a_folder_is_named(stage, kind):
    place = stage.folder.parent if kind == "file above it" else stage.folder
    place.parent.mkdir(parents=True)
    place.symlink_to("nowhere") if kind == "dangling link" else place.touch()
    with pytest.raises(KitError, match="is a file or a link to nothing, expected a folder; move it away"):
        stage.perform()


def test_force_does_not_empty_what_another_stage_has_made(stage):
    stage.perform()
    other = dict(config={}, inputs={}, work=lambda job: None, force=True)
    with pytest.raises(KitError, match=r"run/copy holds a copy, which --force would delete"):
        records.perform("pull", stage.folder, **other)
    assert (stage.folder / "output.txt").exists()
    (stage.folder / "record.json").rename(stage.folder / "started.json")  # as one that is in the middle
    content = json.loads((stage.folder / "started.json").read_text())
    plan = {"plan": {k: content[k] for k in ("stage", "config", "inputs")}, "started": "", "seconds": 0}
    (stage.folder / "started.json").write_text(json.dumps(plan))
    with pytest.raises(KitError, match="holds a copy"):
        records.perform("pull", stage.folder, **other)
    assert stage.perform(force=True)


def test_what_a_killed_process_was_writing_is_deleted_in_the_end(stage):
    stage.folder.mkdir(parents=True)
    (stage.folder / ".lock").touch()
    (stage.folder / ".model.pth.4711.tmp").touch()
    files.write_text(stage.folder / "started.json", json.dumps(BEGUN | {"plan": stage.plan()}))
    stage.perform()
    assert sorted(p.name for p in stage.folder.iterdir()) == [".lock", "output.txt", "record.json"]


def test_force_does_not_empty_a_folder_of_other_stages(stage, places):
    stage.perform()
    with pytest.raises(KitError, match=r"run is not a stage's folder but holds checkpoints/run/copy"):
        records.perform(
            "copy", stage.folder.parent, config={}, inputs={}, work=lambda job: None, force=True
        )
    assert (stage.folder / "output.txt").exists()


def test_scratch_files_are_deleted_after_the_record_is_written(stage):
    """A kill at any change to a file leaves the one or the other, and the next call tidies up."""
    step, survived, number = stage.folder / "step_1", False, 0
    while not survived:
        number += 1
        stage.folder.mkdir(parents=True, exist_ok=True)
        for left in stage.folder.iterdir():
            left.unlink()
        files.write_text(stage.folder / "started.json", json.dumps(BEGUN | {"plan": stage.plan()}))
        step.write_text("state")
        child = os.fork()
        if not child:
            sys.addaudithook(Killer("output.txt", number))
            stage.perform(upkeep=records.Upkeep(scratch=("step_*",)))
            os._exit(0)
        survived = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        recorded = (stage.folder / "record.json").exists()
        assert recorded or step.exists(), number
        stage.perform(upkeep=records.Upkeep(scratch=("step_*",)))
        assert sorted(p.name for p in stage.folder.iterdir()) == [".lock", "output.txt", "record.json"]
    assert number > 5
