"""Kills and stops at random moments and at the ends of stages: nothing is lost, and the end is the same.

By hand, with more of them: see docs/robustness.md.
"""

import os
import random
import re
import shutil
import signal
import time

import pytest
import torch

from tests.conftest import KIT
from tests.support.processes import killed_at, run, start
from triplet import records
from triplet.signals import STOPPING
from triplet.training import checkpoint

KILLS, FAILPOINTS = int(os.environ.get("KILLS", 2)), int(os.environ.get("FAILPOINTS", 1))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 60 * (KILLS + FAILPOINTS))]
SEED = int(os.environ.get("SEED", 0))
DEMO = """
data: {unlabelled: 26, train: 8, val: 4, radii: [18, 30], large: [28, 50], objects: [1, 2]}
subset: {train: 6, val: 3}
pretrain: pretrain.yaml
detection: detection.yaml
methods: {triplet: []}
seeds: [0]
"""
DETECTION = f"""
_BASE_: {KIT}/configs/detection/demo.yaml
SOLVER: {{MAX_ITER: 4, STEPS: [3], IMS_PER_BATCH: 2, BASE_LR: 0.02}}
TEST: {{PRECISE_BN: {{NUM_ITER: 2}}}}
"""
ENDS = (
    "pretrain/.checkpoint.pth",
    "finetune/.model_final.pth",
    "convert/.record.json",
    "pretrain/.record.json",
    "eval/.record.json",
    "finetune/.record.json",
    "reports/.index.html",
    "datasets/demo/.record.json",
)
"""From the first writing of these on, the changes of files count."""
SIGNALS = (signal.SIGKILL, *STOPPING)
RESULTS = {"pretrain": ("checkpoint.pth", "networks"), "finetune": ("model_final.pth", "model")}


def write_pretrain(path, epochs):
    """The demo's pretraining, of two steps an epoch for 26 images, with a checkpoint after each."""
    text = re.sub(r"group: \d+", "group: 13", (KIT / "configs/pretrain/demo.yaml").read_text())
    path.write_text(re.sub(r"epochs: \d+, w", f"epochs: {epochs}, w", text) + "checkpoint_every: 1\n")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The whole chain in small."""
    return World(tmp_path_factory.mktemp("world"))


class World:
    def __init__(self, folder):
        self.folder, self.whole = folder, folder / "whole"
        write_pretrain(folder / "pretrain.yaml", epochs=3)
        (folder / "detection.yaml").write_text(DETECTION)
        demo = DEMO.replace("pretrain.yaml", str(folder / "pretrain.yaml"))
        demo = demo.replace("detection.yaml", str(folder / "detection.yaml"))
        (folder / "demo.yaml").write_text(demo)
        self.command = ("demo", "--config", folder / "demo.yaml")
        done = run(*self.command, **self.places(self.whole))
        assert done.returncode == 0, done.stderr

    def places(self, folder):
        return {f"TRIPLET_{name.upper()}": folder / name for name in ("datasets", "checkpoints", "reports")}

    def stage(self, folder, stage):
        return folder / "checkpoints" / "demo" / "seed0" / "triplet" / stage

    def reached(self, folder):
        """Steps that each training has behind it: all of them once it is on record."""
        found = {}
        for stage in RESULTS:
            path = self.stage(folder, stage)
            done = records.read(path)
            found[stage] = 1 << 30 if done else checkpoint.reached(path)
        return found

    def assert_same(self, folder):
        """The same tensors as of a chain that was never killed, and nothing left over."""
        for stage, (name, key) in RESULTS.items():
            ours, theirs = (
                torch.load(self.stage(each, stage) / name, weights_only=True)[key]
                for each in (folder, self.whole)
            )
            # Precise BN of a training that goes on draws other crops.
            compared = [name for name in theirs if stage == "pretrain" or ".running_" not in name]
            assert all(torch.equal(ours[name], theirs[name]) for name in compared), stage
            assert not list(self.stage(folder, stage).glob("step_*"))
        assert (folder / "reports" / "index.html").exists()


def test_kills_at_random_moments_lose_nothing(tmp_path_factory, drawn):
    """Of a pretraining: each start goes on from the newest checkpoint at least, and the end is the same."""
    folder = tmp_path_factory.mktemp("random")
    write_pretrain(folder / "pretrain.yaml", epochs=6)
    given = ("--config", folder / "pretrain.yaml", "--data", drawn / "unlabelled")
    command = ("pretrain", "--run", "run", *given, "model.depth=18", "model.hidden=32")
    whole, killed_run = ({"TRIPLET_CHECKPOINTS": folder / name} for name in ("whole", "killed"))
    assert run("--version").returncode == 0  # starts the server of processes as well
    began = time.monotonic()
    assert run(*command, **whole).returncode == 0
    seconds = time.monotonic() - began
    results, moments, killed, last = folder / "killed" / "run" / "pretrain", random.Random(SEED), 0, 0

    def assert_same():
        ours, theirs = (
            torch.load(folder / name / "run" / "pretrain" / "checkpoint.pth", weights_only=True)["networks"]
            for name in ("killed", "whole")
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert not list(results.glob("step_*"))

    while killed < KILLS:
        process = start(*command, session=True, **killed_run)
        time.sleep(moments.uniform(0, seconds))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait(60) == 0:
            assert_same()
            shutil.rmtree(folder / "killed")
            last = 0
            continue
        killed += 1
        now = 1 << 30 if (results / "record.json").exists() else checkpoint.reached(results)
        assert now >= last, killed
        last = now
    assert run(*command, **killed_run).returncode == 0
    assert_same()


@pytest.mark.parametrize("number", range(FAILPOINTS))
def test_kills_at_the_ends_of_stages_lose_nothing(world, monkeypatch, number):
    draws, folder = random.Random(SEED + number), world.folder / f"end{number}"
    end = ENDS[number % len(ENDS)]
    for name, path in world.places(folder).items():
        monkeypatch.setenv(name, str(path))
    by = SIGNALS[(number + number // len(ENDS)) % len(SIGNALS)]
    killed = killed_at(end, draws.randint(1, 5), *world.command, by=by)
    died = {-by, 128 + by}  # the command itself, or the process of its method
    if by != signal.SIGKILL:
        died.add(0)  # work that polls a flag may just be done
        assert "Traceback" not in killed.stderr
    assert killed.returncode in died, killed.stderr
    stage = end.partition("/")[0]
    if stage in RESULTS:
        assert world.reached(folder)[stage] >= {"pretrain": 6, "finetune": 4}[stage]
    done = run(*world.command)
    assert done.returncode == 0, done.stderr
    world.assert_same(folder)
