"""Verification with each single number changed or missing, and where the list and the records disagree."""

import hashlib
import json
import shutil
import zipfile

import pytest

from tests.conftest import placed
from tests.support import run_records
from triplet import records
from triplet.report import crate, verify
from triplet.scores import NUMBERS, CocoGroundTruth

EVAL = "checkpoints/demo/seed0/triplet/eval"
SMALLEST = 3e-6
"""AP in percent: a forgery that rounding does not explain."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The places of a run whose numbers can be computed again and of one with pictures, and their crate."""
    folder = tmp_path_factory.mktemp("world")
    with placed(folder):
        run_records.evaluated(folder)
        run_records.run("triplet", 41.5, 36.0, pictures=2)
        crate.export(folder / "runs.zip", crate.all_records(), [])
    return folder


@pytest.fixture
def here(world):
    with placed(world) as folder:
        yield folder


def read(folder):
    return json.loads((folder / EVAL / "record.json").read_text())


def verdicts(found):
    return {finding.what: finding.verdict for finding in found}


@pytest.mark.parametrize("task", ["bbox"])
def test_each_number_is_compared_and_none_may_be_missing(here, monkeypatch, task):
    """One evaluation serves all forgeries: the engine is not what is tested."""
    judge = CocoGroundTruth(here / "datasets" / "tiny" / "annotations.json")
    predictions = json.loads((here / EVAL / "coco_instances_results.json").read_text())
    scores = judge.score(predictions, task)
    monkeypatch.setattr(CocoGroundTruth, "score", lambda *_: scores)
    content = read(here)
    what = f"{EVAL}/record.json: numbers of {task}, evaluated again"

    def verdict(numbers):
        forged = records.Record.model_validate(content | {"results": content["results"] | {task: numbers}})
        monkeypatch.setattr(crate, "all_records", lambda: {f"{EVAL}/record.json": forged})
        return verdicts(verify.local())[what]

    honest = content["results"][task]
    assert list(honest) == list(NUMBERS[task])
    assert len({value for value in honest.values() if value is not None}) > 3
    assert verdict(honest) == verify.OK
    for key, value in honest.items():
        others = [12.5, "50.0"] if value is None else [value + SMALLEST, value - SMALLEST, None, f"{value}"]
        for other in others:
            assert verdict(honest | {key: other}) == verify.WRONG, (key, other)
        # A number that there is none of may as well be left out.
        left_out = verdict({name: each for name, each in honest.items() if name != key})
        assert left_out == (verify.OK if value is None else verify.WRONG), key


def test_predictions_that_give_other_numbers_are_seen(here, tmp_path):
    """With the real engine, on this machine: one box moved."""
    path = here / EVAL / "coco_instances_results.json"
    before = path.read_text()
    assert set(verdicts(verify.local()).values()) == {verify.OK}
    moved = json.loads(before)
    moved[0]["bbox"][0] += 9
    path.write_text(json.dumps(moved))
    found = verdicts(verify.local())
    path.write_text(before)
    assert {what for what, verdict in found.items() if verdict != verify.OK} == {
        f"{EVAL}/record.json: predictions",
        f"{EVAL}/record.json: numbers of bbox, evaluated again",
    }


