"""SkyPilot: a managed job for each run, on spot machines; several stages are its pipeline.

Data, checkpoints and reports lie in a bucket that every machine mounts, so a task that lost its machine
resumes from its last checkpoint on the next one.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triplet import paths
from triplet.errors import KitError
from triplet.submit.documents import dump
from triplet.submit.jobs import KIT, ClusterJob, ask, label, title

PORT = 29500
SETUP = """\
sudo=$(command -v sudo || true)
$sudo apt-get -q update
$sudo apt-get -q install -y --no-install-recommends git g++ make python3 python3-dev python3-venv
make setup
"""
RUN = """\
export PATH="$PWD/.venv/bin:$PATH" RDZV="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):{port}"
exec {limit}scripts/launch.sh {command}
"""


def write(jobs: Sequence[ClusterJob]) -> dict[str, str]:
    """Return one file for each run; several documents in a file are a pipeline."""
    comment = (
        "Written by `triplet submit`. `sky jobs launch` finds another machine when this one is taken away."
    )
    files = {}
    for index, run in enumerate(jobs[0].runs):
        name = label(title(jobs), run)
        tasks = [_task(label(job.stage, run), job, index) for job in jobs]
        pipeline = [{"name": name}, *tasks] if tasks[1:] else tasks
        files[f"{name}.sky.yaml"] = dump(comment, pipeline)
    return files


def _task(name: str, job: ClusterJob, index: int) -> dict[str, Any]:
    resources = job.resources
    limit = f"timeout --kill-after=300 {round(resources.hours * 3600)} " if resources.hours else ""
    return {
        "name": name,
        "num_nodes": resources.nodes,
        "resources": {
            # It has Python 3.12, unlike the images of some clouds.
            "image_id": "docker:ubuntu:24.04",
            **({"accelerators": f"{resources.card}:{resources.gpus}"} if resources.gpus else {}),
            "cpus": f"{resources.cores}+",
            **({"memory": f"{resources.memory}+"} if resources.memory else {}),
            "disk_size": 500,
            "use_spot": True,
            "job_recovery": "EAGER_NEXT_REGION",  # a region that reclaims machines has few free ones
        },
        "workdir": str(KIT),
        "file_mounts": {"/data": {"source": resources.bucket, "mode": "MOUNT_CACHED"}},
        "envs": {
            **{f"TRIPLET_{place.upper()}": f"/data/{place}" for place in paths.PLACES},
            "GPUS": str(resources.processes),
            "NODES": str(resources.nodes),
        },
        "setup": SETUP,
        "run": RUN.format(port=PORT, limit=limit, command=shlex.join(job.command(index))),
    }


def submissions(files: Sequence[Path]) -> list[list[str]]:
    """Return the commands that submit the files."""
    return [["sky", "jobs", "launch", "--yes", "--detach-run", str(file)] for file in files]


def queued(jobs: Sequence[ClusterJob]) -> list[str]:
    """Return the unfinished managed jobs of the same stages and runs."""
    said = ask(["sky", "jobs", "queue", "--skip-finished", "--output=json"])
    try:
        listed = json.loads(said[said.index("[") :])
    except ValueError:
        raise KitError(f"sky does not answer: {said}") from None
    names = {label(title(jobs), run) for run in jobs[0].runs}
    return [each["job_name"] for each in listed if each.get("job_name") in names]
