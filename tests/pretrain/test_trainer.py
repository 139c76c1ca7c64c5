"""Real training of a small network in real processes, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from triplet import cli
from triplet.pretrain import checkpoint

SMALL = """
model: {depth: 18, width: 4, hidden: 16, outputs: 8}
views: {size: 32, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 12}
optimizer: {learning_rate: 0.3, groups: 1, accumulate: 2}
schedule: {epochs: 6, warmup_epochs: 1}
workers: 0
checkpoint_every: 3
"""


@pytest.fixture
def config(places):
    path = places / "small.yaml"
    path.write_text(SMALL)
    return path


def command(run, config, drawn, *extra):
    return ["pretrain", "--run", run, "--config", str(config), "--data", str(drawn / "unlabelled"), *extra]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "triplet.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def final(places, run):
    path = places / "checkpoints" / run / "pretrain" / "checkpoint.pth"
    return torch.load(path, weights_only=True)["networks"]


def test_training_moves_every_part_and_logs_each_step(places, config, drawn):
    assert cli.main(command("zero", config, drawn, "schedule.epochs=0")) == 0
    assert cli.main(command("run", config, drawn)) == 0
    before, after = final(places, "zero"), final(places, "run")
    still = [k for k in before if torch.equal(before[k], after[k])]
    assert still == []
    folder = places / "checkpoints" / "run" / "pretrain"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(2, 25, 2))
    # 100 - mean deputy + 2 x positive, twice: within its bounds, and the hinge always active.
    assert all(2 * (100 - 6) <= line["loss"] <= 2 * (100 + 6) for line in lines)
    assert all(-1 <= line["positive_cosine"] <= 1 and line["feature_std"] > 0.1 for line in lines)
    record = json.loads((folder / "record.json").read_text())
    assert record["results"]["batch"] == 24
    assert record["images_per_second"] > 0
    assert not (folder / "latest.pth").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_ends_as_one_that_was_never_killed(places, config, drawn, number):
    longer = ("schedule.epochs=40",)
    assert start(*command("whole", config, drawn, *longer)).wait() == 0
    process = start(*command("killed", config, drawn, *longer))
    metrics = places / "checkpoints" / "killed" / "pretrain" / "metrics.jsonl"
    latest = metrics.with_name("latest.pth")
    while not latest.exists():  # at least one checkpoint
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    if number == signal.SIGTERM:  # docker compose sends it twice
        process.send_signal(number)
    _, error = process.communicate()
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 143
        assert f"stopped by {number.name}" in error
        assert "Traceback" not in error
    assert latest.exists()
    assert not metrics.with_name("record.json").exists()
    done = torch.load(latest, weights_only=True)["iteration"]
    assert 0 < done < 160

    assert start(*command("killed", config, drawn, *longer)).wait() == 0
    whole, killed = final(places, "whole"), final(places, "killed")
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    other = (places / "checkpoints" / "whole" / "pretrain" / "metrics.jsonl").read_text()
    assert metrics.read_text() == other


def test_a_damaged_checkpoint_is_named(places, config, drawn, capsys):
    folder = places / "checkpoints" / "run" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "latest.pth").write_bytes(b"PK damaged")
    assert cli.main(command("run", config, drawn)) == 2
    error = capsys.readouterr().err
    assert "latest.pth cannot be resumed" in error
    assert "--force" in error
    assert cli.main(command("run", config, drawn, "--force")) == 0


def test_an_exploding_loss_stops_with_the_step(places, config, drawn, capsys):
    code = cli.main(
        command("run", config, drawn, "optimizer.learning_rate=1e30", "schedule.warmup_epochs=0")
    )
    assert code == 2
    assert "loss is nan at iteration" in capsys.readouterr().err
    assert not (places / "checkpoints" / "run" / "pretrain" / "record.json").exists()


def test_too_few_images_are_refused(places, config, drawn, capsys):
    assert cli.main(command("run", config, drawn, "optimizer.groups=5")) == 2
    assert "found 48 images, fewer than one micro-batch of 60" in capsys.readouterr().err


def test_checkpoint_load_refuses_another_network(tmp_path):
    from triplet.errors import KitError
    from triplet.pretrain.networks import Networks
    from triplet.pretrain.optim import LARS

    small, large = Networks(18, 4, 8, 8), Networks(18, 8, 8, 8)
    checkpoint.save(tmp_path / "c.pth", small, LARS(small.parameters(), 0.1), 5, 1)
    with pytest.raises(KitError, match="cannot be resumed"):
        checkpoint.load(tmp_path / "c.pth", large, LARS(large.parameters(), 0.1))
