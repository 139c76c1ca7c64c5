"""The front door: what make prints, refuses, and hands to the program."""

import re
import subprocess

import pytest

from tests.conftest import KIT

MAKEFILE = (KIT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.M))


def make(*arguments):
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=KIT, capture_output=True, text=True
    )


def printed(*arguments):
    """What make would run, its words one blank apart."""
    return " ".join(make("-n", *arguments).stdout.replace("\\\n", " ").split())


def test_make_prints_every_target_with_a_line():
    out = make().stdout
    described = [line.split(maxsplit=2) for line in out.splitlines() if line.startswith("  make ")]
    assert {words[1] for words in described} == TARGETS
    assert all(len(words) == 3 for words in described)
    for target in (
        "setup",
        "demo",
        "test",
        "doctor",
        "pull",
        "pretrain",
        "convert",
        "finetune",
        "eval",
        "linear",
        "knn",
        "semi",
        "svm",
        "report",
    ):
        assert target in TARGETS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "RUNTIME=podman"], "RUNTIME is local or docker: found 'podman'"),
        (["pretrain", "GPUS=all"], "whole numbers from 1 on: found GPUS='all' NODES='1'"),
        (["finetune", "GPUS=0"], "whole numbers from 1 on: found GPUS='0' NODES='1'"),
    ],
)
def test_what_cannot_be_run_is_refused(arguments, message):
    done = make(*arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_variables_reach_the_command():
    done = printed("pretrain", "RUN=a/b", "PRETRAIN=x.yaml", "IMAGES=pictures", "FORCE=1", "ARGS=seed=3")
    assert (
        '.venv/bin/triplet pretrain --run "a/b" --config "x.yaml" --data "pictures" --force seed=3' in done
    )
    done = printed("pretrain", "METHOD=moco", "ENGINE=openselfsup", "WEIGHTS=a.pth")
    assert 'pretrain --run "moco" --engine "openselfsup" --weights "a.pth"' in done
    done = make("-n", "convert", "METHOD=byol", "WEIGHTS=my file.pth")
    assert '--run "byol"' in done.stdout
    assert '--weights "my file.pth"' in done.stdout
    done = make("-n", "demo", "DATA=/coco", "SEEDS=0 1")
    assert '--data "/coco"' in done.stdout
    assert "--seeds 0 1" in done.stdout
    assert "--images" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "triplet pull"),
        (["PULL=coco voc"], "pull coco voc"),
        (["PULL=weights", "METHOD=moco byol"], "pull weights --method moco byol"),
        (["FROM=my folder", "CHECK=0"], 'triplet pull --from "my folder"'),
        (["CHECK=1"], "triplet pull --check"),
        (["PLAN=1", "FORCE=1"], "triplet pull --plan --force"),
    ],
)
def test_make_pull_passes_on_what_is_set(arguments, expected):
    assert printed("pull", *arguments).endswith(expected)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ".venv/bin/triplet pretrain"),
        (["METHOD=byol"], '.venv/bin/triplet pretrain --run "byol"'),
        (["GPUS=8"], "PROCESSES=8 .venv/bin/python -m triplet.launch --nnodes 1 --nproc-per-node 8"),
        (["GPUS=4", "NODES=2", "RDZV=a:1"], "PROCESSES=8 .venv/bin/python -m triplet.launch --nnodes 2"),
    ],
)
def test_make_pretrain_starts_a_process_for_each_gpu(arguments, expected):
    assert expected in make("-n", "pretrain", *arguments).stdout


def test_make_linear_starts_a_process_for_each_gpu():
    for stage in ("linear", "knn", "semi"):
        done = printed(stage, "GPUS=4", "CLASSES=c.txt", "WEIGHTS=w.pth", "IMAGES=a", "VAL=b", "RUN=r")
        assert "--nproc-per-node 4" in done
        assert f'.venv/bin/triplet {stage} --run "r" --data "a" --val "b"' in done
        assert '--weights "w.pth" --classes "c.txt"' in done
    assert '--percent "10" --list "l"' in printed("semi", "PERCENT=10", "LIST=l")
    assert printed("semi", "DRAW=1").endswith(" --draw")
    assert '--data "/voc"' in make("-n", "svm", "VOC=/voc").stdout


def test_with_docker_make_runs_the_service_of_the_same_name():
    assert (
        'docker compose run --rm  finetune --run "byol"'
        in make("-n", "finetune", "RUNTIME=docker", "METHOD=byol").stdout
    )
    for command in ("pull", "plan", "explain", "doctor"):
        assert f"docker compose run --rm {command}" in printed(command, "RUNTIME=docker")
    done = make("-n", "pretrain", "RUNTIME=docker", "GPUS=8", "IMAGES=/disk/train")
    assert "GPUS=8 NODES=1 RDZV=localhost:0" in done.stdout
    assert 'docker compose run --rm -v "/disk/train:/disk/train:ro" pretrain' in " ".join(
        done.stdout.split()
    )
    assert "LAUNCH_NETWORK" not in done.stdout
    done = make("-n", "convert", "RUNTIME=docker", "WEIGHTS=/my dir/w.pth", "DETECTION=c.yaml")
    assert done.stdout.count(" -v ") == 1
    assert ' -v "/my dir/w.pth:/my dir/w.pth:ro" ' in done.stdout
    assert (
        "LAUNCH_NETWORK=host GPUS=1 NODES=2"
        in make("-n", "pretrain", "RUNTIME=docker", "NODES=2", "RDZV=a:1").stdout
    )


def test_several_nodes_need_a_place_to_meet():
    done = make("-n", "pretrain", "NODES=2", "GPUS=8")
    assert done.returncode == 2
    assert "NODES=2 needs RDZV=host:port" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "triplet report"),
        (["VERIFY=1"], "report --verify"),
        (["VERIFY=my runs.zip"], 'report --verify "my runs.zip"'),
        (["VERIFY=0", "EXPORT=runs.zip"], 'report --export "runs.zip"'),
        (["RUNTIME=docker", "EXPORT=a/runs.zip"], 'report --export "/reports/runs.zip"'),
    ],
)
def test_make_report_verifies_and_exports(arguments, expected):
    assert printed("report", *arguments).endswith(expected)


def test_tensorboard_opens_on_all_runs():
    done = make("-n", "tensorboard", "PORT=7000", "TRIPLET_CHECKPOINTS=/runs")
    assert '.venv/bin/tensorboard --logdir "/runs" --port "7000"' in done.stdout
    assert "--service-ports tensorboard" in make("-n", "tensorboard", "RUNTIME=docker").stdout


@pytest.mark.parametrize(("value", "forced"), [("1", True), ("0", False), ("", False)])
def test_force_can_be_switched_off(value, forced):
    assert ("--force" in make("-n", "eval", f"FORCE={value}").stdout) == forced


@pytest.mark.parametrize(("value", "fast_alone"), [("1", False), ("0", True), ("", True)])
def test_slow_tests_run_if_asked_for(value, fast_alone):
    assert ('-m "not slow"' in make("-n", "test", f"SLOW={value}").stdout) == fast_alone


def test_another_detectron2_makes_the_environment_anew():
    assert "scripts/setup.sh" in make("-n", "setup", "DETECTRON2=pypi").stdout
