"""The pretrain stage by OpenSelfSup, as a user starts it, on the demo's images."""

import json
import os
import signal

import pytest
import torch

from tests.conftest import KIT
from tests.support.processes import launch, run, start, wait_until
from triplet.models.networks import Networks
from triplet.training import checkpoint
from triplet.weights.read import read_backbone

pytestmark = pytest.mark.slow

DEMO = [
    "--config",
    str(KIT / "configs/openselfsup/demo.yaml"),
    "data.imgs_per_gpu=12",
    "data.workers_per_gpu=0",
]
SMALL = ["model.backbone.depth=18", "gpus=1", "data.workers_per_gpu=0", "total_epochs=1"]
LINEAR, SIDE = "model.neck.in_channels=512", "data.train.pipeline.0.size=32"
METHODS = {
    "byol": [
        LINEAR,
        "model.neck.hid_channels=64",
        "model.head.predictor.hid_channels=64",
        "data.imgs_per_gpu=12",
        "data.train.pipeline1.0.size=32",
        "data.train.pipeline2.0.size=32",
    ],
    "simclr": [LINEAR, "model.neck.hid_channels=64", SIDE, "data.imgs_per_gpu=12"],
    "moco": [LINEAR, "model.queue_len=48", SIDE, "data.imgs_per_gpu=12"],
    "moco-v2": [LINEAR, "model.neck.hid_channels=64", "model.queue_len=48", SIDE, "data.imgs_per_gpu=12"],
    "npid": [LINEAR, "model.neg_num=32", SIDE, "data.imgs_per_gpu=12"],
    "rotation-pred": ["model.head.in_channels=512", SIDE, "data.imgs_per_gpu=8"],
    "relative-loc": [
        LINEAR,
        "model.neck.out_channels=64",
        "model.head.in_channels=64",
        "data.imgs_per_gpu=24",
        "data.train.pipeline.0.size=180",
        "data.train.pipeline.1.size=160",
    ],
}


def pretrain(name, drawn, *more):
    return [
        "pretrain",
        "--engine",
        "openselfsup",
        "--run",
        name,
        "--data",
        str(drawn / "unlabelled"),
        *more,
    ]


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_run_goes_on_within_its_epoch_and_is_done(openselfsup, places, drawn):
    command = pretrain("run/triplet", drawn, *DEMO, "total_epochs=3", "data.workers_per_gpu=1")
    folder = places / "checkpoints" / "run" / "triplet" / "pretrain"
    running = start(*command, session=True, CUDA_VISIBLE_DEVICES="")
    wait_until(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) >= 5, running)
    os.killpg(running.pid, signal.SIGTERM)  # as torchrun does: loaders too
    out, error = running.communicate()
    assert running.returncode == 143, error
    assert "SIGTERM: saving, then stopping" in out
    with pytest.raises(ProcessLookupError):  # no loader outlives it
        os.killpg(running.pid, 0)
    stopped = len(lines(folder))
    assert [path.name for path in checkpoint.checkpoints(folder)] == [f"step_{stopped:07d}.pth"]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert [line["iteration"] for line in lines(folder)] == list(range(1, 13))
    assert all(194 < line["loss"] < 206 for line in lines(folder))
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["engine"] == "openselfsup"
    assert record["results"]["steps"] == 12
    assert read_backbone(folder / "checkpoint.pth").format == "openselfsup raw"
    assert "pretrain: done already" in run(*command).stdout


def test_our_weights_start_their_networks(openselfsup, places, drawn):
    ours = Networks(18, 64, 256, 64)
    checkpoint.save(places / "ours.pth", ours, None, 1, 1)
    done = run(
        *pretrain(
            "run/triplet", drawn, *DEMO, "total_epochs=1", "optimizer.lr=1e-12", "data.imgs_per_gpu=24"
        ),
        "--weights",
        places / "ours.pth",
    )
    assert "weights: kit networks, all of them" in done.stdout, done.stderr
    found = read_backbone(places / "checkpoints" / "run" / "triplet" / "pretrain" / "checkpoint.pth").state
    torch.testing.assert_close(
        found["layer4.1.conv2.weight"], ours.online.backbone.layer4[1].conv2.weight.data
    )


def test_networks_that_are_not_finite_are_not_saved(openselfsup, places, drawn):
    """The loss of the last step is taken before the optimiser's."""
    odd = ["optimizer.lr=1e10", "optimizer.weight_decay=1e38", "data.imgs_per_gpu=48"]
    done = run(*pretrain("odd/moco", drawn, *SMALL, *METHODS["moco"], *odd))
    assert done.returncode == 2, done.stderr
    assert "is not finite after step 1: not saved; last good checkpoint: none" in done.stderr
    assert not (places / "checkpoints" / "odd" / "moco" / "pretrain" / "checkpoint.pth").exists()


@pytest.mark.parametrize("method", METHODS)
def test_every_baseline_of_the_zoo_trains(openselfsup, places, drawn, method):
    done = run(*pretrain(f"zoo/{method}", drawn, *SMALL, *METHODS[method]))
    assert done.returncode == 0, done.stderr
    folder = places / "checkpoints" / "zoo" / method / "pretrain"
    assert lines(folder)
    found = read_backbone(folder / "checkpoint.pth")
    assert (found.format, found.depth) == ("openselfsup raw", 18)
    assert not found.default_statistics


def test_two_processes_share_a_queue(openselfsup, places, drawn):
    running = launch(
        2, *pretrain("two/moco", drawn, *SMALL, *METHODS["moco"], "gpus=2"), CUDA_VISIBLE_DEVICES=""
    )
    _, error = running.communicate()
    assert running.returncode == 0, error
    folder = places / "checkpoints" / "two" / "moco" / "pretrain"
    assert len(lines(folder)) == 2
    state = torch.load(folder / "checkpoint.pth", weights_only=True)["state_dict"]
    assert state["queue_ptr"] == 0, "48 keys in two steps"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "is for 8 processes of 256 images each: found 1"),
        (["totl_epochs=2"], "unknown key 'totl_epochs'; did you mean 'total_epochs'?"),
    ],
)
def test_a_mistake_gets_one_line(openselfsup, places, drawn, more, message):
    done = run(*pretrain("bad/byol", drawn, *more))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
