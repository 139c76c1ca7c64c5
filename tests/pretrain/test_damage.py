"""A pretraining goes on whatever has become of the files around its checkpoints."""

import json
import os

import pytest
import torch

from triplet import cli, records
from triplet.errors import KitError
from triplet.pretrain import trainer

CONFIG = """
model: {depth: 18, width: 8, hidden: 16, outputs: 8}
views: {size: 32, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 12}
optimizer: {learning_rate: 0.3, groups: 1, accumulate: 2}
schedule: {epochs: 2, warmup_epochs: 1}
workers: 0
checkpoint_every: 3
"""


@pytest.fixture
def command(places, drawn):
    (places / "small.yaml").write_text(CONFIG)
    given = ["--config", str(places / "small.yaml"), "--data", str(drawn / "unlabelled")]
    return ["pretrain", "--run", "run", *given]


@pytest.fixture
def folder(places):
    return places / "checkpoints" / "run" / "pretrain"


def steps(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_damaged_files_around_a_checkpoint_cost_no_step(command, folder, monkeypatch, capsys):
    def fail(*_):
        raise KitError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_finish", fail)
        assert cli.main(command) == 2
    trained = torch.load(folder / "step_0000004.pth", weights_only=True)["networks"]
    os.truncate(folder / "started.json", 0)
    (folder / "step_0000004.pth").rename(folder / "step_0000002.pth")
    (folder / "unreadable.txt").write_bytes(b"\xff\xfe\n")
    with (folder / "metrics.jsonl").open("ab") as log:
        log.write(b'\xff\xfe\n[1]\n{"iteration": NaN}\n{"iteration": 99}\n{"iter')
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "started.json is damaged: going on" in said
    assert "step_0000002.pth holds step 4: that counts, and not its name" in said
    assert "metrics.jsonl: 3 damaged lines are left out" in said
    assert "unreadable.txt: 1 damaged line is left out" in said
    assert "--force" not in said
    assert steps(folder) == [2, 4, 6, 8]
    networks = torch.load(folder / "checkpoint.pth", weights_only=True)["networks"]
    assert all(torch.equal(networks[name], value) for name, value in trained.items())
    assert not list(folder.glob("step_*"))


def test_a_cut_record_does_not_train_a_finished_run_again(command, folder, capsys):
    assert cli.main(command) == 0
    before = records.read(folder)
    os.truncate(folder / "record.json", 100)
    capsys.readouterr()
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "record.json is damaged: going on" in said
    assert "checkpoint.pth holds all 4 steps" in said
    after = records.read(folder)
    assert after.results == before.results
    assert after.inputs == before.inputs
    assert steps(folder) == [2, 4, 6, 8]


def test_what_another_config_would_delete_is_counted(command, folder, capsys):
    assert cli.main(command) == 0
    assert cli.main([*command, "schedule.epochs=4"]) == 2
    error = capsys.readouterr().err
    assert "with 4 steps trained; add --force to delete that and start over" in error
