"""Real processes with gloo: the same training whatever their number, and no start of what does not fit."""

import os
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch

from tests.support.processes import DOUBLE, launch, make, start, wait_until
from tests.support.small_pretrain import metrics, newest_step
from triplet.launch import SAVING

pytestmark = pytest.mark.slow

CONFIG = """
model: {depth: 18, width: 8, hidden: 16, outputs: 8}
views: {size: 32, online: {smallest: 32, largest: 48}, target: {smallest: 32, largest: 48}}
loss: {group: 11}
optimizer: {learning_rate: 0.3, groups: 2, accumulate: 2}
schedule: {epochs: 6, warmup_epochs: 2}
workers: 0
checkpoint_every: 3
"""


@pytest.fixture
def config(places):
    path = places / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def alone(drawn, tmp_path_factory):
    """The places of a run "p1" of one process, with all of its steps, and what it said."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "config.yaml").write_text(CONFIG)
    command = arguments("p1", folder / "config.yaml", drawn)
    running = launch(1, *command, program=DOUBLE, TRIPLET_CHECKPOINTS=folder / "checkpoints")
    out, error = running.communicate()
    assert running.returncode == 0, error
    return folder, out


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
def test_one_two_and_four_processes_train_the_same(places, config, drawn, alone):
    """Four are two teams of two: they take the two micro-batches of a step side by side."""
    folder, said = alone
    said = {1: said}
    for processes in (2, 4):
        running = launch(processes, *arguments(f"p{processes}", config, drawn), program=DOUBLE)
        said[processes], error = running.communicate()
        assert running.returncode == 0, error
    for processes, out in said.items():
        assert f"= {processes} processes x" in out
        assert "BN over 22" in out
        assert out.count("6 optimiser steps") == 1  # only the first one speaks
    one = final(folder, "p1")
    assert one["online.backbone.conv1.weight"].dtype == torch.float64
    for processes in (2, 4):
        close(one, final(places, f"p{processes}"), 1e-9)


@pytest.mark.timeout(600)
def test_a_stopped_group_goes_on_and_ends_as_one_process(places, config, drawn, alone):
    often = "checkpoint_every=1"
    folder = places / "checkpoints" / "two" / "pretrain"
    done = 0
    for number in (signal.SIGTERM, signal.SIGURG):
        running = launch(2, *arguments("two", config, drawn, often), program=DOUBLE)
        wait_until(lambda done=done: newest_step(folder) > done, running)
        running.send_signal(number)
        assert running.wait(SAVING / 2) == 128 + number
        out, error = running.communicate()
        assert out.count(f"{number.name}: saving, then stopping") == 1
        assert error.count("stopped by") == 1
        assert "Traceback" not in error
        assert not (folder / "record.json").exists()
        done = newest_step(folder)
    again = launch(2, *arguments("two", config, drawn, often), program=DOUBLE)
    _, error = again.communicate()
    assert again.returncode == 0, error
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert len(metrics(alone[0], "p1")) == 6
    close(final(alone[0], "p1"), final(places, "two"), 1e-7)


@pytest.mark.timeout(600)
def test_two_nodes_without_a_common_disk_stop_and_go_on(places, config, drawn):
    """Two agents of torchrun, as README starts them; the first node alone has a checkpoint."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def node(number):
        time.sleep(number)  # on one machine the agent with the lower process number comes first
        return make(
            "pretrain",
            NODES=2,
            RDZV=f"127.0.0.1:{port}",
            RUN="nodes",
            PRETRAIN=config,
            IMAGES=drawn / "unlabelled",
            ARGS="schedule.epochs=12 checkpoint_every=1",
            environment={"TRIPLET_CHECKPOINTS": places / f"node{number}"},
        )

    nodes = [node(number) for number in (0, 1)]
    while not (found := next(places.glob("node*/nodes/pretrain/step_*.pth"), None)):
        assert nodes[0].poll() is None, nodes[0].communicate()
        time.sleep(0.02)
    for each in nodes:
        each.send_signal(signal.SIGTERM)
    assert 0 not in [each.wait(SAVING / 2) for each in nodes]
    errors = [each.communicate()[1] for each in nodes]
    assert "stopped by" in "".join(errors)

    nodes = [node(number) for number in (0, 1)]
    ended = [(*each.communicate(), each.returncode) for each in nodes]
    assert [code for *_, code in ended] == [0, 0], ended
    (metrics,) = places.glob("node*/nodes/pretrain/metrics.jsonl")
    assert metrics.parent == found.parent
    assert metrics.read_text().count("\n") == 12


