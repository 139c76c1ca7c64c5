"""``triplet submit``: what it writes, shows and refuses, with stand-ins for what it submits by."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import KIT
from triplet import cli
from triplet.submit.jobs import CHAIN

SBATCH = """
    [ "${REFUSE:-}" = "" ] || case $* in *"$REFUSE"*) echo "sbatch: error: no such QOS" >&2; exit 1 ;; esac
    number=$(($(cat "$SAID.number" 2>/dev/null || echo 100) + 1))
    echo $number > "$SAID.number"
    echo "sbatch $*" >> "$SAID"
    echo "$number;cluster" """
SQUEUE = """cat "$SAID.queue" 2>/dev/null || true"""
SCANCEL = """echo "scancel $*" >> "$SAID" """
KUBECTL = """
    if [ "$1" != get ]; then echo "kubectl $*" >> "$SAID"; echo created
    else for name in ${KNOWN:-}; do case " $* " in *" $name "*) echo "job.batch/$name" ;; esac; done; fi"""
SKY = """
    if [ "$2" = queue ]; then echo "Fetching..."; cat "$SAID.queue" 2>/dev/null || echo '[]'
    else echo "sky $*" >> "$SAID"; echo "Job ID: 7"; fi"""


@pytest.fixture
def said(places, monkeypatch):
    """The file to which stand-ins for the schedulers' commands write what they were told."""
    folder = places / "bin"
    folder.mkdir()
    stand_ins = {"sbatch": SBATCH, "squeue": SQUEUE, "scancel": SCANCEL, "kubectl": KUBECTL, "sky": SKY}
    for name, text in stand_ins.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(places / "said"))
    (places / "said").touch()
    return places / "said"


def submit(*arguments):
    return cli.main(["submit", *map(str, arguments)])


def test_a_chain_goes_in_link_by_link(said, capsys):
    assert submit("chain", "--on", "slurm", "--method", "moco", "--gpus", 8) == 0
    out = capsys.readouterr().out
    assert re.findall(r"^(\w+): job (\d+)$", out, re.M) == [
        (stage, str(101 + place)) for place, stage in enumerate(CHAIN)
    ]
    lines = said.read_text().splitlines()
    assert [re.findall(r"--dependency=(\S+)", line) for line in lines] == [
        [],
        ["afterok:101"],
        ["afterok:102"],
        ["afterok:103"],
        ["afterok:104"],
    ]
    for stage, line in zip(CHAIN, lines, strict=True):
        file = shlex.split(line)[-1]
        assert file.endswith(f"/{stage}.slurm")
        assert Path(file).read_text() in out  # what was shown is what was submitted


def test_dry_submits_nothing_and_shows_what_would_be(said, capsys):
    assert submit("convert", "finetune", "--on", "slurm", "--dry", "--force") == 0
    assert said.read_text() == ""
    shown = capsys.readouterr().out
    assert "#SBATCH --job-name=triplet-finetune" in shown
    commands = "\n".join(shown.splitlines()[-2:])
    done = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--dependency=afterok:101" in said.read_text()


def test_the_hours_of_a_job_are_told_from_those_of_a_training(places, capsys):
    assert submit("finetune", "--on", "slurm", "--hours", 12, "--dry") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == (
        "submit: 12 h is the limit of a job; the training has its full schedule. "
        "To compress it, give finetune --schedule 1/4x"
    )
    assert submit("finetune --schedule 1/4x", "--on", "slurm", "--hours", 12, "--dry") == 0
    assert "limit of a job" not in capsys.readouterr().out


def test_dry_needs_no_scheduler(places, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    for on in ("slurm", "sky", "k8s"):
        more = {"slurm": [], "sky": ["--bucket", "s3://b", "--gpu", "T4"], "k8s": ["--container", "x"]}
        assert submit("eval", "--on", on, *more[on], "--dry") == 0
        assert submit("eval", "--on", on, *more[on]) == 2
        error = capsys.readouterr().err
        assert "on the PATH" in error
        assert "DRY=1" in error
        assert error.count("\n") == 1


def comment(places, *runs):
    return json.dumps({"checkpoints": str(places / "checkpoints"), "runs": runs})


def test_nothing_is_submitted_twice(said, places, capsys):
    queue = said.with_name("said.queue")
    queue.write_text(
        f"11|triplet-finetune|{comment(places, 'byol', 'moco')}\n"
        f"12|triplet-eval|{comment(places, 'triplet')}\n"
        f"13|triplet-finetune|{comment(places / 'other', 'triplet')}\n"
        "14|triplet-finetune|(null)\n15|bash|a|b\n"
    )
    assert submit("finetune", "--on", "slurm", "--method", "moco") == 2
    assert "submitted already: finetune (job 11); wait for it" in capsys.readouterr().err
    assert said.read_text() == ""
    assert submit("finetune", "--on", "slurm") == 0  # of another run, or in other checkpoints
    assert submit("finetune", "--on", "slurm", "--method", "moco", "--force") == 0
    assert said.read_text().count("sbatch") == 2


def test_what_sbatch_refuses_takes_the_chain_back(said, capsys, monkeypatch):
    monkeypatch.setenv("REFUSE", "eval.slurm")
    assert submit("convert", "finetune", "eval", "--on", "slurm") == 2
    assert "sbatch refuses eval: sbatch: error: no such QOS" in capsys.readouterr().err
    assert said.read_text().splitlines()[-1] == "scancel 101 102"


def test_kubernetes_creates_and_with_force_replaces(said, capsys, monkeypatch):
    chosen = ("convert", "finetune", "--on", "k8s", "--container", "registry/kit:1")
    assert submit(*chosen) == 0
    first, _, file = said.read_text().strip().rpartition(" ")
    assert first == "kubectl create --filename"
    (name,) = {each["metadata"]["name"] for each in yaml.safe_load_all(Path(file).read_text())}
    monkeypatch.setenv("KNOWN", f"{name} others")
    assert submit(*chosen) == 2
    assert f"submitted already: job.batch/{name}; wait" in capsys.readouterr().err
    assert submit(*chosen, "--force") == 0
    assert "kubectl replace --force --filename " in said.read_text()


def test_kubernetes_asks_for_the_kind_that_it_makes(said, capsys, monkeypatch):
    chosen = ("convert", "eval", "--on", "k8s", "--container", "registry/kit:1")
    asked = said.with_name("asked")
    kubectl = said.with_name("bin") / "kubectl"
    kubectl.write_text(kubectl.read_text().replace("else for", f'else echo "$2" >> {asked}; for'))
    assert submit(*chosen) == 0
    assert submit(*chosen, "--nodes", 2) == 0
    assert asked.read_text().split() == ["jobs", "jobsets"]


def test_sky_launches_a_managed_job_for_each_run(said, capsys):
    chosen = (
        "convert",
        "eval",
        "--on",
        "sky",
        "--gpu",
        "H100",
        "--bucket",
        "s3://b",
        "--method",
        "moco",
        "byol",
    )
    assert submit(*chosen) == 0
    lines = said.read_text().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("sky jobs launch --yes --detach-run ") for line in lines)
    name = re.search(r"([\w-]+)\.sky\.yaml", lines[1])[1]
    said.with_name("said.queue").write_text(json.dumps([{"job_name": name}, {"job_name": "other"}]))
    assert submit(*chosen) == 2
    assert f"submitted already: {name};" in capsys.readouterr().err


