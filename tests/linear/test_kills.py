"""Kills and stops at the ends of the stages on ImageNet: nothing is lost, and the end is the same.

By hand, with more of them: see docs/robustness.md.
"""

import os
import random
import signal

import pytest
import torch

from tests.linear.conftest import IMAGES, PROBE
from tests.support.processes import killed_at
from triplet import cli, records
from triplet.signals import STOPPING
from triplet.training import checkpoint

FAILPOINTS = int(os.environ.get("FAILPOINTS", 1))
SEED = int(os.environ.get("SEED", 0))
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 60 * FAILPOINTS)]
STEPS = {"linear": 12, "semi": 6}
"""Of 45 images, or 40 % of them, in batches of 16 or 18; each leaves a checkpoint."""
TRAINED = PROBE.replace("epochs: 8", "epochs: 4, checkpoint_every: 1")
CONFIGS = {
    "linear": TRAINED,
    "semi": TRAINED + "percent: 40\n",
    "knn": IMAGES + "neighbours: [3, 20]\n",
}
ENDS = (
    ("linear", ".checkpoint.pth"),
    ("semi", ".checkpoint.pth"),
    ("knn", "features/centres/.record.json"),
    ("linear", "linear/.record.json"),
    ("semi", "semi/.record.json"),
    ("knn", "knn/.record.json"),
)
"""From the first writing of these on, the changes of files count."""
SIGNALS = (signal.SIGKILL, *STOPPING)


@pytest.mark.parametrize("number", range(FAILPOINTS))
def test_kills_at_the_ends_of_linear_stages_lose_nothing(places, run, number, capfd):
    stage, end = ENDS[number % len(ENDS)]
    extra = ("--draw",) if stage == "semi" else ()
    whole, killed = (run(stage, CONFIGS[stage], *extra, name=name) for name in ("whole", "killed"))
    assert cli.main(whole) == 0
    by = SIGNALS[(number + number // len(ENDS)) % len(SIGNALS)]
    done = killed_at(end, random.Random(SEED + number).randint(1, 4), *killed, by=by)
    assert done.returncode in ({-by} if by == signal.SIGKILL else {128 + by, 0}), done.stderr
    assert "Traceback" not in done.stderr
    root = places / "checkpoints"
    folders = [root / name / stage / stage for name in ("whole", "killed")]
    if steps := STEPS.get(stage):
        # The last step itself is done again from the checkpoint before it.
        assert records.read(folders[1]) or checkpoint.reached(folders[1]) >= steps - 1
    capfd.readouterr()
    assert cli.main(killed) == 0
    assert not list(folders[1].glob("step_*"))
    found = [records.read(folder).results for folder in folders]
    assert found[0] == found[1]
    if steps:
        ours, theirs = (
            torch.load(folder / "checkpoint.pth", weights_only=True)["networks"] for folder in folders
        )
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
