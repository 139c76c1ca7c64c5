"""The Jobs of Kubernetes: what they say; test_schemas.py holds them against Kubernetes's own schemas."""

import itertools
import re

import pytest
import yaml

from tests.conftest import KIT
from triplet.submit import kubernetes
from triplet.submit.jobs import OF_NO_RUN, STAGES, ClusterRun, Resources, plan_jobs

COMPOSE = yaml.safe_load((KIT / "compose.yaml").read_text())


def documents(*stages, runs=("triplet",), **asked):
    resources = Resources(container="registry/kit:1", **asked)
    jobs = plan_jobs([stage.split() for stage in stages], [ClusterRun(name) for name in runs], resources)
    (text,) = kubernetes.write(jobs).values()
    return list(yaml.safe_load_all(text))


def pod(job):
    return job["spec"]["template"]["spec"]


def environment(container):
    return {each["name"]: each["value"] for each in container["env"]}


def test_pods_meet_at_the_first_by_its_services_name(places):
    service, job = documents("finetune", gpus=8, nodes=2)
    name = job["metadata"]["name"]
    assert service["metadata"]["name"] == pod(job)["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    assert (job["spec"]["parallelism"], job["spec"]["backoffLimit"]) == (2, 20)
    (container,) = pod(job)["containers"]
    (port,) = service["spec"]["ports"]
    assert environment(container)["RDZV"] == f"{name}-0.{name}:{port['port']}"
    assert (environment(container)["GPUS"], environment(container)["NODES"]) == ("8", "2")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_pod_starts_what_the_service_of_its_stage_starts(places, stage):
    """Where compose.yaml has the launcher, a stage uses several GPUs; triplet itself is one process."""
    service = COMPOSE["services"][stage]
    _, job = documents(f"{stage} --data coco", runs=["a b/triplet"], gpus=4)
    (container,) = pod(job)["containers"]
    program, name = service["entrypoint"]
    once = stage in OF_NO_RUN
    run = [] if once else ["--run", "a b/triplet"]
    assert container["command"] == ["scripts/launch.sh", name, *run, "--data", "coco"]
    distributed = program == "scripts/launch.sh"
    assert environment(container) == {
        "GPUS": "4" if distributed else "1",
        "NODES": "1",
        "RDZV": "localhost:0",
        "TRIPLET_IMAGE": "registry/kit:1",
    }
    local = {"MAKELEVEL", "RUNTIME", "OMP_NUM_THREADS"}  # of the shell in which compose is typed
    assert not distributed or environment(container).keys() == service["environment"].keys() - local
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    volumes = {re.search(":(/[a-z/]+)(:ro)?$", volume)[1] for volume in service["volumes"]}
    assert volumes - {"/kit/configs"} <= mounted


def test_the_places_are_volumes_and_loaders_have_shared_memory(places):
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
    each = {container["name"]: environment(container) for container in [*pod(job)["initContainers"], last]}
    assert [each[name]["GPUS"] for name in ("convert", "finetune")] == ["1", "4"]
    assert {values["RDZV"] for values in each.values()} == {"localhost:0"}


def test_stages_of_several_sizes_are_a_job_set_link_by_link(places):
    (job_set,) = documents("pull coco", "convert", "finetune", "eval", "report", gpus=8, nodes=12, hours=2)
    name, links = job_set["metadata"]["name"], job_set["spec"]["replicatedJobs"]
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert [link["name"] for link in links] == ["pull", "convert", "finetune", "eval", "report"]
    for before, link in itertools.pairwise(links):
        assert link["dependsOn"] == [{"name": before["name"], "status": "Complete"}]
    assert "dependsOn" not in links[0]
    assert [link["template"]["spec"]["completions"] for link in links] == [1, 1, 12, 12, 1]
    for link in links:
        pods = pod(link["template"])
        (container,) = pods["containers"]  # each holds what its own stage needs, while that runs
        distributed = link["name"] in ("finetune", "eval")
        assert ("limits" in container["resources"]) == distributed
        first = f"{name}-{link['name']}-0-0.{pods['subdomain']}:29400"
        assert environment(container)["RDZV"] == (first if distributed else "localhost:0")
        assert pods["subdomain"] == name  # of the service that the set's controller makes
        assert link["template"]["spec"]["activeDeadlineSeconds"] == 7200
        assert len(f"{name}-{link['name']}-0-11-abcde") <= 63  # a pod


def test_a_job_of_a_set_is_what_it_is_alone_but_for_its_name(places):
    _, alone = documents("finetune", gpus=8, nodes=2)
    (job_set,) = documents("convert", "finetune", gpus=8, nodes=2)
    assert job_set["metadata"]["name"] != documents("convert", "finetune")[0]["metadata"]["name"]
    (together,) = [each["template"] for each in job_set["spec"]["replicatedJobs"][1:]]
    for job in (alone, together):
        pod(job).pop("subdomain")
        (rendezvous,) = [each for each in pod(job)["containers"][0]["env"] if each["name"] == "RDZV"]
        rendezvous.pop("value")
    assert together["spec"] == alone["spec"]


def test_a_container_is_bound_as_composes_are(places):
    (service, *_) = yaml.safe_load((KIT / "compose.yaml").read_text())["services"].values()
    _, job = documents("finetune")
    (container,) = pod(job)["containers"]
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": service["read_only"],
        "capabilities": {"drop": service["cap_drop"]},
        "allowPrivilegeEscalation": service["security_opt"] != ["no-new-privileges:true"],
    }


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
