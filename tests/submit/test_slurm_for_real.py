"""A real Slurm runs a method's whole chain in small, and stops, requeues and resumes its finetuning."""

import json
import os
import re
import subprocess

import pytest

from tests.conftest import KIT, placed
from tests.support.slurm import (
    ask,
    began_at,
    cluster,
    log,
    stop_in_time,
    submit,
    told,
    unavailable,
    wait_until,
)
from triplet import cli

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # a minute where nothing else runs

RUN = "on slurm/triplet"
"""A name with a blank, as names may be."""
DATA = (KIT / "tests/containers/tiny/data.yaml").read_text()
PRETRAIN = KIT / "tests/containers/tiny/pretrain.yaml"
DETECTION = f"""
_BASE_: {KIT}/configs/detection/demo.yaml
SOLVER: {{MAX_ITER: 12, STEPS: [10], WARMUP_ITERS: 4, IMS_PER_BATCH: 2, BASE_LR: 0.02}}
TEST: {{PRECISE_BN: {{NUM_ITER: 2}}}}
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """The three places, of which jobs know, on a running cluster."""
    if lacking := unavailable():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(lacking)
    folder = tmp_path_factory.mktemp("slurm")
    with cluster(folder), placed(folder):
        yield folder


def test_a_chain_is_stopped_requeued_and_resumed_to_its_report(slurm, capsys):
    (slurm / "data.yaml").write_text(DATA)
    (slurm / "detection.yaml").write_text(DETECTION)
    detection = f"--config {slurm}/detection.yaml"
    chain = (
        f"pull demo --config {slurm}/data.yaml",
        f"pretrain --config {PRETRAIN} --data demo/unlabelled schedule.epochs=0",
        f"convert {detection}",
        f"finetune {detection} --data demo",
        "eval",
        "report",
    )
    jobs = submit(capsys, *chain, "--run", RUN)
    assert list(jobs) == ["pull", "pretrain", "convert", "finetune", "eval", "report"]
    for before, stage in zip(list(jobs), list(jobs)[1:], strict=False):
        assert told(jobs[stage])["Dependency"].startswith(f"afterok:{jobs[before]}(")

    # Nothing is submitted twice.
    assert cli.main(["submit", "finetune", "--on", "slurm", "--run", RUN]) == 2
    assert f"submitted already: finetune (job {jobs['finetune']})" in capsys.readouterr().err

    # What Slurm does before the time limit.
    stage = slurm / "checkpoints" / RUN / "finetune"
    stop_in_time(jobs["finetune"], stage, slurm)
    assert not (stage / "record.json").exists()
    assert told(jobs["eval"])["JobState"] == "PENDING"

    wait_until((slurm / "reports" / "index.html").exists, slurm)
    wait_until(lambda: not ask("squeue", "--noheader"), slurm)
    (done,) = re.findall(r"stopped by SIGTERM: .*?(\d+) of 12 iterations", log(slurm, "finetune"))
    assert began_at(stage) == ["0", done]
    assert 0 < int(done) < 12
    assert told(jobs["finetune"])["Restarts"] == "1"
    assert {told(job)["JobState"] for job in jobs.values()} == {"COMPLETED"}
    assert json.loads((stage / "record.json").read_text())["results"]["loaded_tensors"] == 318


@pytest.mark.parametrize(
    "arguments",
    [
        ("chain", "--gpus", 8, "--hours", 12, "--memory", 32),
        ("convert", "finetune", "--method", "all", "--seeds", 0, 1, "--extra=--comment='a b' --exclusive"),
    ],
)
def test_slurm_takes_every_file(slurm, capsys, arguments):
    assert cli.main(["submit", *map(str, arguments), "--on", "slurm", "--dry"]) == 0
    files = re.findall(r"^submit: (.*\.slurm)$", capsys.readouterr().out, re.M)
    assert len(files) >= 2
    for file in files:
        done = subprocess.run(["sbatch", "--test-only", file], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "to start at" in done.stderr
