"""Records through every change of a plan, of an output and of a listing, and the time of all sessions."""

import hashlib
import json
import os
import time

import pytest

from triplet import paths, records
from triplet.errors import KitError

CONFIG = {
    "rate": 0.5,
    "pair": (1, 2),
    "deep": {"name": "a", "flag": True, "none": None, "list": [{"x": 1}]},
}
LEFT_OUT = object()


class Stage:
    """A stage of one output that counts how often it worked; its inputs are two files and a folder."""

    def __init__(self, places):
        self.folder, self.worked = paths.stage_folder("run", "copy"), 0
        self.inputs = {name: places / name for name in ("text", "other", "folder")}
        for name in ("text", "other"):
            self.inputs[name].write_text(name)
        self.inputs["folder"].mkdir()
        for name in ("a", "b"):
            (self.inputs["folder"] / name).write_text(name)

    def perform(self, config=CONFIG, fail=None, slow=0.0, during=None, **more):
        def work(job):
            self.worked += 1
            time.sleep(slow)
            if during:
                during(job)
            if fail:
                raise fail
            (job.folder / "output").write_text("made")
            job.outputs["output"] = job.folder / "output"
            job.results["count"] = 3

        inputs = {name: path for name, path in self.inputs.items() if path is not None}
        return records.perform("copy", self.folder, config=config, inputs=inputs, work=work, **more)


@pytest.fixture
def stage(places):
    return Stage(places)


def with_(key, value):
    """The config with another value at a dotted key, or without it."""
    config = json.loads(json.dumps(CONFIG))
    *path, last = key.split(".")
    here = config
    for part in path:
        here = here[part]
    if value is LEFT_OUT:
        del here[last]
    else:
        here[last] = value
    return config


CHANGES = [
    ("rate", 0.25, r"config\.rate 0\.5 -> 0\.25"),
    ("rate", LEFT_OUT, r"config\.rate 0\.5 -> \(absent\)"),
    ("more", 1, r"config\.more \(absent\) -> 1"),
    ("deep.more", "x", r"config\.deep\.more \(absent\) -> x"),
    ("deep.name", "b", r"config\.deep\.name a -> b"),
    ("deep.name", LEFT_OUT, r"config\.deep\.name a -> \(absent\)"),
    ("deep.flag", False, r"config\.deep\.flag True -> False"),
    ("deep.none", 0, r"config\.deep\.none None -> 0"),
    ("deep.list", [{"x": 2}], r"config\.deep\.list \[\{'x': 1\}\] -> \[\{'x': 2\}\]"),
    ("pair", [2, 1], r"config\.pair \[1, 2\] -> \[2, 1\]"),
    ("pair", [1, 2, 3], r"config\.pair \[1, 2\] -> \[1, 2, 3\]"),
    ("deep", LEFT_OUT, r"config\.deep\.flag True -> \(absent\)"),
]


@pytest.mark.parametrize(("key", "value", "message"), CHANGES)
@pytest.mark.parametrize("finished", [True, False])
def test_any_change_of_the_config_is_another_plan(stage, key, value, message, finished):
    if finished:
        stage.perform()
    else:
        with pytest.raises(RuntimeError):
            stage.perform(during=lambda job: (job.folder / "part").touch(), fail=RuntimeError())
    with pytest.raises(KitError, match=message):
        stage.perform(with_(key, value))
    assert stage.worked == 1
    assert stage.perform(with_(key, value), force=True).config == json.loads(json.dumps(with_(key, value)))


def test_the_same_plan_written_otherwise_is_the_same(stage):
    stage.perform()
    other = {key: CONFIG[key] for key in reversed(CONFIG)} | {"pair": [1, 2]}
    stage.inputs = {name: stage.inputs[name] for name in reversed(stage.inputs)}
    stage.perform(other)
    assert stage.worked == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["text"].write_text("tex?"), "input text "),
        (lambda i: i.update(other=None), r"input other [0-9a-f]{12} -> \(absent\)"),
        (lambda i: i.update(more=i["text"]), r"input more \(absent\) -> [0-9a-f]{12}"),
        (lambda i: i.update(text=i["other"], other=i["text"]), "input other .*; input text "),
        (lambda i: (i["folder"] / "c").touch(), "input folder "),
        (lambda i: (i["folder"] / "a").unlink(), "input folder "),
        (lambda i: (i["folder"] / "a").rename(i["folder"] / "z"), "input folder "),
        (lambda i: (i["folder"] / "a").write_text("longer"), "input folder "),
    ],
)
def test_any_change_of_an_input_is_another_plan(stage, change, message):
    stage.perform()
    change(stage.inputs)
    with pytest.raises(KitError, match=message):
        stage.perform()
    assert stage.worked == 1


def test_another_stage_in_the_same_folder_is_another_plan(stage):
    first = stage.perform()
    assert records.Plan(**first.model_dump()).changes(first) == []
    assert (stage.folder / "record.json").exists()


def test_more_than_three_changes_are_counted(stage):
    stage.perform()
    config = {**with_("rate", 1), "a": 1, "b": 2, "c": 3, "d": 4}
    with pytest.raises(KitError, match=r"config\.a .*config\.b .*config\.c \(absent\) -> 3; 2 more\)"):
        stage.perform(config)


