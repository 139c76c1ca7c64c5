"""SkyPilot's tasks: what they say and run; test_schemas.py has SkyPilot itself read them."""

import os
import subprocess

import yaml

from tests.conftest import KIT
from triplet.submit import sky
from triplet.submit.jobs import ClusterRun, Resources, plan_jobs


def tasks(*stages, runs=("triplet",), **asked):
    resources = Resources(bucket="s3://mine", card="H100", **asked)
    jobs = plan_jobs([stage.split() for stage in stages], [ClusterRun(name) for name in runs], resources)
    return [list(yaml.safe_load_all(text)) for text in sky.write(jobs).values()]


def run(task, folder, **more):
    """What the task's command starts, with a stand-in for Python and the kit."""
    for name in ("python", "triplet"):
        (folder / name).write_text('#!/bin/sh\necho "$TRIPLET_PROCESSES $(basename "$0") $*"\n')
        (folder / name).chmod(0o755)
    environment = {**task["envs"], "PATH": f"{folder}:{os.environ['PATH']}", **more}
    text = task["run"].replace("$PWD/.venv/bin", str(folder))
    done = subprocess.run(
        ["bash", "-euc", text], cwd=KIT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_it_sets_up_what_the_kit_needs(tmp_path):
    """With stand-ins, as root and not."""
    for commands in (["apt-get", "make"], ["apt-get", "make", "sudo"]):
        folder = tmp_path / commands[-1]
        folder.mkdir()
        said = folder / "said"
        for name in commands:
            tool = folder / name
            tool.write_text(f'#!/bin/sh\necho "{name} $*" >> {said}\n')
            tool.chmod(0o755)
        subprocess.run(["/bin/bash", "-euc", sky.SETUP], env={"PATH": str(folder)}, check=True)
        *_, packages, last = said.read_text().splitlines()
        assert packages.startswith("sudo apt-get" if "sudo" in commands else "apt-get")
        assert {"git", "g++", "make", "python3-dev", "python3-venv"} <= {*packages.split()}
        assert last == "make setup"


def test_every_node_starts_the_launcher_and_meets_at_the_first(places, tmp_path):
    ((task,),) = tasks("pretrain --data /data/imagenet", gpus=8, nodes=2)
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    said = run(task, tmp_path, SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2")
    assert said == (
        "16 python -m triplet.launch --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d "
        "--rdzv-endpoint 10.0.0.1:29500 --no-python -- triplet pretrain --run triplet --data /data/imagenet"
    )


def test_hours_stop_a_stage_as_a_signal_does(places, tmp_path):
    ((task,),) = tasks("convert", runs=["a b"], hours=2)
    assert "exec timeout --kill-after=300 7200 scripts/launch.sh" in task["run"]
    assert run(task, tmp_path, SKYPILOT_NODE_IPS="10.0.0.1") == "1 triplet convert --run a b"


def test_the_three_places_lie_in_the_bucket(places):
    ((task,),) = tasks("eval")
    assert task["file_mounts"] == {"/data": {"source": "s3://mine", "mode": "MOUNT_CACHED"}}
    for name in ("datasets", "checkpoints", "reports"):
        assert task["envs"][f"TRIPLET_{name.upper()}"] == f"/data/{name}"
    assert task["workdir"] == str(KIT)


def test_machines_are_spot_and_recovered(places):
    ((task,),) = tasks("finetune", memory=200)
    assert task["resources"]["use_spot"]
    assert task["resources"]["job_recovery"] == "EAGER_NEXT_REGION"
    assert task["resources"]["memory"] == "200+"


def test_a_chain_is_a_pipeline_whose_tasks_take_what_each_needs(places):
    first, second = tasks("convert", "finetune", "eval", runs=["moco", "byol"], gpus=4, nodes=2)
    header, *rest = first
    assert set(header) == {"name"}
    assert [task["num_nodes"] for task in rest] == [1, 2, 2]
    assert ["accelerators" in task["resources"] for task in rest] == [False, True, True]
    assert [task["resources"]["cpus"] for task in rest] == ["4+", "32+", "32+"]
    assert second[0]["name"] != header["name"]
    assert second[2]["run"].splitlines()[-1].endswith("scripts/launch.sh finetune --run byol")
