"""A real engine, a stand-in for the CUDA base, and the image built on it from a copy of this checkout."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import KIT

HERE = Path(__file__).parent
BASE = "localhost/triplet-base:trixie"
CUDA_BASE = "localhost/triplet-base:trixie-cuda"
"""The same with this machine's CUDA toolkit, for the stages that compile."""
NO_NVCC = "found no nvcc on this machine, which would go into the stand-in for the CUDA base"
ARCHITECTURE = "9.0"
"""What is compiled for CUDA here: one architecture takes a fraction of the time of all."""
STAND_IN_CUDA = HERE / "stand_in_cuda"
"""A package of Detectron2's shape whose one operator is compiled in seconds."""
TINY = HERE / "tiny"
"""Configs of a chain that takes seconds a stage."""


def call(
    *command: str, cwd: Path = KIT, timeout: float = 1500, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=timeout,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


@dataclass(frozen=True)
class Kit:
    """A checkout whose compose project belongs to the tests alone."""

    folder: Path
    name: str
    """That of the fixture."""
    image: str
    """ID of what was built."""
    named: str
    """What .env named after the build."""

    @property
    def environment(self) -> dict[str, str]:
        """What decides over .env."""
        return {"COMPOSE_FILE": "compose.yaml", "TRIPLET_IMAGE": self.image, "TRIPLET_USER": ""}

    def compose(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """``docker compose ...`` in the checkout."""
        return call("docker", "compose", *arguments, cwd=self.folder, **{**self.environment, **environment})

    def run(self, service: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A service as its user runs it; variables in ``environment`` as in the shell or .env."""
        return self.compose("run", "--rm", "-T", service, *arguments, **environment)

    def python(self, code: str, service: str = "pretrain", **environment: str) -> str:
        """What a piece of Python prints inside a service."""
        done = self.compose(
            "run", "--rm", "-T", "--entrypoint", "python", service, "-c", code, **environment
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def record(self, run: str, stage: str) -> dict:
        """The record of a stage on the volume of checkpoints."""
        return json.loads(self.python(f"print(open('/checkpoints/{run}/{stage}/record.json').read())"))


def say(text: str) -> None:
    """Progress that is seen while it happens: a build takes minutes."""
    print(f"\ncontainers: {text}", flush=True)


def _lacking() -> str:
    """What keeps images from being built here; '' if nothing does."""
    for command in (("info",), ("compose", "version"), ("buildx", "version")):
        try:
            done = call("docker", *command)
        except FileNotFoundError:
            return "no docker on the PATH"
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["no engine"])[-1]
    return ""


@pytest.fixture(scope="session")
def engine(tmp_path_factory, pytestconfig) -> Iterator[None]:
    """An engine that answers: the one that runs, or one that is installed, started and stopped."""
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        started = None
        if lacking := _lacking():
            say(f"{lacking}; installing and starting an engine")
            installed = call(str(HERE / "engine.sh"))
            lacking = installed.stderr.strip().splitlines()[-1] if installed.returncode else _lacking()
            if lacking and not installed.returncode:
                log = tmp_path_factory.mktemp("engine") / "dockerd.log"
                with log.open("w") as written:
                    started = subprocess.Popen(
                        ["dockerd"], stdout=written, stderr=written, start_new_session=True
                    )
                deadline = time.monotonic() + 60
                while (lacking := _lacking()) and started.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.5)
                if lacking:
                    lacking = log.read_text().strip().splitlines()[-1]
        if lacking:
            unavailable = f"no container engine can be had: {lacking}"
            if os.environ.get("CI"):
                pytest.exit(unavailable, returncode=1)
            pytest.skip(unavailable)
    yield
    if started:
        started.terminate()
        started.wait(60)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, engine) -> Path:
    """This checkout with what is not committed yet, and a tiny chain among its configs."""
    folder = tmp_path_factory.mktemp("containers") / "triplet-test"
    assert call("git", "clone", "--quiet", str(KIT), str(folder)).returncode == 0
    changed = call("git", "diff", "--name-only", "-z", "HEAD").stdout  # staged or not
    changed += call("git", "ls-files", "-z", "--others", "--exclude-standard").stdout
    for name in filter(None, changed.split("\0")):
        (folder / name).unlink(missing_ok=True)
        if (KIT / name).is_file():  # not a link to an environment
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(KIT / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def toolkit() -> str:
    """Folder of this machine's CUDA toolkit; '' without nvcc."""
    found = call(str(KIT / "scripts" / "with_cuda.sh"), sys.executable, "printenv", "CUDA_HOME")
    return found.stdout.strip()


@pytest.fixture(scope="session")
def bases(engine, pytestconfig, toolkit) -> dict[str, str]:
    """Stand-ins for the CUDA base, as variables of `make build`; with nvcc where this machine has it."""

    def make(name: str, *command: str) -> str:
        if call("docker", "image", "inspect", name).returncode:
            say(f"a stand-in for the CUDA base: {name}")
            made = call(*command)
            assert made.returncode == 0, made.stderr
        return name

    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        base = make(BASE, str(HERE / "base.sh"), BASE)
        if not toolkit:
            return {"BASE_IMAGE": base, "RUNTIME_IMAGE": base}
        toolkit_as = ("--build-arg", f"BASE={base}", "--build-context", f"toolkit={toolkit}")
        file = ("--file", str(HERE / "cuda_base.Dockerfile"), str(TINY))
        with_cuda = make(CUDA_BASE, "docker", "buildx", "build", "--tag", CUDA_BASE, *toolkit_as, *file)
        return {"BASE_IMAGE": with_cuda, "RUNTIME_IMAGE": base}


@pytest.fixture(scope="session")
def build(checkout, bases, pytestconfig):
    """Function that builds a variant by `make build` and returns what make said."""

    def build(name: str, **arguments: str) -> subprocess.CompletedProcess[str]:
        with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            say(f"building {name} with {arguments}")
            began = time.monotonic()
            given = [f"{key}={value}" for key, value in {**bases, **arguments}.items()]
            done = call("make", "build", f"IMAGE={name}", *given, cwd=checkout, timeout=3000)
            say(f"{time.monotonic() - began:.0f} s")
        return done

    return build


def _image_id(name: str) -> str:
    return call("docker", "image", "inspect", "--format", "{{.Id}}", name).stdout.strip()


def _built(checkout: Path, variant: str, name: str) -> Kit:
    lines = (checkout / ".env").read_text().splitlines()
    (named,) = (line.partition("=")[2] for line in lines if line.startswith("TRIPLET_IMAGE="))
    return Kit(checkout, variant, _image_id(name), named)


def _remove(name: str, checkout: Path) -> None:
    done = call("make", "clean-image", f"IMAGE={name}", "YES=1", cwd=checkout)
    assert done.returncode == 0, done.stderr
    assert _image_id(name) == ""


@pytest.fixture(scope="session")
def kit(build, checkout) -> Iterator[Kit]:
    """The image without anything from GitHub, and the checkout with a tiny chain among its configs.

    A package of OpenSelfSup's shape goes through the stages that build OpenSelfSup.
    """
    name = "localhost/triplet-test"
    done = build(name, DETECTRON2="pypi", OPENSELFSUP="1", OPENSELFSUP_SOURCE=str(HERE / "stand_in"))
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(TINY, checkout / "configs" / "tiny")
    kit = _built(checkout, "kit", name)
    kit.compose("down", "--volumes", "--remove-orphans")  # of a run that was killed
    yield kit
    kit.compose("down", "--volumes", "--remove-orphans")
    _remove(name, checkout)


def _from_checkouts(build, kit: Kit, variant: str, **arguments: str) -> Iterator[Kit]:
    """The image with Detectron2 compiled and OpenSelfSup, from the checkouts in TRIPLET_CHECKOUTS."""
    if not (checkouts := os.environ.get("TRIPLET_CHECKOUTS")):
        pytest.skip("TRIPLET_CHECKOUTS names no folder with detectron2 and OpenSelfSup")
    name = f"localhost/triplet-test-{variant.replace('_', '-')}"
    done = build(
        name,
        DETECTRON2_SOURCE=f"{checkouts}/detectron2",
        OPENSELFSUP_SOURCE=f"{checkouts}/OpenSelfSup",
        **arguments,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield _built(kit.folder, variant, name)
    _remove(name, kit.folder)


@pytest.fixture(scope="session")
def full(build, kit) -> Iterator[Kit]:
    """The full image for the CPU."""
    yield from _from_checkouts(build, kit, "full", FORCE_CUDA="0")


@pytest.fixture(scope="session")
def full_cuda(build, kit, toolkit) -> Iterator[Kit]:
    """The full image with Detectron2's operators compiled for one architecture of GPUs."""
    if not toolkit:
        pytest.skip(NO_NVCC)
    yield from _from_checkouts(build, kit, "full_cuda", FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST=ARCHITECTURE)


@pytest.fixture(params=["kit", "full", "full_cuda"])
def variant(request) -> Kit:
    """Each image in turn; those from checkouts where there are some."""
    return request.getfixturevalue(request.param)
