"""Kills at random moments and at the ends of stages: nothing trained is lost, and the end is the same.

By hand, with more of them: ``KILLS=50 FAILPOINTS=20 .venv/bin/pytest -n 0 tests/test_kills.py``.
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
from triplet.training import checkpoint

pytestmark = pytest.mark.slow
KILLS, FAILPOINTS = int(os.environ.get("KILLS", 2)), int(os.environ.get("FAILPOINTS", 2))
SEED = int(os.environ.get("SEED", 0))
DEMO = """
data: {unlabelled: 26, train: 8, val: 4, radii: [18, 30], large: [28, 50], objects: [1, 2]}
subset: {train: 6, val: 3}
pretrain: pretrain.yaml
detection: detection.yaml
rows: {triplet: []}
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
RESULTS = {"pretrain": ("checkpoint.pth", "networks"), "finetune": ("model_final.pth", "model")}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The whole chain in small, and how long it took."""
    return World(tmp_path_factory.mktemp("world"))


class World:
    def __init__(self, folder):
        self.folder, self.whole = folder, folder / "whole"
        pretrain = (KIT / "configs/pretrain/demo.yaml").read_text()
        pretrain = re.sub(r"group: \d+", "group: 13", pretrain)
        pretrain = re.sub(r"epochs: \d+, w", "epochs: 3, w", pretrain) + "checkpoint_every: 1\n"
        (folder / "pretrain.yaml").write_text(pretrain)
        (folder / "detection.yaml").write_text(DETECTION)
        demo = DEMO.replace("pretrain.yaml", str(folder / "pretrain.yaml"))
        demo = demo.replace("detection.yaml", str(folder / "detection.yaml"))
        (folder / "demo.yaml").write_text(demo)
        self.command = ("demo", "--config", folder / "demo.yaml")
        began = time.monotonic()
        done = run(*self.command, **self.places(self.whole))
        assert done.returncode == 0, done.stderr
        self.seconds = time.monotonic() - began

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


def test_kills_at_random_moments_lose_nothing(world):
    moments, folder, killed, last = random.Random(SEED), world.folder / "random", 0, {}
    while killed < KILLS:
        process = start(*world.command, session=True, **world.places(folder))
        time.sleep(moments.uniform(0, world.seconds))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if process.wait(60) == 0:
            world.assert_same(folder)
            shutil.rmtree(folder)
            last = {}
            continue
        killed += 1
        now = world.reached(folder)
        assert all(now[stage] >= steps for stage, steps in last.items()), (killed, last, now)
        last = now
    done = run(*world.command, **world.places(folder))
    assert done.returncode == 0, done.stderr
    world.assert_same(folder)


@pytest.mark.parametrize("number", range(FAILPOINTS))
def test_kills_at_the_ends_of_stages_lose_nothing(world, monkeypatch, number):
    draws, folder = random.Random(SEED + number), world.folder / f"end{number}"
    end = ENDS[number % len(ENDS)]
    for name, path in world.places(folder).items():
        monkeypatch.setenv(name, str(path))
    killed = killed_at(end, draws.randint(1, 5), *world.command)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stage = end.partition("/")[0]
    if stage in RESULTS:
        assert world.reached(folder)[stage] >= {"pretrain": 6, "finetune": 4}[stage]
    done = run(*world.command)
    assert done.returncode == 0, done.stderr
    world.assert_same(folder)
