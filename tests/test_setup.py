"""What scripts/setup.sh and the image compile for CUDA, with the toolkit that the machine has."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import triton

from tests.conftest import KIT

STAND_IN = KIT / "tests" / "containers" / "stand_in_cuda"
"""A package of Detectron2's shape with one operator."""
WITH_CUDA = KIT / "scripts" / "with_cuda.sh"
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
WHEELS = f"{sysconfig.get_path('purelib')}/nvidia/cu13/include"


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def with_cuda(binaries: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Print the environment of a command that may compile for CUDA; nvcc is one in ``binaries`` or none."""
    binaries.mkdir(parents=True, exist_ok=True)
    for name in ("bash", "env", "sed"):
        if not (binaries / name).exists():
            (binaries / name).symlink_to(shutil.which(name))
    return subprocess.run(
        [WITH_CUDA, sys.executable, "env"],
        env={"PATH": str(binaries), **given},
        capture_output=True,
        text=True,
    )


def variables(binaries: Path, **given: str) -> dict[str, str]:
    done = with_cuda(binaries, **given)
    assert done.returncode == 0, done.stderr
    return dict(line.partition("=")[::2] for line in done.stdout.splitlines())


@pytest.mark.parametrize("full", [True, False], ids=["full", "nvcc alone"])
def test_headers_come_from_wheels_where_the_toolkit_lacks_them(tmp_path, full):
    """nvcc is a wrapper elsewhere, as some machines have it: the toolkit's folder is what nvcc says."""
    toolkit = tmp_path / "cuda-13.0"
    (toolkit / "bin").mkdir(parents=True)
    says = (
        f'case "$*" in *--dryrun*) echo "#\\$ TOP={toolkit}/bin/.." >&2 ;; *) exit {int(not full)} ;; esac'
    )
    program(tmp_path / "elsewhere" / "nvcc", says)
    found = variables(tmp_path / "elsewhere")
    assert found["CUDA_HOME"] == str(toolkit)
    assert (WHEELS in found.get("CPLUS_INCLUDE_PATH", "").split(":")) is not full
    own = variables(tmp_path / "elsewhere", CPLUS_INCLUDE_PATH="/own")["CPLUS_INCLUDE_PATH"]
    assert own.split(":")[0] == "/own"


def test_without_nvcc_nothing_is_set_and_asking_for_cuda_fails(tmp_path):
    found = variables(tmp_path)
    assert not {"CUDA_HOME", "CPLUS_INCLUDE_PATH"} & {*found}
    done = with_cuda(tmp_path, FORCE_CUDA="1")
    assert done.returncode == 2
    assert done.stderr == (
        "cuda: FORCE_CUDA=1 compiles for CUDA: found no nvcc on the PATH nor in CUDA_HOME\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="found no nvcc, which compiles for CUDA")
def test_setup_compiles_the_operators_for_the_cards_asked_for(tmp_path):
    """The script itself and the real compiler; Detectron2's URL names a stand-in."""
    for name in ("scripts/setup.sh", "scripts/packages.sh", "scripts/with_cuda.sh", "docker/versions.env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(KIT / name, tmp_path / name)
    source = tmp_path / "detectron2"
    shutil.copytree(STAND_IN, source)
    git = ("git", "-C", source, "-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "--quiet"), ("add", "."), ("commit", "--quiet", "--message", "a")):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    with (tmp_path / "docker" / "versions.env").open("a") as pins:
        pins.write(f"DETECTRON2_URL=file://{source}\nDETECTRON2_COMMIT={commit}")
    binaries = tmp_path / ".venv" / "bin"
    installed = tmp_path / "installed"
    program(binaries / "python", f'[ "$2" = pip ] || exec {sys.executable} "$@"')
    program(binaries / "triplet", "")
    uv = f"{Path(sys.executable).parent / 'uv'} pip install --quiet --python {sys.executable}"
    program(
        binaries / "uv",
        f'[[ "$*" != *"detectron2 @"* ]] || '
        f'exec {uv} --target {installed} --no-deps --no-build-isolation "${{@: -1}}"',
    )
    asked = {"DETECTRON2": "git", "FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    done = subprocess.run(
        ["scripts/setup.sh"], cwd=tmp_path, env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (compiled,) = (installed / "detectron2").glob("_C*.so")
    listed = subprocess.run([CUOBJDUMP, "--list-elf", compiled], capture_output=True, text=True, check=True)
    assert [line.split(".")[-2] for line in listed.stdout.splitlines()] == ["sm_90"]
