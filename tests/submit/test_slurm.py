"""The batch scripts, with stand-ins for Slurm's own commands; test_slurm_for_real.py has the real ones."""

import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.conftest import KIT
from triplet.errors import KitError
from triplet.submit import slurm
from triplet.submit.jobs import ClusterRun, Resources, plan_jobs

STAND_INS = {
    "scontrol": """
        if [ "$1" = show ]; then printf 'node7\\nnode8\\n'; else echo "scontrol $*" >> "$SAID"; fi""",
    "srun": """
        [ "$1 $2" = "--cpus-per-task=64 --kill-on-bad-exit=1" ] && shift 2
        trap 'echo saved >> "$SAID"; exit 143' TERM ${HEARS:-}
        echo $$ > "$SAID.step"
        echo "GPUS=$GPUS NODES=$NODES RDZV=$RDZV" >> "$SAID"
        printf '%s|' "$@" >> "$SAID"; echo >> "$SAID"
        for i in $(seq "$TENTHS"); do sleep 0.1; done
        exit "$CODE" """,
    "scancel": """
        echo "scancel $*" >> "$SAID"
        kill -s "${1#--signal=}" "$(cat "$SAID.step")" """,
}
LAUNCH = str(KIT / "scripts" / "launch.sh")


def scripts(*stages, runs=("triplet",), **asked):
    jobs = plan_jobs(
        [[*stage] for stage in stages], [ClusterRun(name) for name in runs], Resources(**asked)
    )
    return jobs, slurm.write(jobs)


def options(text):
    return dict(
        word.split("=", 1) if "=" in word else (word, "")
        for line in text.splitlines()
        if line.startswith("#SBATCH")
        for word in shlex.split(line.removeprefix("#SBATCH --"))
    )


