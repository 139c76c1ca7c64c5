"""Real training of a small network in real processes, killed and resumed."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess

import pytest
import torch
from torch.nn import functional as F

from tests.support.processes import children, group_is_gone, killed_at, run, start, wait_until
from tests.support.small_pretrain import SMALL, metrics, newest_step, row_by_row
from triplet import cli, records
from triplet.config import parse
from triplet.errors import KitError
from triplet.images import open_images
from triplet.models.networks import Networks
from triplet.pretrain.config import Pretrain
from triplet.pretrain.data import ViewPairs
from triplet.pretrain.layout import Order
from triplet.pretrain.trainer import pretrain as train
from triplet.pretrain.views import draw_resolutions
from triplet.training import checkpoint
from triplet.training.distributed import Processes
from triplet.training.optim import LARS


@pytest.fixture
def config(places):
    path = places / "small.yaml"
    path.write_text(SMALL)
    return path


MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
LONGER = "schedule.epochs=12"


def command(run, config, drawn, *extra):
    return ["pretrain", "--run", run, "--config", str(config), "--data", str(drawn / "unlabelled"), *extra]


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
    lines = metrics(places, "run")
    assert [line["iteration"] for line in lines] == list(range(2, 25, 2))
    # 100 - mean deputy + 2 x positive, twice: within its bounds, and the hinge always active.
    assert all(2 * (100 - 6) <= line["loss"] <= 2 * (100 + 6) for line in lines)
    assert all(-1 <= line["positive_cosine"] <= 1 and line["feature_std"] > 0.1 for line in lines)
    record = json.loads((folder / "record.json").read_text())
    assert record["results"]["batch"] == 24
    assert record["images_per_second"] > 0
    assert not list(folder.glob("step_*"))


@pytest.fixture(scope="module")
def whole(drawn, tmp_path_factory):
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "small.yaml").write_text(SMALL)
    arguments = command("whole", folder / "small.yaml", drawn, LONGER)
    assert start(*arguments, TRIPLET_CHECKPOINTS=str(folder)).wait() == 0
    return folder / "whole" / "pretrain"


def learned(folder):
    """The log but for what the clock says."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    timed = ("step_time", "data_time", "images_per_second", "memory")
    return [{key: value for key, value in line.items() if key not in timed} for line in lines]


def assert_same_run(folder, whole):
    ours, theirs = (
        torch.load(path / "checkpoint.pth", weights_only=True)["networks"] for path in (folder, whole)
    )
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert learned(folder) == learned(whole)


@pytest.mark.parametrize(
    ("signals", "workers"),
    [
        ([signal.SIGTERM], 2),
        pytest.param([signal.SIGTERM], 0, marks=pytest.mark.slow),
        pytest.param(
            [signal.SIGINT, signal.SIGHUP, signal.SIGURG, signal.SIGKILL], 2, marks=pytest.mark.slow
        ),
    ],
)
def test_a_killed_run_ends_as_one_that_was_never_killed(places, config, drawn, whole, signals, workers):
    """However often. With loader processes the whole group gets the signal, as from `timeout` or Slurm."""
    arguments = command("killed", config, drawn, LONGER, f"workers={workers}")
    folder = places / "checkpoints" / "killed" / "pretrain"
    done = 0
    for number in signals:
        process = start(*arguments, session=True)
        wait_until(lambda done=done: newest_step(folder) > done, process)
        if workers and number != signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        if number == signal.SIGTERM:  # docker compose sends it twice
            process.send_signal(number)
        out, error = process.communicate()
        if number == signal.SIGKILL:
            assert process.returncode == -9
        else:
            assert process.returncode == 128 + number, error
            assert f"stopped by {number.name}" in error
            assert "Traceback" not in error
            assert out.count("saving, then stopping") == 1
        found = checkpoint.checkpoints(folder)
        # The oldest of three is deleted once the newest is there, which a kill may come before.
        assert 1 <= len(found) <= 2 + (number == signal.SIGKILL)
        assert not (folder / "record.json").exists()
        before, done = done, torch.load(found[0], weights_only=True)["step"]
        assert before < done < 24
    assert start(*arguments).wait() == 0
    assert len(checkpoint.checkpoints(folder)) <= 2
    assert_same_run(folder, whole)


