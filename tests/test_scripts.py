"""The launchers of scripts/, with stand-ins for Slurm's own commands and SkyPilot's variables."""

import os
import signal
import subprocess
import time

import pytest
import yaml

from tests.conftest import KIT

SLURM = KIT / "scripts" / "pretrain.slurm"
SKY = KIT / "scripts" / "pretrain.sky.yaml"

STAND_INS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> "$SAID"; fi""",
    "srun": """
        [ "$1 $2" = "--cpus-per-task=64 --kill-on-bad-exit=1" ] && shift 2
        echo $$ > "$SAID.step"
        exec "$@" """,
    "scancel": """
        [ "$*" = "--signal=TERM 41.0" ] && kill -TERM "$(cat "$SAID.step")" """,
    "make": """
        echo "make $*" >> "$SAID"
        trap 'echo saved >> "$SAID"; exit 2' TERM
        for i in $(seq "$TENTHS"); do sleep 0.1; done
        exit "$CODE" """,
}


@pytest.fixture
def slurm(tmp_path):
    """Start the batch script as sbatch does; what its commands said is in the file."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + text)
        (tmp_path / name).chmod(0o755)
    said = tmp_path / "said"
    said.touch()

    def start(tenths, code=0, **more):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SAID": str(said),
            "TENTHS": str(tenths),
            "CODE": str(code),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_GPUS_ON_NODE": "8",
            "SLURM_CPUS_PER_TASK": "64",
            **more,
        }
        return subprocess.Popen(
            ["bash", SLURM, "RUN=a", "FORCE=1"], env=environment, text=True, stdout=subprocess.PIPE
        )

    return start, said


@pytest.mark.parametrize("code", [0, 2])
def test_each_node_of_a_slurm_job_runs_make_with_the_first_as_meeting_point(slurm, code):
    start, said = slurm
    assert start(0, code).wait() == code
    assert said.read_text() == "make pretrain GPUS=8 NODES=2 RDZV=node7:20041 RUN=a FORCE=1\n"


def test_a_slurm_job_that_was_queued_again_does_not_start_over(slurm):
    start, said = slurm
    assert start(0, SLURM_RESTART_COUNT="1").wait() == 0
    assert said.read_text().endswith("RUN=a FORCE=1 FORCE=\n")


def test_before_its_time_limit_a_slurm_job_saves_and_is_queued_again(slurm):
    start, said = slurm
    job = start(600)
    while "make" not in said.read_text():
        time.sleep(0.02)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 0
    assert "five minutes before the time limit" in out
    assert said.read_text().splitlines()[1:] == ["saved", "scontrol requeue 41"]


def test_slurm_gives_the_warning_that_the_script_waits_for():
    options = [line.split()[1] for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=B:USR1@300", "--requeue", "--ntasks-per-node=1"} <= set(options)


def test_skypilot_sets_up_what_the_kit_needs(tmp_path):
    """With stand-ins, as root and not."""
    task = yaml.safe_load(SKY.read_text())
    for commands in (["apt-get", "make"], ["apt-get", "make", "sudo"]):
        folder = tmp_path / commands[-1]
        folder.mkdir()
        said = folder / "said"
        for name in commands:
            tool = folder / name
            tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {said}\n')
            tool.chmod(0o755)
        subprocess.run(["/bin/bash", "-euc", task["setup"]], env={"PATH": str(folder)}, check=True)
        *_, packages, last = said.read_text().splitlines()
        assert packages.startswith("sudo apt-get" if "sudo" in commands else "apt-get")
        assert {"git", "g++", "make", "python3-dev", "python3-venv"} <= {*packages.split()}
        assert last == "make setup"


def test_skypilot_runs_make_on_every_node():
    task = yaml.safe_load(SKY.read_text())
    environment = {
        **task["envs"],
        "PATH": os.environ["PATH"],
        "MAKEFLAGS": "--dry-run",
        "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    done = subprocess.run(
        ["bash", "-euc", task["run"]], cwd=KIT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "PROCESSES=16 .venv/bin/python -m triplet.launch --nnodes 2 --nproc-per-node 8" in done.stdout
    assert "--rdzv-endpoint 10.0.0.1:29500" in done.stdout
    said = " ".join(done.stdout.replace("\\\n", " ").split())
    assert f'--config "{task["envs"]["PRETRAIN"]}" --data "/data/imagenet/train"' in said
    assert (KIT / task["envs"]["PRETRAIN"]).exists()
