"""Real training of a small network in real processes, killed and resumed."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from triplet import cli
from triplet.errors import KitError
from triplet.pretrain import checkpoint
from triplet.pretrain.networks import Networks
from triplet.pretrain.optim import LARS

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
    assert not list(folder.glob("step_*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_run_ends_as_one_that_was_never_killed(places, config, drawn, number):
    longer = ("schedule.epochs=40",)
    assert start(*command("whole", config, drawn, *longer)).wait() == 0
    process = start(*command("killed", config, drawn, *longer))
    metrics = places / "checkpoints" / "killed" / "pretrain" / "metrics.jsonl"
    while not list(metrics.parent.glob("step_*.pth.sha256")):  # at least one checkpoint
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
    found = checkpoint.checkpoints(metrics.parent)
    assert 1 <= len(found) <= 3
    assert not metrics.with_name("record.json").exists()
    assert 0 < torch.load(found[0], weights_only=True)["step"] < 80

    assert start(*command("killed", config, drawn, *longer)).wait() == 0
    whole, killed = final(places, "whole"), final(places, "killed")
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    other = (places / "checkpoints" / "whole" / "pretrain" / "metrics.jsonl").read_text()
    assert metrics.read_text() == other


@pytest.fixture
def stopped(places, config, drawn):
    """The folder of a run that was killed after several checkpoints."""
    process = start(*command("run", config, drawn, "schedule.epochs=40"))
    folder = places / "checkpoints" / "run" / "pretrain"
    while len(list(folder.glob("step_*.pth.sha256"))) < 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    return folder


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_is_used(stopped, config, drawn, capsys):
    newest, before, *_ = checkpoint.checkpoints(stopped)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    again = command("run", config, drawn, "schedule.epochs=40")
    assert cli.main(again) == 0
    assert f"{newest.name} is damaged (its SHA-256 is another one)" in capsys.readouterr().out
    whole = command("whole", config, drawn, "schedule.epochs=40")
    assert cli.main(whole) == 0
    assert (stopped / "metrics.jsonl").read_text() == (
        stopped.parents[1] / "whole" / "pretrain" / "metrics.jsonl"
    ).read_text()
    assert before.name < newest.name


def test_only_damaged_checkpoints_are_refused(stopped, config, drawn, capsys):
    for path in checkpoint.checkpoints(stopped):
        path.write_bytes(b"PK damaged")
    again = command("run", config, drawn, "schedule.epochs=40")
    assert cli.main(again) == 2
    error = capsys.readouterr().err
    assert re.search(r"none of the \d checkpoints in .* can be used; add --force", error)
    assert cli.main([*again, "--force", "schedule.epochs=1"]) == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    networks = Networks(18, 4, 8, 8)
    optimizer = LARS(networks.parameters(), 0.1)
    for step in (5, 10, 100):
        checkpoint.save(tmp_path / f"step_{step:07d}.pth", networks, optimizer, step, 1)
        checkpoint.keep(tmp_path, 2)
    assert [int(path.stem[5:]) for path in checkpoint.checkpoints(tmp_path)] == [100, 10]
    assert len(list(tmp_path.iterdir())) == 4
    sums = subprocess.run(["sha256sum", "-c", "step_0000100.pth.sha256"], cwd=tmp_path, capture_output=True)
    assert sums.returncode == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    networks = Networks(18, 4, 8, 8)
    optimizer = LARS(networks.parameters(), 0.1)
    path = tmp_path / "step_0000005.pth"
    checkpoint.save(path, networks, optimizer, 5, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(KitError, match=r"step_0000010\.pth could not be written"):
            checkpoint.save(tmp_path / "step_0000010.pth", networks, optimizer, 10, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.sha256"]
    assert checkpoint.restore(tmp_path, networks, optimizer) == 5


def test_an_exploding_loss_stops_with_the_step(places, config, drawn, capsys):
    code = cli.main(
        command("run", config, drawn, "optimizer.learning_rate=1e30", "schedule.warmup_epochs=0")
    )
    assert code == 2
    error = capsys.readouterr().err
    assert re.search(r"loss is nan at step \d+; its images are listed in \S+not_finite.txt", error)
    listed = (places / "checkpoints" / "run" / "pretrain" / "not_finite.txt").read_text().splitlines()
    assert len(listed) == 24
    assert all((drawn / "unlabelled" / line).exists() for line in listed)
    assert not (places / "checkpoints" / "run" / "pretrain" / "record.json").exists()


def test_too_few_images_are_refused(places, config, drawn, capsys):
    assert cli.main(command("run", config, drawn, "optimizer.groups=5")) == 2
    assert "found 48 images, fewer than one micro-batch of 60" in capsys.readouterr().err


def test_another_network_is_not_resumed(tmp_path):
    small, large = Networks(18, 4, 8, 8), Networks(18, 8, 8, 8)
    checkpoint.save(tmp_path / "step_0000005.pth", small, LARS(small.parameters(), 0.1), 5, 1)
    with pytest.raises(KitError, match="can be used"):
        checkpoint.restore(tmp_path, large, LARS(large.parameters(), 0.1))


def test_unreadable_images_are_counted_named_and_too_many_stop(places, config, drawn, tmp_path, capsys):
    folder = tmp_path / "images"
    shutil.copytree(drawn / "unlabelled", folder)
    (folder / "000000000003.png").write_bytes(b"broken")
    run = ["pretrain", "--run", "run", "--config", str(config), "--data", str(folder)]
    assert cli.main(run) == 2
    assert re.search(r"1 of 48 images cannot be read, for example \S+0003.png", capsys.readouterr().err)
    assert cli.main([*run, "unreadable=0.05"]) == 0
    record = json.loads((places / "checkpoints" / "run" / "pretrain" / "record.json").read_text())
    assert record["results"]["unreadable"] == [str(folder / "000000000003.png")]


def test_bfloat16_trains_close_to_float32(places, config, drawn):
    losses = []
    for precision in ("float32", "bfloat16"):
        assert cli.main(command(precision, config, drawn, f"precision={precision}")) == 0
        lines = (places / "checkpoints" / precision / "pretrain" / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[0])["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.2)
