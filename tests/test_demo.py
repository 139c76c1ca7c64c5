"""What the demo runs on the user's own data, and what it says beforehand; test_chain runs the stages."""

import json

import pytest

from tests.support import photographs
from tests.support.own_data import EXPORTS, parts_of
from triplet import cli, coco, records
from triplet.demo import demo
from triplet.paths import kit_config


@pytest.fixture
def own(drawn, places):
    """A data set in a tool's layout."""
    EXPORTS["YOLO segmentation"](parts_of(drawn), places / "mine")
    return places / "mine"


def run(places, own):
    """The commands of the demo, of which the pull alone is run."""
    commands = []

    def call(command):
        commands.append(command)
        return cli.main(command) if command[0] == "pull" else 0

    assert demo(kit_config("demo.yaml"), call, data=own) == 0
    return commands


def test_few_images_without_weights_are_called_hopeless_first(places, own, capsys, monkeypatch):
    monkeypatch.setattr("triplet.demo.usable_cores", lambda: 1)  # in turn, in this process
    commands = run(places, own)
    assert [command[0] for command in commands] == [
        "pull",
        *["pretrain", "convert", "finetune", "eval"] * 2,
        "report",
    ]
    said = capsys.readouterr().out
    assert "Expect a box AP near 0: a small network learns from nothing but these" in said
    assert said.index("Expect") < said.index("$ triplet pretrain")
    assert f"in earnest: triplet finetune --run triplet --data {own} --schedule 1/8x" in said
    content = coco.read(places / "datasets" / "demo-mine", "train2017")
    names = {each["name"] for each in content["categories"]}
    assert len(names) == 3
    assert all(name in said for name in names)
    assert "MODEL.ROI_HEADS.NUM_CLASSES=3" in commands[3]


@pytest.mark.parametrize(
    ("pulled", "taken"),
    [
        (["triplet", "moco-v2"], "triplet"),
        (["npid", "byol", "random"], "byol"),
        (["supervised", "supervised-torchvision"], "supervised-torchvision"),
        (["supervised", "random"], None),  # for BGR images, and untrained
    ],
)
def test_weights_that_were_pulled_are_finetuned(places, own, capsys, monkeypatch, pulled, taken):
    monkeypatch.setattr("triplet.demo.usable_cores", lambda: 1)
    for name in pulled:
        folder = places / "checkpoints" / "weights" / name
        records.perform("pull", folder, config={}, inputs={}, work=lambda _: None)
    _, *commands = run(places, own)
    if taken is None:
        assert commands[0][0] == "pretrain"
        return
    assert [command[0] for command in commands] == ["convert", "finetune", "eval", "report"]
    assert commands[0][2:] == [
        f"demo-mine/pulled/seed0/{taken}",
        "--config",
        "configs/detection/demo_pulled.yaml",
    ]
    assert f"from the pulled weights of {taken}. Expect a low AP" in capsys.readouterr().out


def test_frequent_classes_are_counted_in_the_training_images(places, tmp_path):
    photographs.write(tmp_path / "mine")
    for part, name in (("train", "train"), ("val", "valid")):
        (tmp_path / "mine" / part).rename(tmp_path / "mine" / f"_{name}")
        (tmp_path / "mine" / f"_{name}").rename(tmp_path / "mine" / name)
        (tmp_path / "mine" / f"{part}.json").rename(tmp_path / "mine" / name / "_annotations.coco.json")
    assert cli.main(["pull", "subset", "--from", str(tmp_path / "mine"), "--classes", "1"]) == 0
    folder = places / "datasets" / "subset"
    for split, images in (("train2017", 4), ("val2017", 1)):
        content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
        assert [each["name"] for each in content["categories"]] == ["flower"]
        assert len(content["images"]) == images
        assert {each["category_id"] for each in content["annotations"]} == {2}
