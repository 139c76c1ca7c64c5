"""What a stage makes of damaged markers, failed starts, inputs that are replaced, and odd names."""

import hashlib
import os

import pytest

from tests.support.copy_stage import Stage
from triplet import paths, records
from triplet.errors import KitError


@pytest.fixture
def stage(places):
    return Stage(places)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_damaged_record_is_named_and_the_stage_goes_on(stage, capsys, content):
    stage.perform()
    (stage.folder / "record.json").write_bytes(content)
    with pytest.raises(KitError, match=r"record\.json is damaged; run its stage again"):
        records.read(stage.folder)
    with pytest.raises(RuntimeError):
        stage.perform(fail=RuntimeError())
    assert (stage.folder / "record.json").read_bytes() == content, "a kill meanwhile forgets nothing"
    capsys.readouterr()
    assert stage.perform().results == {"length": 3}
    assert "record.json is damaged: going on from what else is in checkpoints/run/copy" in (
        said := capsys.readouterr().out
    )
    assert "--force" not in said
    assert stage.perform() == records.read(stage.folder)


@pytest.mark.parametrize("keep", [0, 9])
def test_a_cut_beginning_costs_nothing(stage, capsys, keep):
    """Whatever is unfinished there is gone on from, since nothing says that it is of another plan."""
    with pytest.raises(RuntimeError):
        stage.perform(fail=RuntimeError())
    (stage.folder / "step_1").touch()
    os.truncate(stage.folder / "started.json", keep)
    assert records.begun(stage.folder) is None
    assert stage.perform().results == {"length": 3}
    assert (stage.folder / "step_1").exists()
    assert "started.json is damaged: going on" in capsys.readouterr().out


def test_a_failed_start_is_in_nobodys_way(stage):
    """What it leaves is no work: logs and what it set out to do."""

    def fail(job):
        for name in ("log.txt", "metrics.json", "unreadable.txt", ".x.7.tmp"):
            (job.folder / name).touch()
        (job.folder / "tensorboard").mkdir()
        raise KitError("cut")

    with pytest.raises(KitError, match="cut"):
        records.perform("copy", stage.folder, config={"rate": 9}, inputs={}, work=fail)
    assert stage.perform().results == {"length": 3}
    assert not (stage.folder / "log.txt").exists()


def test_what_force_would_delete_is_told(stage):
    with pytest.raises(RuntimeError):
        stage.perform(fail=RuntimeError())
    with pytest.raises(KitError, match=r"-> 2\), with 7 steps trained; add --force to delete that"):
        stage.perform(config={"rate": 2}, trained=lambda folder: "with 7 steps trained")
    with pytest.raises(KitError, match=r"-> 2\); add --force to replace it"):
        stage.perform(config={"rate": 2}, trained=lambda folder: "")
    assert (stage.folder / "output.txt").exists()


@pytest.mark.parametrize("into", ["file", "folder"])
def test_an_input_that_is_replaced_meanwhile_is_not_recorded(places, into):
    folder, given = paths.stage_folder("run", "copy"), places / "given"
    if into == "folder":
        given.mkdir()
        (given / "image.png").write_text("one")
    else:
        given.write_text("one")
    bare = {"config": {}, "inputs": {"weights": given}}

    def replace(job):
        (job.folder / "output").touch()
        path = given / "image.png" if into == "folder" else given
        other = places / "other"
        other.write_text("other")
        other.replace(path)

    with pytest.raises(KitError, match=r"given was replaced while the stage worked.*add --force") as caught:
        records.perform("copy", folder, work=replace, **bare)
    assert "\n" not in str(caught.value)
    assert records.read(folder) is None
    with pytest.raises(KitError, match=r"holds a copy of something else \(input weights "):
        records.perform("copy", folder, work=lambda job: None, **bare)
    assert records.perform("copy", folder, work=lambda job: None, force=True, **bare)


def test_long_work_checks_its_inputs_before_it_begins(stage):
    """A file that is replaced later was read already, and costs no training."""

    def work(replace_first):
        def steps(job):
            other = stage.input.with_name("other")
            other.write_text("other")
            if replace_first:
                other.replace(stage.input)
            job.check_inputs()
            (job.folder / "step_1").touch()
            other.replace(stage.input)

        return steps

    bare = {"config": {}, "inputs": {"text": stage.input}}
    with pytest.raises(KitError, match=r"input\.txt was replaced .*run the same command again"):
        records.perform("copy", stage.folder, work=work(True), **bare)
    before = records.Artifact.of(stage.input)
    stage.input.write_text("two")
    record = records.perform("copy", stage.folder, work=work(False), **bare)
    assert record.inputs["text"].sha256 != before.sha256
    stage.input.write_text("three")
    seen = records.identities(bare["inputs"])
    stage.input.write_text("four!")
    with pytest.raises(KitError, match="was replaced"):  # between its reading and its hashing
        records.perform("copy", paths.stage_folder("b", "copy"), seen=seen, work=work(False), **bare)


def test_an_input_that_is_touched_or_written_again_is_the_same(stage):
    def work(job):
        stage.input.write_text("one")
        os.utime(stage.input, (1, 1))

    assert records.perform("copy", stage.folder, config={}, inputs={"text": stage.input}, work=work)


def test_names_that_are_bytes_are_hashed_and_recorded(places):
    """As of an archive from a Latin-1 system."""
    folder = places / "datasets" / "images"
    folder.mkdir(parents=True)
    name = os.fsdecode("caf\xe9.png".encode("latin-1"))
    (folder / name).write_bytes(b"12")
    found = records.Artifact.of(folder)
    assert found.sha256 == hashlib.sha256(b"2 caf\xe9.png\n").hexdigest()
    assert records.Artifact.of(folder / name).path == "datasets/images/caf%E9.png"
    stage = paths.stage_folder("run", "copy")

    def work(job):
        job.results["unreadable"] = [name]

    config = {"image": name}
    inputs = {"image": folder / name}
    record = records.perform("copy", stage, config=config, inputs=inputs, work=work)
    assert record.results["unreadable"] == ["caf%E9.png"]
    assert records.perform("copy", stage, config=config, inputs=inputs, work=work) == record