@pytest.fixture
def forged(here, tmp_path):
    """Makes an archive with changed members whose list of hashes was mended; what does not match in it."""

    def make(changes):
        path = tmp_path / "forged.zip"
        with zipfile.ZipFile(here / "runs.zip") as before:
            members = {info.filename: before.read(info) for info in before.infolist()}
        for name, content in changes.items():
            members[name] = content(members.get(name, b"")) if callable(content) else content
        members = {name: content for name, content in members.items() if content is not None}
        metadata = json.loads(members[crate.METADATA])
        graph = [each for each in metadata["@graph"] if each["@type"] != "File"]
        graph += [
            {"@id": name, "@type": "File", "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
            if name != crate.METADATA
        ]
        members[crate.METADATA] = json.dumps(metadata | {"@graph": graph}).encode()
        with zipfile.ZipFile(path, "w") as after:
            for name, content in members.items():
                after.writestr(name, content)
        return {
            what for what, verdict in verdicts(verify.archived(path)).items() if verdict == verify.WRONG
        }

    return make


def changed(**fields):
    """A record's text with other fields."""

    def change(text):
        return json.dumps({**json.loads(text), **fields}).encode()

    return change


def other_output(name, **fields):
    def change(text):
        content = json.loads(text)
        content["outputs"][name] |= fields
        return json.dumps(content).encode()

    return change


RECORD = f"{EVAL}/record.json"
ONE = json.dumps([{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.5}]).encode()
PICTURES = "checkpoints/triplet/eval"


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, set()),
        # A file and the list agree, the record does not.
        (
            {"checkpoints/triplet/finetune/metrics.jsonl": b"{}\n"},
            {"checkpoints/triplet/finetune/record.json: metrics"},
        ),
        ({RECORD: other_output("predictions", sha256="0" * 64)}, {f"{RECORD}: predictions"}),
        # A folder's listing: another size, another name, one more, one less.
        ({f"{PICTURES}/pictures/1.jpg": lambda old: old + b"x"}, {f"{PICTURES}/record.json: pictures"}),
        ({f"{PICTURES}/pictures/1.jpg": None}, {f"{PICTURES}/record.json: pictures"}),
        ({f"{PICTURES}/pictures/7.jpg": b"more"}, {f"{PICTURES}/record.json: pictures"}),
        (
            {f"{PICTURES}/pictures/1.jpg": None, f"{PICTURES}/pictures/2.jpg": lambda old: old},
            {f"{PICTURES}/record.json: pictures"},
        ),
        # Other predictions, and the record's hash of them mended: the numbers tell.
        (
            {
                f"{EVAL}/coco_instances_results.json": ONE,
                RECORD: other_output("predictions", sha256=hashlib.sha256(ONE).hexdigest()),
            },
            {f"{RECORD}: numbers of bbox, evaluated again"},
        ),
        # None at all, which no evaluation of numbers leaves.
        (
            {
                f"{EVAL}/coco_instances_results.json": b"[]",
                RECORD: other_output("predictions", sha256=hashlib.sha256(b"[]").hexdigest()),
            },
            {f"{RECORD}: numbers"},
        ),
        ({RECORD: b"{}"}, {RECORD}),
    ],
)
def test_a_mended_list_of_hashes_hides_nothing(forged, changes, wrong):
    assert forged(changes) == wrong


def test_a_forged_number_is_seen_even_with_mended_hashes(forged):
    def raised(text):
        content = json.loads(text)
        content["results"]["bbox"]["AP75"] += 0.1
        return json.dumps(content).encode()

    assert forged({RECORD: raised}) == {f"{RECORD}: numbers of bbox, evaluated again"}


def test_each_output_of_this_machine_is_compared_by_its_content(here, world, tmp_path):
    """Same size, other bytes; and gone."""
    copy = shutil.copytree(world, tmp_path / "copy")
    with placed(copy):
        assert set(verdicts(verify.local()).values()) == {verify.OK}
        for path, what in (
            (
                copy / "checkpoints/triplet/convert/weights",
                "checkpoints/triplet/convert/record.json: weights",
            ),
            (
                copy / "checkpoints/triplet/finetune/model",
                "checkpoints/triplet/finetune/record.json: model",
            ),
        ):
            content = path.read_bytes()
            for other in (content[:-1] + b"?", None):
                path.write_bytes(other) if other else path.unlink()
                wrong = {
                    name for name, verdict in verdicts(verify.local()).items() if verdict == verify.WRONG
                }
                assert wrong == {what}
            path.write_bytes(content)
        picture = copy / "checkpoints/triplet/eval/pictures/0.jpg"
        picture.write_bytes(picture.read_bytes() + b"x")
        assert verdicts(verify.local())["checkpoints/triplet/eval/record.json: pictures"] == verify.WRONG
