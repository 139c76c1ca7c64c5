"""What make calls before containers start and to delete data: scripts/ready.sh and scripts/clean.sh."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import KIT


@pytest.fixture
def kit(tmp_path):
    """A folder with the scripts and data in it; ``bin`` comes first on its PATH."""
    shutil.copytree(KIT / "scripts", tmp_path / "scripts")
    for name in ("datasets/coco", "checkpoints/triplet", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "datasets" / "coco" / "image").write_text("x")
    return tmp_path


def run(kit, script, *arguments, **environment):
    given = {"PATH": f"{kit / 'bin'}:/usr/bin:/bin", **environment}
    return subprocess.run(
        [kit / "scripts" / script, *arguments],
        env=given,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def docker(kit, answers):
    """A docker that does what a shell `case` says for its arguments."""
    (kit / "bin" / "docker").write_text(f'#!/bin/sh\ncase "$*" in {answers} *) exit 1 ;; esac\n')
    (kit / "bin" / "docker").chmod(0o755)


COMPOSE = '"compose version") ;; "compose config") echo "    image: kit"; echo "    driver: nvidia" ;;'


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ("", "found docker without compose"),
        (COMPOSE, "no engine answers; start it"),
        (f"{COMPOSE} info) ;;", "found no .env, and so no image of this checkout; run: make build"),
    ],
    ids=["compose", "engine", "image"],
)
def test_what_keeps_containers_from_starting_is_one_line(kit, answers, message):
    docker(kit, answers)
    done = run(kit, "ready.sh")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("line", ["build.sh", "clean.sh docker image", "clean.sh docker datasets"])
def test_an_engine_that_is_not_there_is_said_first(kit, line):
    docker(kit, '"buildx version" | "compose version") ;;')
    script, *arguments = line.split()
    done = run(kit, script, *arguments, YES="1")
    assert done.returncode == 2
    assert done.stderr.startswith("docker: no engine answers; start it")
    assert done.stderr.count("\n") == 1


def test_a_compose_file_that_is_not_taken_is_one_line(kit):
    (kit / ".env").touch()
    docker(kit, '"compose version" | info) ;; "compose config") echo "services.x: odd" >&2; exit 15 ;;')
    done = run(kit, "ready.sh")
    assert done.returncode == 2
    assert "compose does not take compose.yaml and .env (services.x: odd); mend .env" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_image_or_toolkit_is_named_first(kit):
    (kit / ".env").touch()
    docker(kit, f"{COMPOSE} info) ;;")
    assert "found no image kit; run: make build" in run(kit, "ready.sh").stderr
    docker(kit, f'{COMPOSE} info) ;; "image inspect kit") ;;')
    done = run(kit, "ready.sh")
    assert done.returncode == 2
    assert "nvidia-container-toolkit is missing; install it and restart the engine" in done.stderr
    hook = kit / "bin" / "nvidia-container-runtime-hook"
    hook.touch()
    hook.chmod(0o755)
    assert run(kit, "ready.sh").returncode == 0


def test_data_is_deleted_only_when_asked_for(kit):
    done = run(kit, "clean.sh", "local", "datasets")
    assert done.returncode == 2
    assert f"would delete {kit}/datasets" in done.stderr
    assert (kit / "datasets" / "coco" / "image").exists()
    assert run(kit, "clean.sh", "local", "datasets", YES="1").returncode == 0
    assert list((kit / "datasets").iterdir()) == []
    assert (kit / "checkpoints" / "triplet").exists()


def test_folders_of_the_user_are_never_deleted(kit, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("disk")
    (elsewhere / "image").write_text("x")
    moved = run(kit, "clean.sh", "local", "datasets", YES="1", TRIPLET_DATASETS=str(elsewhere))
    (kit / ".env").write_text(f"TRIPLET_CHECKPOINTS={elsewhere}\n")
    named = run(kit, "clean.sh", "docker", "checkpoints", YES="1")
    shutil.rmtree(kit / "datasets")
    (kit / "datasets").symlink_to(elsewhere)
    linked = run(kit, "clean.sh", "local", "datasets", YES="1")
    for done in (moved, named, linked):
        assert done.returncode == 2
        assert "by hand" in done.stderr
    assert os.listdir(elsewhere) == ["image"]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "found no docker; install Docker Engine with its compose and buildx plug-ins"),
        ('"compose version") ;;', "found docker without buildx, which builds the image; install"),
        ('"buildx version") ;;', "found docker without compose; install"),
    ],
)
def test_building_asks_for_buildx_first(kit, answers, message):
    if answers:
        docker(kit, answers)
    done = run(kit, "build.sh", PATH=str(kit / "bin") + ":" + tools(kit))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def tools(kit):
    """A folder with what scripts need, and no docker."""
    folder = kit / "tools"
    folder.mkdir()
    for name in ("bash", "env", "dirname", "git", "sed", "date", "id", "mkdir", "cat"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return str(folder)


def test_building_says_which_variant_it_builds(kit):
    shutil.copytree(KIT / "docker", kit / "docker")
    (kit / "triplet").mkdir()
    shutil.copy(KIT / "triplet" / "__init__.py", kit / "triplet")
    docker(kit, '"buildx version" | "compose version" | info) ;; "compose "*) exit 3 ;;')
    done = run(kit, "build.sh", DETECTRON2="pypi", OPENSELFSUP="0")
    assert "Detectron2: PyPI's sdist, not compiled; OpenSelfSup: left out (OPENSELFSUP=0)" in done.stdout
    assert done.returncode == 2


def test_an_image_is_written_whole_under_its_name(kit):
    """.env names it by its ID, which says nothing to people."""
    docker(
        kit,
        '"compose config") echo "    image: sha256:12" ;; "image inspect"*) echo registry/kit:1 ;; '
        '"image save"*) echo tar >"$4" ;;',
    )
    done = run(kit, "image_tar.sh", "a/kit.tar")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("image-tar: registry/kit:1 in a/kit.tar, 0 MB; on the other machine")
    assert "TRIPLET_IMAGE=registry/kit:1" in done.stdout
    assert os.listdir(kit / "a") == ["kit.tar"]


def test_an_image_that_cannot_be_written_is_said(kit):
    docker(kit, '"compose config") echo "    image: kit:1" ;;')
    done = run(kit, "image_tar.sh", "a b/kit.tar")
    assert done.returncode == 2
    assert "image-tar: docker could not write a b/kit.tar" in done.stderr
    assert os.listdir(kit / "a b") == []