@pytest.fixture
def started(tmp_path, places):
    """Start a batch script as sbatch does; what its commands said is in the file."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + text)
        (tmp_path / name).chmod(0o755)
    said = tmp_path / "said"
    said.touch()

    def start(text, tenths, code=0, **more):
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SAID": str(said),
            "TENTHS": str(tenths),
            "CODE": str(code),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[7-8]",
            **more,
        }
        return subprocess.Popen(["bash", "-c", text], env=environment, text=True, stdout=subprocess.PIPE)

    return start, said


def whole(**asked):
    _, written = scripts(("finetune", "--data", "my coco"), gpus=8, nodes=2, **asked)
    return written["finetune.slurm"]


@pytest.mark.parametrize("code", [0, 2])
def test_each_node_starts_the_launcher_and_meets_at_the_first(started, code):
    start, said = started
    assert start(whole(), 0, code).wait() == code
    assert said.read_text().splitlines() == [
        "GPUS=8 NODES=2 RDZV=node7:20041",
        f"{LAUNCH}|finetune|--run|triplet|--data|my coco|",
    ]


def begun(job, said):
    while "finetune" not in said.read_text():
        assert job.poll() is None
        time.sleep(0.02)


def test_before_its_time_limit_a_job_saves_and_is_queued_again(started):
    start, said = started
    job = start(whole(), 600)
    begun(job, said)
    job.send_signal(signal.SIGUSR1)
    out, _ = job.communicate(timeout=20)
    assert job.returncode == 0
    assert "300 seconds before the time limit" in out
    assert said.read_text().splitlines()[2:] == [
        "scancel --signal=TERM 41.0",
        "saved",
        "scontrol requeue 41",
    ]


@pytest.mark.parametrize("hears", ["URG", ""])
def test_in_apptainer_a_stage_is_stopped_alone_at_first(started, hears):
    """TERM ends the process that serves the files of the image, too."""
    start, said = started
    patience = "sleep 5" if hears else "sleep 0.2"
    job = start(whole(container="image.sif").replace("sleep 150", patience), 600, HEARS=hears)
    begun(job, said)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0
    assert said.read_text().splitlines()[2:] == [
        "scancel --signal=URG 41.0",
        *([] if hears else ["scancel --signal=TERM 41.0"]),
        "saved",
        "scontrol requeue 41",
    ]


def test_a_preempted_job_waits_until_its_stage_has_saved(started):
    """Slurm tells the script and the stage, and queues the job again itself."""
    start, said = started
    job = start(whole(), 600)
    begun(job, said)
    job.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert job.poll() is None
    os.kill(int(Path(f"{said}.step").read_text()), signal.SIGTERM)
    assert job.wait(20) == 143
    assert said.read_text().splitlines()[2:] == ["saved"]


def test_an_array_job_runs_and_requeues_its_own_command(started):
    start, said = started
    _, written = scripts(("finetune",), runs=("moco", "a 'b'"), gpus=8)
    job = start(
        written["finetune.slurm"],
        600,
        SLURM_ARRAY_JOB_ID="40",
        SLURM_ARRAY_TASK_ID="1",
    )
    begun(job, said)
    assert "|finetune|--run|a 'b'|" in said.read_text()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0
    assert "scancel --signal=TERM 40_1.0" in said.read_text()
    assert said.read_text().endswith("scontrol requeue 40_1\n")


def test_what_sbatch_is_told(places):
    found = options(
        whole(hours=12, memory=200, partition="gpu", account="a b", extra=("--qos=x", "--exclusive"))
    )
    assert found["job-name"] == "triplet-finetune"
    assert found["chdir"] == str(KIT)
    assert found["output"] == f"{places}/checkpoints/jobs/finetune-%j.log"
    assert (found["nodes"], found["ntasks-per-node"], found["gpus-per-node"]) == ("2", "1", "8")
    assert (found["cpus-per-task"], found["mem"]) == ("64", "200G")
    assert (found["time"], found["signal"]) == ("720", "B:USR1@300")
    assert (found["partition"], found["account"], found["qos"]) == ("gpu", "a b", "x")
    assert {"requeue", "exclusive"} <= set(found)
    assert options(whole())["time"] == "1440"


def test_the_notice_leaves_half_of_a_short_job():
    assert options(whole(hours=0.05))["signal"] == "B:USR1@90"
    assert options(whole(hours=0.05))["time"] == "3"
    assert options(whole(hours=0.51))["time"] == "31"  # whole minutes, and none less than asked for


def test_each_run_of_an_array_has_a_number_and_a_log(places, monkeypatch):
    """Also where the places have a percent sign, which Slurm would fill in."""
    monkeypatch.setenv("TRIPLET_CHECKPOINTS", f"{places}/50%a")
    _, written = scripts(("pull",), ("finetune",), runs=("moco", "byol", "npid"))
    found = options(written["finetune.slurm"])
    assert (found["array"], found["output"]) == ("0-2", f"{places}/50%%a/jobs/finetune-%A_%a.log")
    assert "array" not in options(written["pull.slurm"])
    assert options(written["pull.slurm"])["output"].endswith("/pull-%j.log")


def test_a_stage_without_gpus_asks_for_none(places):
    _, written = scripts(("convert",), ("eval",), gpus=8, cpus=16)
    assert "gpus-per-node" not in options(written["convert.slurm"])
    assert options(written["convert.slurm"])["cpus-per-task"] == "4"
    assert options(written["eval.slurm"])["cpus-per-task"] == "16"


def dependencies(runs, *stages):
    jobs, written = scripts(*([stage] for stage in stages), runs=runs)
    commands = slurm.submissions(jobs, {name: Path(name) for name in written})
    return [command[2] for command in commands if command[2].startswith("--dependency")]


def test_a_chain_waits_link_by_link():
    assert dependencies(["moco"], "pull", "convert", "finetune", "eval", "report") == [
        "--dependency=afterok:$pull",
        "--dependency=afterok:$convert",
        "--dependency=afterok:$finetune",
        "--dependency=afterok:$eval",
    ]


def test_each_run_waits_for_its_own_and_the_report_for_all():
    assert dependencies(["moco", "byol"], "pull", "convert", "finetune", "report") == [
        "--dependency=afterok:$pull",
        "--dependency=aftercorr:$convert",
        "--dependency=afterany:$finetune",
    ]


def test_apptainer_sees_the_three_places_and_the_gpus(places, tmp_path):
    weights = tmp_path / "my weights.pth"
    weights.touch()
    _, written = scripts(("convert", "--weights", str(weights)), ("eval",), gpus=8, container="a b.sif")
    (line,) = (line for line in written["eval.slurm"].splitlines() if " apptainer " in line)
    words = shlex.split(line)
    assert words[:3] == ["apptainer", "exec", "--nv"]
    binds = [word for option, word in itertools.pairwise(words) if option == "--bind"]
    assert binds == [
        *(f"{places / name}:/{name}" for name in ("datasets", "checkpoints", "reports")),
        f"{KIT}/configs:/kit/configs:ro",
    ]
    volumes = yaml.safe_load((KIT / "compose.yaml").read_text())["services"]["pull"]["volumes"]
    assert [re.sub("^.*?:/", "/", bind) for bind in binds] == [
        re.sub(r"^(\$\{.*\}|\./configs):", "", volume) for volume in volumes
    ]
    assert "TRIPLET_CHECKPOINTS=/checkpoints" in words
    assert words[words.index("/kit") + 1 :] == [
        str(KIT / "a b.sif"),
        "scripts/launch.sh",
        "${command[@]}",
        "&",
    ]
    (line,) = (line for line in written["convert.slurm"].splitlines() if " apptainer " in line)
    assert "--nv" not in line
    assert f"{weights}:{weights}:ro" in shlex.split(line)


def test_what_a_line_cannot_hold_is_refused():
    with pytest.raises(KitError, match="a line of a job file cannot hold"):
        whole(partition="a\nrm -rf")


@pytest.mark.parametrize("runs", [("triplet",), ("moco", "a 'b' $(c)")])
@pytest.mark.parametrize("container", [None, "image.sif"])
def test_scripts_are_clean(tmp_path, runs, container):
    _, written = scripts(
        ("pull", "coco"), ("finetune", "--data", "my $HOME"), runs=runs, container=container
    )
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    checked = subprocess.run(
        [
            Path(sys.executable).with_name("shellcheck"),
            "--severity=warning",
            *(tmp_path / name for name in written),
        ],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout
