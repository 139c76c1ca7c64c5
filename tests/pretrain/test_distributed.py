"""Real processes with gloo: the same training whatever their number, and no start of what does not fit."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from tests.conftest import KIT
from tests.pretrain.test_trainer import metrics

pytestmark = pytest.mark.slow

CONFIG = """
model: {depth: 18, width: 8, hidden: 16, outputs: 8}
views: {size: 32, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 11}
optimizer: {learning_rate: 0.3, groups: 2, accumulate: 2}
schedule: {epochs: 10, warmup_epochs: 2}
workers: 0
checkpoint_every: 3
"""
# The command line, in float64.
DOUBLE = """
import sys, torch
torch.set_default_dtype(torch.float64)
from triplet import cli
sys.exit(cli.main())
"""


@pytest.fixture
def config(places):
    path = places / "config.yaml"
    path.write_text(CONFIG)
    (places / "double.py").write_text(DOUBLE)
    return path


def launch(processes, *arguments, script=(sys.executable, "-m", "triplet.cli"), **environment):
    """Start processes as `make pretrain` does."""
    command = [sys.executable, "-m", "triplet.launch", "--standalone",
               "--nproc-per-node", str(processes), "--no-python", "--", *script, *arguments]  # fmt: skip
    return subprocess.Popen(
        command, cwd=KIT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(KIT), **environment},
    )  # fmt: skip


def arguments(run, config, drawn, *extra):
    return ["pretrain", "--run", run, "--config", str(config), "--data", str(drawn / "unlabelled"), *extra]


def final(places, run):
    path = places / "checkpoints" / run / "pretrain" / "checkpoint.pth"
    return torch.load(path, weights_only=True)["networks"]


def close(a, b, tolerance):
    """All parameters; BN's running statistics are those of one team and no part of the training."""
    for name, value in a.items():
        if "running" not in name and "tracked" not in name:
            torch.testing.assert_close(value, b[name], atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.timeout(600)
def test_one_two_and_four_processes_train_the_same(places, config, drawn):
    """Four are two teams of two: they take the two micro-batches of a step side by side."""
    for processes in (1, 2, 4):
        script = (sys.executable, str(places / "double.py"))
        running = launch(processes, *arguments(f"p{processes}", config, drawn), script=script)
        out, error = running.communicate()
        assert running.returncode == 0, error
        assert f"= {processes} processes x" in out
        assert "BN over 22" in out
        assert out.count("10 optimiser steps") == 1  # only the first one speaks
    one = final(places, "p1")
    assert one["online.backbone.conv1.weight"].dtype == torch.float64
    for processes in (2, 4):
        close(one, final(places, f"p{processes}"), 1e-9)


@pytest.mark.timeout(600)
def test_a_stopped_group_goes_on_and_ends_as_one_process(places, config, drawn):
    longer = "schedule.epochs=30"
    script = (sys.executable, str(places / "double.py"))
    alone = launch(1, *arguments("one", config, drawn, longer), script=script)
    assert alone.wait() == 0
    running = launch(2, *arguments("two", config, drawn, longer), script=script)
    folder = places / "checkpoints" / "two" / "pretrain"
    while not list(folder.glob("step_*.pth")):
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    out, error = running.communicate()
    assert running.returncode == 143
    assert out.count("SIGTERM: saving, then stopping") == 1
    assert error.count("stopped by") == 1
    assert "Traceback" not in error
    assert not (folder / "record.json").exists()
    again = launch(2, *arguments("two", config, drawn, longer), script=script)
    _, error = again.communicate()
    assert again.returncode == 0, error
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 30
    assert (folder.parents[1] / "one" / "pretrain" / "metrics.jsonl").read_text().count("\n") == 30
    close(final(places, "one"), final(places, "two"), 1e-7)


@pytest.mark.timeout(600)
def test_two_nodes_without_a_common_disk_stop_and_go_on(places, config, drawn):
    """Two agents of torchrun, as README starts them; the first node alone has a checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def node(number):
        time.sleep(3 * number)  # on one machine the agent with the lower process number comes first
        settings = {
            "NODES": 2, "RDZV": f"127.0.0.1:{port}", "RUN": "nodes", "PRETRAIN": config,
            "IMAGES": drawn / "unlabelled", "ARGS": "schedule.epochs=40",
        }  # fmt: skip
        place = {"OMP_NUM_THREADS": "1", "TRIPLET_CHECKPOINTS": str(places / f"node{number}")}
        return subprocess.Popen(
            ["make", "pretrain", *(f"{name}={value}" for name, value in settings.items())],
            cwd=KIT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **place},
        )  # fmt: skip

    nodes = [node(number) for number in (0, 1)]
    while not (found := next(places.glob("node*/nodes/pretrain/step_*.pth"), None)):
        assert nodes[0].poll() is None, nodes[0].communicate()
        time.sleep(0.02)
    for each in nodes:
        each.send_signal(signal.SIGTERM)
    errors = [each.communicate()[1] for each in nodes]
    assert all(each.returncode != 0 for each in nodes)
    assert "stopped by" in "".join(errors)

    nodes = [node(number) for number in (0, 1)]
    ended = [(*each.communicate(), each.returncode) for each in nodes]
    assert [code for *_, code in ended] == [0, 0], ended
    (metrics,) = places.glob("node*/nodes/pretrain/metrics.jsonl")
    assert metrics.parent == found.parent
    assert metrics.read_text().count("\n") == 40


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_processes_train_as_one_that_is_not(places, config, drawn):
    """With BN over both of them inside the graphs."""
    one = "{smallest: 32, largest: 32}"  # each is compiled for itself, which takes a while here
    names, losses = [], []
    for processes in (1, 2):
        options = [f"views.online={one}", f"views.target={one}", "schedule.epochs=4",
                   "optimizer.accumulate=1", f"compile={processes > 1}"]  # fmt: skip
        running = launch(processes, *arguments(f"p{processes}", config, drawn, *options))
        _, error = running.communicate()
        assert running.returncode == 0, error
        names.append(list(final(places, f"p{processes}")))
        losses.append([line["loss"] for line in metrics(places, f"p{processes}")])
    assert names[0] == names[1]
    assert losses[1][:2] == pytest.approx(losses[0][:2], abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)  # rounding grows as training goes on
    assert len({round(loss, 1) for loss in losses[0]}) > 3  # other images, other losses


TEAMS = """
import sys, torch
from pathlib import Path
from torch import nn
from triplet.images import open_images
from triplet.pretrain.config import Loss, Optimizer, Pretrain, Schedule
from triplet.pretrain.distributed import join
from triplet.pretrain.trainer import Unreadable, average_statistics

folder = Path(sys.argv[1])
with join() as processes:
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(processes.rank)
    average_statistics(norm, processes)
    assert norm.running_mean.tolist() == [0.5] * 3
    assert norm.running_var.tolist() == [1.0] * 3

    config = Pretrain(
        loss=Loss(group=11), optimizer=Optimizer(groups=1, accumulate=2), schedule=Schedule(epochs=10),
        unreadable=0.05,
    )
    unreadable = Unreadable(folder, open_images(Path(sys.argv[2])), config, processes)
    for found in ({4}, {4, 7 + processes.rank}):  # both meet the same one, then each one of its own
        unreadable.add(found) if processes.mean(torch.tensor([float(unreadable.news(found))])) else None
"""


def test_teams_share_statistics_and_what_cannot_be_read(places, drawn):
    (places / "teams.py").write_text(TEAMS)
    script = (sys.executable, str(places / "teams.py"))
    running = launch(2, str(places), str(drawn / "unlabelled"), script=script)
    out, error = running.communicate(timeout=120)
    assert "3 of 48 images cannot be read, listed in" in error
    assert out.count("cannot be read, replaced by another: 000000000004.png\n") == 1
    names = (places / "unreadable.txt").read_text().split()
    assert names == ["000000000004.png", "000000000007.png", "000000000008.png"]


def test_a_process_that_never_comes_is_waited_for_no_longer_than_said():
    script = (
        "from triplet.errors import KitError\nfrom triplet.pretrain.distributed import join\n"
        "try:\n    join(timeout=2).__enter__()\nexcept KitError as error:\n    print(error)"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=KIT, capture_output=True, text=True, timeout=60,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.stdout.startswith("process 0 of 2 did not find the others within 2 s")


@pytest.mark.parametrize(
    ("processes", "environment", "message"),
    [
        (2, {"TRIPLET_PROCESSES": "4"}, "found 2 processes (WORLD_SIZE), expected 4"),
        (3, {}, "do not divide among 3 processes; possible: 1, 2, 4"),
    ],
)
def test_a_wrong_number_is_refused(places, config, drawn, processes, environment, message):
    running = launch(processes, *arguments("run", config, drawn), **environment)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 2
    assert message in error
    assert error.count("\n") == 1, "one of them speaks for all, and torchrun is quiet"
    assert not (places / "checkpoints" / "run" / "pretrain" / "checkpoint.pth").exists()


def test_processes_that_differ_refuse_to_start(places, config, drawn):
    """Each with its own arguments, as two nodes started by hand would be."""
    for port, second, message in [
        ("29611", ["seed=5"], "process 1 has another config than process 0"),
        ("29612", ["--data", str(drawn / "train2017")], "process 1 has another set of images"),
    ]:
        started = [
            subprocess.Popen(
                [sys.executable, "-m", "triplet.cli", *arguments("run", config, drawn), *extra],
                cwd=KIT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank),
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            )
            for rank, extra in enumerate([[], second])
        ]  # fmt: skip
        errors = [process.communicate(timeout=90)[1] for process in started]
        assert all(process.returncode == 2 for process in started), errors
        assert message in errors[0], errors
        assert "Traceback" not in errors[0]
