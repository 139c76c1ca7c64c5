"""The files of Kubernetes and SkyPilot as their own schemas, models and parser read them.

All are installed in an environment of their own: together they are 450 MB, which no user of the kit needs.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import KIT
from triplet import cli

pytestmark = pytest.mark.slow

PACKAGES = ("kubernetes-validate==1.37.0", "kubeflow-trainer-api==2.3.0", "skypilot==0.14.1")
KUBERNETES = ("1.37.0", "1.31.0")
"""The newest, and the oldest that the page names."""
READ_JOB_SET = """
import sys, yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import JobsetV1alpha2JobSet
for path in sys.argv[1:]:
    written = yaml.safe_load(open(path))
    read = JobsetV1alpha2JobSet.from_dict(written).to_dict()
    assert read == written, read
"""
READ_TASKS = """
import sys
from sky.utils import dag_utils
for path in sys.argv[1:]:
    dag = dag_utils.load_chain_dag_from_yaml(path)
    for task in dag.tasks:
        (resources,) = task.resources
        print(task.name, task.num_nodes, resources.accelerators, resources.use_spot, resources.job_recovery)
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Folder of the programs of an environment with both packages."""
    folder = tmp_path_factory.mktemp("readers")
    uv = Path(sys.executable).with_name("uv")
    made = subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"])
    python = folder / "venv" / "bin" / "python"
    installed = subprocess.run(
        [uv, "pip", "install", "--quiet", "--python", python, *PACKAGES], capture_output=True, text=True
    )
    if made.returncode or installed.returncode:
        reason = f"found no way to {', '.join(PACKAGES)}: {installed.stderr.strip()[-200:]}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return python.parent


def written(capsys, *arguments):
    assert cli.main(["submit", *arguments, "--dry"]) == 0
    return re.findall(r"^submit: (.*\.yaml)$", capsys.readouterr().out, re.M)


def test_kubernetes_knows_every_field(readers, places, capsys):
    chosen = ("--on", "k8s", "--container", "registry/kit:1", "--gpus", "8", "--hours", "12")
    files = written(capsys, "chain", *chosen, "--memory", "64")
    files += written(capsys, "finetune", "eval", *chosen, "--nodes", "2", "--method", "moco", "byol")
    claim = re.search(r"```yaml\n(.*?)```", (KIT / "docs" / "clusters.md").read_text(), re.S)[1]
    (places / "claim.yaml").write_text(claim)
    for version in KUBERNETES:
        command = [readers / "kubernetes-validate", "-k", version, "--strict"]
        done = subprocess.run([*command, *files, places / "claim.yaml"], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    wrong = places / "wrong.yaml"
    wrong.write_text(Path(files[0]).read_text().replace("restartPolicy", "restartPolcy"))
    assert subprocess.run([*command, wrong], capture_output=True).returncode != 0


def test_the_models_of_job_sets_know_every_field(readers, places, capsys):
    chosen = ("--on", "k8s", "--container", "registry/kit:1", "--gpus", "8", "--hours", "12")
    (file,) = written(capsys, "chain", *chosen, "--memory", "64", "--nodes", "2")
    command = [readers / "python", "-c", READ_JOB_SET]
    done = subprocess.run([*command, file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    jobs = [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": each["name"]}, **each["template"]}
        for each in yaml.safe_load(Path(file).read_text())["spec"]["replicatedJobs"]
    ]
    (places / "jobs.yaml").write_text(yaml.safe_dump_all(jobs))
    command_of_jobs = [readers / "kubernetes-validate", "-k", KUBERNETES[-1], "--strict"]
    done = subprocess.run([*command_of_jobs, places / "jobs.yaml"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for right, wrong in (("dependsOn", "dependOn"), ("restartPolicy", "restartPolcy")):
        (places / "wrong.yaml").write_text(Path(file).read_text().replace(right, wrong))
        assert subprocess.run([*command, places / "wrong.yaml"], capture_output=True).returncode != 0


def test_skypilot_reads_every_task(readers, places, capsys):
    chosen = ("--on", "sky", "--bucket", "s3://mine", "--gpu", "H100", "--gpus", "8")
    files = written(capsys, "chain", *chosen, "--nodes", "2", "--memory", "64", "--hours", "3")
    files += written(capsys, "pretrain", *chosen, "--method", "moco")
    done = subprocess.run(
        [readers / "python", "-c", READ_TASKS, *files],
        env={**os.environ, "HOME": str(places), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split("-")[1] for line in lines] == [
        "pull",
        "convert",
        "finetune",
        "eval",
        "report",
        "pretrain",
    ]
    assert "2 {'H100': 8} True" in lines[2]
    assert "1 None True" in lines[0]
    assert "EAGER_NEXT_REGION" in lines[2].upper()
