import pytest

from tests.support.processes import run, run_module
from triplet import __version__, cli, doctor

STAGES = (
    "pull", "pretrain", "convert", "finetune", "eval", "linear", "knn", "semi", "svm", "report", "demo",
    "doctor",
)  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_itself(stage, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([stage, "--help"])
    assert stop.value.code == 0
    assert f"triplet {stage}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["report", "extra"], "triplet: unrecognized arguments: extra; see triplet --help"),
        (["eval", "--run", "r", "--frce"], "unrecognized arguments: --frce"),
        (["evl"], "invalid choice: 'evl'"),
        (["plan", "--memory", "much"], "plan: argument --memory: found much, expected a number above 0"),
        (["plan", "--gpus", "1.5"], "found 1.5, expected a whole number from 1 on; see triplet plan"),
    ],
)
def test_mistyped_arguments_get_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("processes", ["0", "two"])
def test_a_launch_of_nothing_gets_one_line(processes):
    done = run_module("triplet.launch", "--nproc-per-node", processes, "--no-python", "true")
    assert done.returncode == 2
    assert "GPUS and NODES are whole numbers from 1 on" in done.stderr
    assert done.stderr.count("\n") == 1


def test_version_and_list_of_stages():
    assert run("--version").stdout.strip() == __version__
    said = run("--help").stdout
    assert all(stage in said for stage in STAGES)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["pretrain", "--run", "r", "--config", "nowhere.yaml"], "no config at nowhere.yaml"),
        (
            ["pretrain", "--run", "r", "--config", "configs/pretrain/demo.yaml"],
            "no folder or list of images at",
        ),
        (["pretrain", "--run", "../r", "--config", "configs/pretrain/demo.yaml"], "--run names a folder"),
        (
            ["convert", "--run", "r", "--config", "configs/detection/demo.yaml"],
            "run first: make pretrain RUN=r",
        ),
        (
            ["finetune", "--run", "r", "--config", "configs/detection/demo.yaml"],
            "run first: make convert RUN=r",
        ),
        (["eval", "--run", "r"], "run first: make finetune RUN=r"),
        (["demo", "--data", "/nonexistent"], "is not in COCO 2017's layout"),
    ],
)
def test_out_of_order_or_missing_things_get_one_line(places, capsys, command, message):
    assert cli.main(command) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in out + error


def test_an_unwritable_place_is_one_line(places, monkeypatch, capsys):
    monkeypatch.setenv("TRIPLET_REPORTS", "/proc/nowhere")
    assert cli.main(["report"]) == 2
    assert "/proc/nowhere" in capsys.readouterr().err


def test_doctor_looks_at_everything(places, capsys):
    code = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert code == 0
    for what in ("Python", "torch", "GPU", "Docker", "Compose", "nvidia-container-toolkit",
                 "disk", "memory", "/dev/shm", "coco", "voc", "imagenet", "converted weights"):  # fmt: skip
        assert what in out
    assert "triplet pull coco" in out


def test_doctor_sees_what_is_there(places, monkeypatch, tmp_path):
    (places / "datasets" / "imagenet" / "train").mkdir(parents=True)
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, text in {
        "nvidia-smi": "NVIDIA H200, 143771 MiB, 570.86.15",
        "docker": "Docker version 1",
        "nvidia-container-runtime-hook": "",
    }.items():
        (fake / name).write_text(f"#!/bin/sh\necho '{text}'\n")
        (fake / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(fake), prepend=":")
    found = {f.what: f for f in doctor.examine()}
    assert found["imagenet"].ok
    assert found["GPU"].found == "NVIDIA H200, 143771 MiB"
    assert not found["NVIDIA driver"].ok
    assert "580" in found["NVIDIA driver"].advice
    assert not found["CUDA in torch"].ok
    assert found["nvidia-container-toolkit"].ok


def test_doctor_fails_where_the_demo_cannot_run(places, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_version", lambda package: "")
    assert cli.main(["doctor"]) == 1
    assert "make setup" in capsys.readouterr().out
