"""Every command explains itself, and answers what it cannot do with one line."""

import subprocess
import sys

import pytest

from tests.conftest import KIT
from tests.support.processes import run, run_module
from triplet import __version__, cli

STAGES = (
    "pull",
    "pack",
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
    "report",
    "submit",
    "demo",
    "doctor",
)


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
        (["plan", "--gpus", "9" * 30], "expected a whole number from 1 on and at most 1000000000; see"),
        (["plan", "--memory", "1e308"], "expected a number above 0 and at most 1000000000; see"),
        (["eval", "--run=--"], "triplet: --run=--: -- is not a value; see triplet --help"),
        (
            ["explain", "--result", "x"],
            "--result: found x, expected a number, such as 25.1; see triplet explain --help",
        ),
        (
            ["explain", "--target", "38.9", "?"],
            "--target: found ?, expected a number, such as 25.1; see triplet",
        ),
        (
            ["explain", "--gpus", "x"],
            "found x, expected a whole number from 1 on; see triplet",
        ),
        (["finetune", "--seed", "one"], "--seed: found one, expected a whole number; see triplet finetune"),
        (["demo", "--seeds", "0", "1.5"], "--seeds: found 1.5, expected a whole number; see triplet demo"),
        (
            ["pack", "--per-shard", "ten"],
            "--per-shard: found ten, expected a whole number; see",
        ),
        (["plan", "extra"], "triplet: unrecognized arguments: extra; see triplet --help"),
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
            "run first: triplet pretrain --run r",
        ),
        (
            ["finetune", "--run", "r", "--config", "configs/detection/demo.yaml"],
            "run first: triplet convert --run r",
        ),
        (["eval", "--run", "r"], "run first: triplet finetune --run r"),
        (["eval", "--run", "seed1/"], "run first: triplet finetune --run seed1/triplet"),
        (["eval"], "run first: triplet finetune --run triplet"),
        (["demo", "--data", "/nonexistent"], "nothing at /nonexistent, expected a folder"),
        (["pack", "one", "two"], "found 2 sources (one two), expected one"),
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


def test_the_package_runs_as_a_module():
    done = run_module("triplet.cli", "--version")
    assert done.stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "name", "words"),
    [
        (["pull"], "what", []),
        (["pull", "--check", "coco", "voc"], "what", ["coco", "voc"]),
        (["pack", "--name", "shards", "pictures"], "source", ["pictures"]),
        (["pretrain", "seed=1", "--force", "a.b=2"], "overrides", ["seed=1", "a.b=2"]),
    ],
)
def test_words_may_stand_anywhere_among_the_options(arguments, name, words):
    assert getattr(cli._parse(arguments), name) == words


def test_defaults_are_configs_of_the_kit(monkeypatch, tmp_path):
    """Wherever the command is typed."""
    for folder in (KIT, tmp_path):
        monkeypatch.chdir(folder)
        for command in ("linear", "knn", "svm", "demo", "pull"):
            assert cli._parse([command]).config.is_file()


def test_help_needs_no_torch():
    """Nor any other package of a stage: each imports what it needs when it runs."""
    code = (
        "import sys; sys.modules.update(torch=None, torchvision=None, detectron2=None)\n"
        "from triplet import cli\n"
        "parser = cli.make_parser()\n"
        "for command in parser._subparsers._group_actions[0].choices.values(): command.print_help()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=KIT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"usage: triplet {stage} " in done.stdout for stage in STAGES)
