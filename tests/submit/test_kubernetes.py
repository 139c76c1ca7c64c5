"""The Jobs of Kubernetes: what they say; test_schemas.py holds them against Kubernetes's own schemas."""

import pytest
import yaml

from triplet.submit import kubernetes
from triplet.submit.jobs import Resources, Run, plan_jobs


def documents(*stages, runs=("triplet",), **asked):
    resources = Resources(container="registry/kit:1", **asked)
    jobs = plan_jobs([stage.split() for stage in stages], [Run(name) for name in runs], resources)
    (text,) = kubernetes.write(jobs).values()
    return list(yaml.safe_load_all(text))


def pod(job):
    return job["spec"]["template"]["spec"]


def environment(container):
    return {each["name"]: each["value"] for each in container["env"]}


def test_the_pods_of_a_job_meet_at_the_first_by_the_name_that_its_service_gives(places):
    service, job = documents("finetune", gpus=8, nodes=2)
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod(job)["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    (container,) = pod(job)["containers"]
    (port,) = service["spec"]["ports"]
    assert environment(container)["RDZV"] == f"{name}-0.{name}:{port['port']}"
    assert (environment(container)["GPUS"], environment(container)["NODES"]) == ("8", "2")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}


def test_a_pod_starts_what_a_service_of_compose_starts(places):
    _, job = documents("finetune --data coco", runs=["a b/triplet"])
    (container,) = pod(job)["containers"]
    assert container["command"] == [
        "scripts/launch.sh",
        "finetune",
        "--run",
        "a b/triplet",
        "--data",
        "coco",
    ]
    assert environment(container) == {
        "GPUS": "1",
        "NODES": "1",
        "RDZV": "localhost:0",
        "TRIPLET_IMAGE": "registry/kit:1",
    }


def test_the_three_places_are_volumes_and_loaders_have_shared_memory(places):
    _, job = documents("eval")
    claims = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod(job)["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {name: f"triplet-{name}" for name in ("datasets", "checkpoints", "reports")}
    mounted = {each["name"]: each["mountPath"] for each in pod(job)["containers"][0]["volumeMounts"]}
    assert {**mounted} == {**{name: f"/{name}" for name in claims}, "tmp": "/tmp", "shm": "/dev/shm"}
    assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod(job)["volumes"]


def test_a_chain_is_init_containers_and_its_last_stage(places):
    _, job = documents("pull coco weights", "convert", "finetune", "eval", "report", gpus=4)
    first = [container["name"] for container in pod(job)["initContainers"]]
    assert first == ["pull", "convert", "finetune", "eval"]
    (last,) = pod(job)["containers"]
    assert last["command"] == ["scripts/launch.sh", "report"]
    with_gpus = {
        container["name"]
        for container in [*pod(job)["initContainers"], last]
        if "limits" in container["resources"]
    }
    assert with_gpus == {"finetune", "eval"}


def test_an_evicted_pod_is_made_anew_and_a_wrong_command_is_not(places):
    _, job = documents("finetune", nodes=2)
    wrong, stopped, evicted = job["spec"]["podFailurePolicy"]["rules"]
    assert (wrong["action"], wrong["onExitCodes"]["values"]) == ("FailJob", [2])
    assert (stopped["action"], stopped["onExitCodes"]["values"]) == ("Ignore", [143])
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert pod(job)["restartPolicy"] == "Never"  # which a podFailurePolicy wants
    assert pod(job)["terminationGracePeriodSeconds"] == 300


@pytest.mark.parametrize(("asked", "seconds"), [({}, None), ({"hours": 1.5}, 5400)])
def test_hours_end_the_job(places, asked, seconds):
    _, job = documents("finetune", **asked)
    assert job["spec"].get("activeDeadlineSeconds") == seconds


def test_each_run_is_a_job_of_its_own(places):
    made = documents("finetune", runs=["moco", "byol"], memory=100, cpus=12)
    jobs = [each for each in made if each["kind"] == "Job"]
    assert [job["metadata"]["annotations"]["triplet/run"] for job in jobs] == ["moco", "byol"]
    assert len({job["metadata"]["name"] for job in jobs}) == 2
    (container,) = pod(jobs[1])["containers"]
    assert container["command"][2:] == ["--run", "byol"]
    assert container["resources"]["requests"] == {"cpu": "12", "memory": "100G"}


def test_kubernetes_puts_no_variable_into_a_command(places):
    """It would for $(NAME), and takes $$ for a dollar."""
    _, job = documents("finetune --data a$(GPUS)$b", runs=("$(RDZV)",))
    (container,) = pod(job)["containers"]
    assert container["command"][2:] == ["--run", "$$(RDZV)", "--data", "a$$(GPUS)$$b"]