def test_a_folder_is_hashed_by_its_names_and_sizes_in_order(tmp_path):
    for name, size in (("b", 3), ("a/x", 20), ("a/y", 1)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    found = records.Artifact.of(tmp_path)
    assert (found.bytes, found.files) == (24, 3)
    assert found.sha256 == hashlib.sha256(b"3 b\n20 a/x\n1 a/y\n").hexdigest()
    (tmp_path / "a/x").write_bytes(bytes(21))
    (tmp_path / "b").write_bytes(bytes(2))
    other = records.Artifact.of(tmp_path)
    assert other.bytes == 24
    assert other.sha256 != found.sha256


def test_what_a_later_stage_reads_is_compared_by_its_content(stage):
    record = stage.perform()
    path = stage.folder / "output"
    assert records.output(record, "output") == path
    path.write_text("mad?")
    with pytest.raises(KitError, match="output is changed since it was recorded; run again:"):
        records.output(record, "output")
    path.unlink()
    with pytest.raises(KitError, match="output is gone though it was recorded"):
        records.output(record, "output")


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "a folder"])
def test_an_output_that_is_not_there_whole_is_made_again(stage, change):
    stage.perform()
    path = stage.folder / "output"
    path.unlink()
    if change == "a folder":
        path.mkdir()
    elif change != "gone":
        path.write_text({"shorter": "mad", "longer": "made!"}[change])
    if change == "a folder":
        with pytest.raises(OSError, match="directory"):
            stage.perform()
    else:
        stage.perform()
        assert path.read_text() == "made"
    assert stage.worked == 2


@pytest.mark.parametrize("lost", ["output", "second"])
def test_one_lost_output_of_two_is_enough(stage, lost):
    def second(job):
        (job.folder / "second").write_text("too")
        job.outputs["second"] = job.folder / "second"

    stage.perform(during=second)
    stage.perform(during=second)
    assert stage.worked == 1
    (stage.folder / lost).unlink()
    assert stage.perform(during=second).outputs.keys() == {"output", "second"}
    assert stage.worked == 2


def test_what_starts_over_in_a_folder_that_stays_works_again(stage):
    stage.perform()
    (stage.folder / "mine").touch()
    stage.perform(force=True, clear=False)
    assert stage.worked == 2
    assert (stage.folder / "mine").exists()
    stage.perform(with_("rate", 7), force=True, clear=False)
    assert stage.worked == 3


def test_while_a_stage_works_it_is_begun_and_not_done(stage):
    """Also where it was done before: no old record stays while it is made anew."""

    def look(job):
        seen.append((records.read(job.folder), records.begun(job.folder).config, stage.worked))

    seen = []
    stage.perform(during=look)
    (stage.folder / "output").unlink()
    stage.perform(during=look)
    stage.perform(force=True, during=look)
    plain = json.loads(json.dumps(CONFIG))
    assert seen == [(None, plain, 1), (None, plain, 2), (None, plain, 3)]
    assert records.begun(stage.folder) == records.read(stage.folder)


def test_the_seconds_are_those_of_all_sessions(stage):
    """Two that failed and one that ended; starting over counts anew."""
    kept, before, first = stage.folder / "started.json", 0.0, "2020-02-03T04:05:06+00:00"
    for _ in range(2):
        with pytest.raises(RuntimeError):
            stage.perform(fail=RuntimeError(), slow=0.1)
        started = json.loads(kept.read_text())
        assert before + 0.1 <= started["seconds"] < before + 60
        before = started["seconds"] + 1000
        kept.write_text(json.dumps({**started, "seconds": before, "started": first}))
    record = stage.perform(slow=0.1)
    assert before + 0.1 <= record.seconds < before + 60
    assert record.started == first < record.ended
    assert stage.perform() == record
    assert stage.perform(force=True).seconds < 60


def test_a_record_names_who_made_it_how(stage, monkeypatch):
    token = records.command.set("make copy RUN=run")
    try:
        record = stage.perform(seed=7, world_size=4)
    finally:
        records.command.reset(token)
    assert (record.command, record.seed, record.world_size) == ("make copy RUN=run", 7, 4)
    assert (record.stage, record.results) == ("copy", {"count": 3})
    assert record.inputs.keys() == {"text", "other", "folder"}
    for name, artifact in record.inputs.items():
        assert artifact == records.Artifact.of(stage.inputs[name])
    assert record.outputs == {"output": records.Artifact.of(stage.folder / "output")}
    assert json.loads((stage.folder / "record.json").read_text())["outputs"]["output"]["bytes"] == 4


def test_scratch_goes_with_the_record_and_nothing_else_does(stage):
    def leave(job):
        for name in ("step_1", "step_2", "keep", ".record.json.9.tmp"):
            (job.folder / name).touch()

    stage.perform(during=leave, upkeep=records.Upkeep(scratch=("step_*",)))
    assert sorted(os.listdir(stage.folder)) == [".lock", "keep", "output", "record.json"]
    with pytest.raises(RuntimeError):
        stage.perform(
            force=True, during=leave, upkeep=records.Upkeep(scratch=("step_*",)), fail=RuntimeError()
        )
    assert {"step_1", "step_2", "started.json"} <= set(os.listdir(stage.folder))