SKY_ASKED = ["--on", "sky", "--bucket", "s3://b", "--gpu", "H100"]
K8S_ASKED = ["--on", "k8s", "--container", "registry/kit:1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on", "slurm"], "name a stage, such as finetune, or chain"),
        (["fintune", "--on", "slurm"], "no stage that can be submitted: fintune"),
        (["convert", "--on", "slurm", "--nodes", 2], "convert knows one process only, found NODES=2"),
        (["finetune 'x", "--on", "slurm"], "cannot read the stage"),
        (["eval", "--on", "slurm", "--method", "mocco"], "not in the table of methods: mocco"),
        (
            ["chain", "--on", "slurm", "--run", "mine"],
            "no weights are published of mine: ",
        ),
        (["eval", "--on", "slurm", "--run", "../x"], "--run names a folder below checkpoints/"),
        (["eval", "--on", "slurm", "--extra=qos=x"], "--extra takes options of sbatch such as --qos=x"),
        (["eval", "--on", "slurm", "--container", "no.sif"], "found no file no.sif"),
        (["eval", "--on", "slurm", "--gpu", "T4"], "GPU is for ON=sky: found ON=slurm"),
        (["eval", "--on", "k8s"], "ON=k8s needs CONTAINER=registry/image"),
        (["eval", "--on", "slurm", "--container", "/tmp"], "found no file /tmp"),
        (["convert", "eval", "--on", "sky", "--bucket", "s3://b"], "ON=sky needs GPU=card"),
        (["eval", *K8S_ASKED, "--partition", "x"], "PARTITION is for ON=slurm: found ON=k8s"),
        (["pull", "eval", *K8S_ASKED, "--seeds", 0, 1], "pull is done once for all 2 runs"),
        (["eval", "--on", "sky", "--bucket", "s3://b"], "ON=sky needs GPU=card"),
        (["eval", "--on", "sky", "--gpu", "T4"], "ON=sky needs BUCKET=s3://name"),
        (["report", "eval", *SKY_ASKED, "--method", "all"], "report is done once for all 10 runs"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(places, capsys, arguments, message):
    assert submit(*arguments, "--dry") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (places / "checkpoints").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["finetune --schedul 1x", "--on", "slurm"], "unrecognized arguments: --schedul;"),
        (["finetune --schedule much", "--on", "slurm"], "the length of a schedule is 2x, 1x, 1/2x"),
        (["eval", "--on", "slurm", "--hours", "0"], "argument --hours: found 0, expected a number above 0"),
        (["eval", "--on", "slurm", "--hours", "-1"], "argument --hours: found -1"),
        (["eval", "--on", "lsf"], "argument --on: invalid choice: 'lsf'"),
        (["eval"], "the following arguments are required: --on"),
    ],
)
def test_what_the_parser_refuses_never_waits_in_a_queue(places, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        submit(*arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def made(*variables):
    """The words of the command that make runs."""
    said = subprocess.run(
        ["make", "--no-print-directory", "-n", "submit", *variables],
        cwd=KIT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    return shlex.split(said[said.index(".venv/bin/triplet submit") :])


def test_make_submit_is_this_command():
    words = made("STAGE=chain", "ON=slurm", "METHOD=all", "SEEDS=0 1", "NODES=2", "DRY=1")
    stages = words[2 : words.index("--on")]
    assert [stage.split()[0] for stage in stages] == list(CHAIN)
    assert stages[0] == "pull coco weights"
    assert " ".join(words[words.index("--on") :]) == "--on slurm --method all --seeds 0 1 --nodes 2 --dry"


def test_names_with_blanks_and_quotes_reach_the_job_file(places, capsys):
    words = made(
        "STAGE=convert finetune", "ON=slurm", "RUN=a b/triplet", "COCO=it's mine", "ARGS=A=1", "DRY=1"
    )
    assert cli.main(words[1:]) == 0
    shown = capsys.readouterr().out
    (line,) = re.findall(r"^command=\((finetune .*)\)$", shown, re.M)
    assert shlex.split(line) == ["finetune", "--run", "a b/triplet", "--data", "it's mine", "A=1"]