@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_processes_train_as_one_that_is_not(places, config, drawn):
    """With BN over both of them inside the graphs."""
    one = "{smallest: 32, largest: 32}"  # each is compiled for itself, which takes a while here
    names, losses = [], []
    shallow = Path(__file__).with_name("shallow.py")
    # Where the kit puts it, whatever other tests have compiled; without vectors, which take half the time.
    compiler = {"TORCHINDUCTOR_CACHE_DIR": None, "TRITON_CACHE_DIR": None, "ATEN_CPU_CAPABILITY": "default"}
    for processes in (1, 2):
        options = [
            f"views.online={one}",
            f"views.target={one}",
            "schedule.epochs=4",
            "optimizer.accumulate=1",
            f"compile={processes > 1}",
        ]
        command = arguments(f"p{processes}", config, drawn, *options)
        running = launch(processes, *command, program=(shallow,), **compiler)
        _, error = running.communicate()
        assert running.returncode == 0, error
        names.append(list(final(places, f"p{processes}")))
        losses.append([line["loss"] for line in metrics(places, f"p{processes}")])
    assert names[0] == names[1]
    kept = places / "checkpoints" / ".compiled" / str(os.getuid())
    assert list(kept.rglob("*.so")), "so that the next start need not compile"
    assert losses[1][:2] == pytest.approx(losses[0][:2], abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-2)  # rounding grows as training goes on
    assert len({round(loss, 1) for loss in losses[0]}) > 3  # other images, other losses


def test_teams_share_statistics_and_what_cannot_be_read(places, drawn):
    program = (Path(__file__).with_name("team_statistics.py"),)
    running = launch(2, places, drawn / "unlabelled", program=program)
    out, error = running.communicate(timeout=120)
    assert "3 of 48 images cannot be read, listed in" in error
    assert out.count("cannot be read, replaced by another: 000000000004.png\n") == 1
    names = (places / "unreadable.txt").read_text().split()
    assert names == ["000000000004.png", "000000000007.png", "000000000008.png"]


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


def test_threads_are_the_cores_that_processes_and_loaders_leave(places, config, drawn):
    """Unless the user has said how many."""
    cores = len(os.sched_getaffinity(0))
    zero = "schedule.epochs=0"
    for given, loaders, threads in ((None, 0, max(1, cores // 2)), (None, 9, 1), (3, 0, 3)):
        more = [zero, "schedule.warmup_epochs=0", f"workers={loaders}", "--force"]
        out, error = launch(2, *arguments("run", config, drawn, *more), OMP_NUM_THREADS=given).communicate()
        assert f"pretrain: {threads} threads and {loaders} loaders a process on {cores} cores" in out, error
        assert ("as OMP_NUM_THREADS says" in out) == (given is not None)


def test_processes_that_differ_refuse_to_start(places, config, drawn):
    """Each with its own arguments, as two nodes started by hand would be."""
    for port, second, message in [
        ("29611", ["seed=5"], "process 1 has another config than process 0"),
        ("29612", ["--data", str(drawn / "train2017")], "process 1 has another set of images"),
    ]:
        started = [
            start(
                *arguments("run", config, drawn),
                *extra,
                RANK=rank,
                WORLD_SIZE=2,
                LOCAL_RANK=rank,
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
            )
            for rank, extra in enumerate([[], second])
        ]
        errors = [process.communicate(timeout=90)[1] for process in started]
        assert all(process.returncode == 2 for process in started), errors
        assert message in errors[0], errors
        assert "Traceback" not in errors[0]