def test_a_killed_loader_process_costs_nothing(places, config, drawn, whole):
    """As the kernel kills one where memory is short."""
    arguments = command("run", config, drawn, LONGER, "workers=2")
    process = start(*arguments, session=True)
    folder = places / "checkpoints" / "run" / "pretrain"
    wait_until(lambda: list(folder.glob("step_*.pth")), process)
    os.kill(children(process.pid)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2, error
    assert error.count("\n") == 1
    assert "a process that loads images was killed, mostly for want of memory" in error
    assert group_is_gone(process)
    newest = checkpoint.checkpoints(folder)[0]
    assert f"{checkpoint.step_of(newest)} of 24 steps; run the same command to go on" in error
    assert run(*arguments).returncode == 0
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_killed_at_any_change_of_a_file_the_end_loses_no_step(places, config, drawn):
    """From the last step on: either the record is there, or the checkpoint of that step."""
    arguments = command("run", config, drawn)
    folder, kept = places / "checkpoints" / "run", places / "kept"
    assert killed_at("checkpoint.pth", 1, *arguments).returncode == -signal.SIGKILL
    shutil.copytree(folder, kept)
    number, done = 1, False
    while not done:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        number += 1
        done = killed_at("checkpoint.pth", number, *arguments).returncode == 0
        last = [checkpoint.step_of(path) for path in checkpoint.checkpoints(folder / "pretrain")]
        record = records.read(folder / "pretrain")
        assert record or last[0] == 12, number
        if number % 6 == 0 or done:  # the rest of the time is better spent
            assert run(*arguments).returncode == 0
            assert not list((folder / "pretrain").glob("step_*"))
            assert len(metrics(places, "run")) == 12
            assert records.read(folder / "pretrain").results["final"]["iteration"] == 24
    assert number > 8


RECIPE = {
    "model": {"depth": 18, "width": 8, "hidden": 16, "outputs": 8},
    "views": {
        "size": 32,
        "online": {"smallest": 32, "largest": 48},
        "target": {"smallest": 40, "largest": 64},
    },
    "loss": {"group": 12, "gamma": 1.5, "margin": 7.0, "nearest": 6, "skip": 2},
    "optimizer": {"learning_rate": 0.5, "groups": 2, "accumulate": 2, "weight_decay": 1e-4},
    "schedule": {"epochs": 3, "warmup_epochs": 2, "ema_base": 0.9},
    "seed": 3,
    "workers": 0,
}


def loss_of_recipe(networks, pairs, sizes):
    """Both directions' losses over (24, 2, 3, 32, 32) pairs, row by row, in two groups."""
    v1, v2 = ((pairs[:, i] / 255 - MEAN) / STD for i in (0, 1))

    def at(view, side):
        return F.interpolate(view, size=(side, side), mode="bilinear")

    p1 = networks.predictor(networks.online(at(v1, sizes.online_1)))
    p2 = networks.predictor(networks.online(at(v2, sizes.online_2)))
    with torch.no_grad():
        z2 = networks.target(at(v2, sizes.target_2))
        z1 = networks.target(at(v1, sizes.target_1))
    groups = [
        row_by_row(p[g : g + 12], z[g : g + 12], 1.5, 7.0, 6, 2)
        for p, z in ((p1, z2), (p2, z1))
        for g in (0, 12)
    ]
    return sum(groups) / 2


@torch.no_grad()
def update_of_recipe(networks, buffers, step):
    """LARS with its exclusions at the cosine's rate behind a linear warm-up, then EMA."""
    trained = dict(networks.named_parameters())
    last = 2 * step + 1  # the second iteration of the step, of 6 in 3 epochs
    rate = 0.25 * (1 + math.cos(math.pi * (last // 2) / 3))
    if last < 4:
        rate *= 1 - (1 - last / 4) * (1 - 1e-4)
    for n in buffers:
        p, decay, ratio = trained[n], 1e-4, 1.0
        if n.endswith("bias") or ".bn" in n:
            decay = 0.0
        else:
            ratio = 0.001 * p.norm() / (p.grad.norm() + decay * p.norm())
        buffers[n] = 0.9 * buffers[n] + ratio * rate * (p.grad + decay * p)
        p -= buffers[n]
        p.grad = None
    m = 1 - 0.1 * (math.cos(math.pi * last / 6) + 1) / 2
    for ours, theirs in zip(networks.target.parameters(), networks.online.parameters(), strict=True):
        ours.copy_(m * ours + (1 - m) * theirs)


def test_each_step_is_the_recipes(places, drawn):
    """Against a plain loop in float64: two groups, two accumulated micro-batches, settings of its own."""
    config = parse(RECIPE, Pretrain, "test")
    images = open_images(drawn / "unlabelled")
    torch.set_default_dtype(torch.float64)
    try:
        train(config, images, records.Job(places), Processes(0, 1, torch.device("cpu")))
        torch.manual_seed(3)
        networks = Networks(18, 8, 16, 8).train()
        buffers = {
            n: torch.zeros_like(p) for n, p in networks.named_parameters() if not n.startswith("target.")
        }
        data, order = ViewPairs(images, config.views, 3), Order(48, config)
        for step in range(3):
            for iteration in (2 * step, 2 * step + 1):
                views = [torch.from_numpy(data[item][0]) for item in order.micro_batch(iteration)]
                pairs = torch.stack(views).permute(0, 1, 4, 2, 3)
                sizes = draw_resolutions(config.views, 3, iteration)
                (loss_of_recipe(networks, pairs, sizes) / 2).backward()
            update_of_recipe(networks, buffers, step)
    finally:
        torch.set_default_dtype(torch.float32)
    found = torch.load(places / "checkpoint.pth", weights_only=True)["networks"]
    for name, value in networks.state_dict().items():
        torch.testing.assert_close(
            found[name], value, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.fixture
def stopped(places, config, drawn):
    """The folder of a run that was killed after several checkpoints."""
    process = start(*command("run", config, drawn, LONGER))
    folder = places / "checkpoints" / "run" / "pretrain"
    wait_until(lambda: len(checkpoint.checkpoints(folder)) >= 2, process)
    process.kill()
    process.wait()
    return folder


def test_a_damaged_checkpoint_is_reported_and_an_older_used(stopped, config, drawn, whole):
    newest, before, *_ = checkpoint.checkpoints(stopped)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = start(*command("run", config, drawn, LONGER))
    assert f"{newest.name} is damaged (its SHA-256 is another one)" in resumed.communicate()[0]
    assert resumed.returncode == 0
    assert_same_run(stopped, whole)
    assert before.name < newest.name


def test_only_damaged_checkpoints_are_refused(stopped, config, drawn, capsys):
    for path in checkpoint.checkpoints(stopped):
        path.write_bytes(b"PK damaged")
    again = command("run", config, drawn, LONGER)
    assert cli.main(again) == 2
    error = capsys.readouterr().err
    assert re.search(r"none of the \d checkpoints in .* can be used; add --force", error)
    assert cli.main([*again, "--force", "schedule.epochs=1"]) == 0


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    networks = Networks(18, 8, 8, 8)
    optimizer = LARS(networks.parameters(), 0.1)
    for step in (5, 10, 100):
        checkpoint.save(tmp_path / f"step_{step:07d}.pth", networks, optimizer, step, 1)
        checkpoint.keep(tmp_path, 2)
    assert [int(path.stem[5:]) for path in checkpoint.checkpoints(tmp_path)] == [100, 10]
    assert len(list(tmp_path.iterdir())) == 4
    (tmp_path / ".step_0000200.pth.77.tmp").write_bytes(b"killed while saving")
    checkpoint.keep(tmp_path, 2)
    assert len(list(tmp_path.iterdir())) == 4
    sums = subprocess.run(["sha256sum", "-c", "step_0000100.pth.sha256"], cwd=tmp_path, capture_output=True)
    assert sums.returncode == 0


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    networks = Networks(18, 8, 8, 8)
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
    out, error = capsys.readouterr()
    assert "pretrain: cannot be read, replaced by another: 000000000003.png" in out
    assert re.search(r"1 of 48 images cannot be read, listed in \S+unreadable\.txt", error)
    assert cli.main([*run, "unreadable=0.05"]) == 0
    assert "cannot be read" not in capsys.readouterr().out, "known from the session before"
    record = json.loads((places / "checkpoints" / "run" / "pretrain" / "record.json").read_text())
    assert record["results"]["unreadable"] == ["000000000003.png"]


def test_bfloat16_trains_close_to_float32(places, config, drawn):
    losses = []
    for precision in ("float32", "bfloat16"):
        assert cli.main(command(precision, config, drawn, f"precision={precision}")) == 0
        losses.append(metrics(places, precision)[0]["loss"])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.2)
