"""Kubernetes: an Indexed Job for each run, with a headless service through which its pods find each other.

It needs no operator. The stages before the last are init containers: they run one after the other, each
gets its own signals, and in a recreated pod they find that they are done. All pods of a Job are alike, so
stages that take different numbers of nodes are a JobSet: an Indexed Job for each stage, which waits for
the one before it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triplet import paths
from triplet.submit.documents import dump
from triplet.submit.jobs import ClusterJob, Resources, ask, label, title

PORT = 29400
USER = 10001
"""User id of the image."""
STOPPED = 143
"""Exit code of a stage that was stopped and has saved."""
WRONG = 2
"""Exit code of a stage that finds an error, which a restart cannot fix."""
RETRIES = 10
"""Further starts of each pod after other ends: when one is lost, those that it trained with end as well."""


def write(jobs: Sequence[ClusterJob]) -> dict[str, str]:
    """Return one file for all runs."""
    documents = []
    for run, name in enumerate(jobs[0].runs):
        named = _name(jobs, name)
        if _alike(jobs):
            documents += [_service(named), _job(named, name, jobs, run)]
        else:
            documents.append(_job_set(named, name, jobs, run))
    comment = (
        "Written by `triplet submit`. A pod that is evicted is made anew and goes on from its checkpoint."
    )
    return {f"{title(jobs)}.k8s.yaml": dump(comment, documents)}


def _alike(jobs: Sequence[ClusterJob]) -> bool:
    """Return whether all stages take the same number of nodes."""
    return len({job.resources.nodes for job in jobs}) == 1


def _name(jobs: Sequence[ClusterJob], run: str) -> str:
    """Return the name of a run's Job or JobSet, which differ: a JobSet would take the service that an
    earlier Job of its name left for its own."""
    return label(title(jobs) if _alike(jobs) else f"{title(jobs)}-set", run)


def _service(name: str) -> dict[str, Any]:
    """Return the service that gives pods DNS names even before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "triplet"}},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
            "ports": [{"name": "rendezvous", "port": PORT}],
        },
    }


def _metadata(name: str, run: str, jobs: Sequence[ClusterJob]) -> dict[str, Any]:
    return {
        "name": name,
        "labels": {"app.kubernetes.io/name": "triplet", "app.kubernetes.io/component": title(jobs)},
        "annotations": {"triplet/run": run},
    }


def _job(name: str, run: str, jobs: Sequence[ClusterJob], index: int) -> dict[str, Any]:
    containers = [_container(f"{name}-0.{name}", job, index) for job in jobs]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, run, jobs),
        "spec": _job_spec(name, jobs[-1].resources, containers),
    }


def _job_set(name: str, run: str, jobs: Sequence[ClusterJob], index: int) -> dict[str, Any]:
    """Return a JobSet, whose controller makes the headless service and the Jobs ``<name>-<stage>-0``."""
    stages: list[dict[str, Any]] = []
    for job in jobs:
        container = _container(f"{name}-{job.stage}-0-0.{name}", job, index)
        after = {"dependsOn": [{"name": stages[-1]["name"], "status": "Complete"}]} if stages else {}
        spec = _job_spec(name, job.resources, [container])
        stages.append({"name": job.stage, "replicas": 1, **after, "template": {"spec": spec}})
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(name, run, jobs),
        "spec": {"replicatedJobs": stages},
    }


def _job_spec(subdomain: str, resources: Resources, containers: list[dict[str, Any]]) -> dict[str, Any]:
    limit = {"activeDeadlineSeconds": round(resources.hours * 3600)} if resources.hours else {}
    return {
        "completionMode": "Indexed",
        "completions": resources.nodes,
        "parallelism": resources.nodes,
        "backoffLimit": RETRIES * resources.nodes,
        **limit,
        "podFailurePolicy": {"rules": _rules()},
        "template": {
            "metadata": {"labels": {"app.kubernetes.io/name": "triplet"}},
            "spec": _pod(subdomain, containers),
        },
    }


def _rules() -> list[dict[str, Any]]:
    """Return the rules for failed pods, which need Kubernetes 1.31 or later."""
    return [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [WRONG]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [STOPPED]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _pod(subdomain: str, containers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the pod, with the same limits as in compose.yaml."""
    volumes: list[dict[str, Any]] = [
        {"name": place, "persistentVolumeClaim": {"claimName": f"triplet-{place}"}}
        for place in paths.PLACES
    ]
    return {
        "subdomain": subdomain,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 300,
        "shareProcessNamespace": True,  # so that a stage is not process 1, which ignores signals
        "automountServiceAccountToken": False,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
        **({"initContainers": containers[:-1]} if containers[1:] else {}),
        "containers": containers[-1:],
        "volumes": [
            *volumes,
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _container(first: str, job: ClusterJob, index: int) -> dict[str, Any]:
    """Return the container of a stage; ``first`` is the host name of the first pod."""
    resources = job.resources
    mounts = {place: f"/{place}" for place in paths.PLACES} | {"tmp": "/tmp", "shm": "/dev/shm"}
    meeting = f"{first}:{PORT}" if resources.nodes > 1 else "localhost:0"
    settings = {"GPUS": resources.processes, "NODES": resources.nodes, "RDZV": meeting}
    settings["TRIPLET_IMAGE"] = str(resources.container)
    return {
        "name": job.stage,
        "image": resources.container,
        # Kubernetes replaces $(NAME) by a variable, and $$ by a dollar.
        "command": ["scripts/launch.sh", *(word.replace("$", "$$") for word in job.command(index))],
        "env": [{"name": key, "value": str(value)} for key, value in settings.items()],
        "resources": _amounts(resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": key, "mountPath": path} for key, path in mounts.items()],
    }


def _amounts(resources: Resources) -> dict[str, Any]:
    requests = {"cpu": str(resources.cores)}
    if resources.memory:
        requests["memory"] = f"{resources.memory}G"
    limits = {"limits": {"nvidia.com/gpu": str(resources.gpus)}} if resources.gpus else {}
    return {"requests": requests, **limits}


def submissions(files: Sequence[Path], *, force: bool) -> list[list[str]]:
    """Return the command that submits the file; ``force`` replaces objects of the same names."""
    way = ["replace", "--force"] if force else ["create"]
    return [["kubectl", *way, "--filename", str(file)] for file in files]


def queued(jobs: Sequence[ClusterJob]) -> list[str]:
    """Return the jobs of the same stages and runs that Kubernetes already has."""
    kind = "jobs" if _alike(jobs) else "jobsets"
    names = [_name(jobs, run) for run in jobs[0].runs]
    return ask(["kubectl", "get", kind, *names, "--ignore-not-found", "--output=name"]).split()
