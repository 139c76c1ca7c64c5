"""`triplet pull demo` and `subset`, and what a wrong command gets."""

import json
import re
import shutil

import pytest

from triplet import cli


@pytest.fixture
def small_demo(places):
    path = places / "demo.yaml"
    path.write_text(
        "data: {unlabelled: 3, train: 4, val: 2, radii: [18, 30], large: [28, 50], objects: [1, 2]}\n"
        "subset: {train: 3, val: 2}\n"
        "pretrain: configs/pretrain/demo.yaml\ndetection: configs/detection/demo.yaml\n"
        "methods: {triplet: []}\nseeds: [0]\n"
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
        (["pull", "subset", "--from", "/nonexistent"], "nothing at /nonexistent, expected a folder"),
        (
            ["pull", "cocoo"],
            "unknown source 'cocoo'; known: demo, subset, coco, voc, imagenet, w",
        ),
        (["pull", "demo", "coco"], "demo stands alone"),
        (["pull", "subset", "--check"], "subset stands alone"),
        (["pull", "coco", "--check", "--from", "x"], "leave --from out"),
        (["pull", "coco", "--method", "byol"], "--method goes with weights: found it with coco"),
        (["pull", "weights", "--method", "boyl"], "no weights of 'boyl'; known: supervised,"),
        (["pull", "coco", "--from", "/nonexistent"], "nothing at --from /nonexistent"),
        (["pull", "coco", "--from", "Makefile"], "is or holds none of train2017.zip, val2017.zip"),
        (["pull", "imagenet"], "must be fetched by hand: register at"),
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
    assert re.search("subset of itself|not a plain file name", capsys.readouterr().err)
    assert sorted(p.name for p in source.rglob("*.png")) == before
    assert not (source / "started.json").exists()


def test_a_subset_of_files_in_folders_and_ids_of_text(places, small_demo, tmp_path, drawn):
    source = tmp_path / "mine"
    shutil.copytree(drawn, source)
    path = source / "annotations" / "instances_train2017.json"
    truth = json.loads(path.read_text())
    (source / "train2017" / "deep" / "down").mkdir(parents=True)
    for image in truth["images"]:
        name = image["file_name"]
        image["file_name"] = f"deep/down/{name}"
        (source / "train2017" / name).rename(source / "train2017" / image["file_name"])
        image["id"] = f"img{image['id']}"
    for each in truth["annotations"]:
        each["image_id"] = f"img{each['image_id']}"
    path.write_bytes(json.dumps(truth).encode("utf-8-sig"))
    command = ["pull", "subset", "--from", str(source), "--config", str(small_demo), "--name", "part"]
    assert cli.main(command) == 0
    folder = places / "datasets" / "part"
    taken = json.loads((folder / "annotations" / "instances_train2017.json").read_text())
    assert len(taken["images"]) == 3
    assert all((folder / "train2017" / image["file_name"]).is_file() for image in taken["images"])
    assert {each["image_id"] for each in taken["annotations"]} == {1, 2, 3}


def test_a_subset_of_wrong_annotations_is_refused(places, small_demo, tmp_path, drawn, capsys):
    source = tmp_path / "mine"
    shutil.copytree(drawn, source)
    path = source / "annotations" / "instances_val2017.json"
    truth = json.loads(path.read_text())
    truth["annotations"][1]["id"] = truth["annotations"][0]["id"]
    path.write_text(json.dumps(truth))
    command = ["pull", "subset", "--from", str(source), "--config", str(small_demo), "--name", "part"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "annotations[0] and annotations[1] have the same id" in error
    assert error.count("\n") == 1
