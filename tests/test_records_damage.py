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
        stage.perform(
            config={"rate": 2}, upkeep=records.Upkeep(trained=lambda folder: "with 7 steps trained")
        )
    with pytest.raises(KitError, match=r"-> 2\); add --force to replace it"):
        stage.perform(config={"rate": 2}, upkeep=records.Upkeep(trained=lambda folder: ""))
    assert (stage.folder / "output.txt").exists()


def test_what_is_unfinished_says_itself_of_which_plan_it_is(stage, capsys):
    """Where what the stage set out to do is damaged or gone, its checkpoints are asked."""
    theirs = records.Plan(**stage.plan())
    other = theirs.model_copy(update={"config": {"rate": 7, "pair": [1, 2]}})
    with pytest.raises(RuntimeError):
        stage.perform(fail=RuntimeError())
    (stage.folder / "step_1").touch()
    for damage in (lambda path: os.truncate(path, 9), os.unlink):
        damage(stage.folder / "started.json")
        others = records.Upkeep(trained=lambda folder: "with 7 steps trained", planned=lambda folder: other)
        message = (
            r"holds a copy of something else \(config\.rate 7 -> 1\), with 7 steps trained; add --force"
        )
        with pytest.raises(KitError, match=message):
            stage.perform(upkeep=others)
        assert (stage.folder / "step_1").exists()
        assert records.begun(stage.folder, others) == other
    assert stage.worked == 1
    assert stage.perform(upkeep=records.Upkeep(planned=lambda folder: theirs)).results == {"length": 3}
    assert (stage.folder / "step_1").exists()


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


def test_a_time_of_writing_that_is_set_back_hides_no_change(stage):
    def rewrite(job):
        before = stage.input.stat()
        stage.input.write_text("x" * before.st_size)
        os.utime(stage.input, ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(KitError, match=r"input\.txt was replaced while the stage worked"):
        records.perform("copy", stage.folder, config={}, inputs={"text": stage.input}, work=rewrite)
    assert records.read(stage.folder) is None


@pytest.fixture
def folder(places):
    """A folder of two images, one of them in a folder of its own, behind a link."""
    (places / "elsewhere").mkdir()
    (places / "given").mkdir()
    (places / "given" / "b").symlink_to(places / "elsewhere")
    for name, written in (("a.png", 1000), ("b/c.png", 2000)):
        (places / "given" / name).write_text("one")
        os.utime(places / "given" / name, (written, written))
    return places / "given"


def replaced(path):
    other = path.with_name("other")
    other.write_text("two")
    os.utime(other, ns=(0, 1000 * 10**9 + 1))
    other.replace(path)


def exchanged(one, other):
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda folder: replaced(folder / "a.png"), 1),
        (lambda folder: replaced(folder / "b" / "c.png"), 1),
        (lambda folder: (folder / "a.png").write_text("two"), 1),
        (lambda folder: exchanged(folder / "a.png", folder / "b" / "c.png"), 2),
        (lambda folder: [os.utime(folder / name) for name in ("a.png", "b/c.png")], 2),
    ],
)
def test_a_file_replaced_by_one_of_its_size_is_noticed(stage, folder, long, change, count):
    def work(job):
        if long:
            job.check_inputs()
        (job.folder / "step_1").touch()
        change(folder)

    bare = {"config": {}, "inputs": {"images": folder}}
    advice = "run the same command again to take it" if long else "may be of either; add --force"
    message = rf"given: {count} of 2 files were changed or removed \(.*\.png is another one.*{advice}"
    with pytest.raises(KitError, match=message):
        records.perform("copy", stage.folder, work=work, **bare)
    assert records.read(stage.folder) is None
    assert (stage.folder / "step_1").exists()
    # Since names and sizes are the same, it goes on from what is there.
    assert records.perform("copy", stage.folder, work=lambda job: None, **bare)
    assert (stage.folder / "step_1").exists()


def test_a_new_input_file_is_harmless_and_a_removed_one_not(stage, folder):
    def work(job):
        job.check_inputs()
        (folder / "new.png").write_text("new")

    bare = {"config": {}, "inputs": {"images": folder}}
    before = records.Artifact.of(folder)
    assert records.perform("copy", stage.folder, work=work, **bare).inputs["images"] == before

    def remove(job):
        job.check_inputs()
        (folder / "a.png").unlink()

    other = paths.stage_folder("other", "copy")
    with pytest.raises(KitError, match=r"given: 1 of 3 files were changed or removed while the stage"):
        records.perform("copy", other, work=remove, **bare)
    assert records.read(other) is None


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
