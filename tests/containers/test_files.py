"""The container files as linters and compose read them; what a build refuses."""

import json
import sys
from pathlib import Path

import pytest

from tests.containers.conftest import BASE, STAND_IN_CUDA, call
from triplet.pull.sources import load_sources

BIN = Path(sys.executable).parent


def test_the_dockerfiles_are_clean():
    done = call(str(BIN / "hadolint"), "docker/Dockerfile", "tests/containers/cuda_base.Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["compose.yaml", "compose.gpu.yaml"])
def test_the_compose_files_are_clean(file):
    done = call(str(BIN / "compose-lint"), file)
    assert done.returncode == 0, done.stdout + done.stderr


def services(checkout: Path, files: str = "compose.yaml", **given: str) -> dict:
    """The services as compose reads them."""
    done = call(
        "docker", "compose", "config", "--format", "json", cwd=checkout, COMPOSE_FILE=files, **given
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)["services"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {
            "METHOD": "byol",
            "SEED": "3",
            "COCO": "mine",
            "DETECTION": "d.yaml",
            "ARGS": "a=1 b=2",
            "LINEAR": "l.yaml",
            "PERCENT": "10",
            "LIST": "l.txt",
            "VAL": "v",
            "CLASSES": "c.txt",
            "FORMAT": "pth",
            "IMAGES": "photos",
            "SHOW": "dog,cat",
        },
    ],
)
def test_the_services_take_what_make_takes(checkout, given):
    """The plain `docker compose run` and make pass on the same, by the same names: nothing without one."""
    config = services(checkout, **given)
    for stage in [
        "pretrain",
        "convert",
        "finetune",
        "plan",
        "explain",
        "export",
        "eval",
        "predict",
        "linear",
        "knn",
        "semi",
        "svm",
    ]:
        variables = (f"{key}={value}" for key, value in given.items())
        made = call(
            "make", "--no-print-directory", "-n", stage, "RUNTIME=docker", *variables, cwd=checkout
        ).stdout.replace("\\\n", " ")
        typed = made.strip().splitlines()[-1].partition(f" {stage} ")[2].replace('"', "").split()
        assert config[stage]["command"] == typed, stage


def test_gpus_are_given_by_the_overlay_alone(checkout):
    assert not any("deploy" in service for service in services(checkout).values())
    with_gpus = services(checkout, "compose.yaml:compose.gpu.yaml")
    assert {n for n, s in with_gpus.items() if "deploy" in s} == {
        "pretrain",
        "finetune",
        "plan",
        "eval",
        "predict",
        "linear",
        "knn",
        "semi",
        "svm",
        "demo",
        "doctor",
    }
    assert with_gpus["finetune"]["ulimits"]["memlock"] == -1
    assert int(with_gpus["finetune"]["shm_size"]) >= 32 << 30


def test_only_the_download_and_tensorboard_have_a_network(checkout):
    networks = {name: service["network_mode"] for name, service in services(checkout).items()}
    assert networks.pop("pull") == networks.pop("download") == networks.pop("tensorboard") == "bridge"
    assert set(networks.values()) == {"none"}


def test_tokens_and_addresses_go_to_the_download_alone(checkout):
    mirrors = [source.mirror for source in load_sources().datasets.values() if source.mirror]
    names = [
        "HF_TOKEN",
        "HF_ENDPOINT",
        *(name for mirror in mirrors for name in (mirror.url, mirror.token)),
    ]
    given = services(checkout, **dict.fromkeys(names, "secret"))
    told = {name: [*service["environment"].values()].count("secret") for name, service in given.items()}
    assert told == {name: len(names) if name in ("pull", "download") else 0 for name in given}


def test_every_service_has_as_many_threads_as_its_user_says(checkout):
    given = services(checkout, OMP_NUM_THREADS="3")
    assert {name: each["environment"]["OMP_NUM_THREADS"] for name, each in given.items()} == dict.fromkeys(
        given, "3"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"DETECTRON2": "conda"}, "DETECTRON2 is git or pypi: found 'conda'"),
        ({"OPENSELFSUP": "yes"}, "is 0 or 1"),
    ],
)
def test_a_wrong_variant_is_refused(build, arguments, message):
    done = build("localhost/triplet-never", **arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_cuda_needs_nvcc(build):
    """On a base without a CUDA compiler the build for GPUs stops before it compiles, and says so."""
    done = build(
        "localhost/triplet-never", BASE_IMAGE=BASE, DETECTRON2_SOURCE=str(STAND_IN_CUDA), OPENSELFSUP="0"
    )
    assert done.returncode == 2
    assert "found no nvcc in BASE_IMAGE" in done.stdout + done.stderr
