"""A real Slurm of one node, with daemons and a configuration of its own in one folder."""

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from triplet import cli

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
ENVIRONMENT = {"PATH": f"{os.environ['PATH']}:/usr/sbin", "DEBIAN_FRONTEND": "noninteractive"}
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
# A job that is queued again waits for as long as its old credential lives.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
ReturnToService=2
MinJobAge=3600
# CPUs and GPUs that are not there.
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=64000 Gres=gpu:8
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""


def unavailable() -> str:
    """Why Slurm cannot be had here, '' if it can: where it may, it is installed from Debian's packages."""
    if _missing() and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["update"], ["install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]):
            done = subprocess.run(
                ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", *command],
                env={**os.environ, **ENVIRONMENT},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                return f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    missing = _missing()
    return f"Slurm is not here ({', '.join(missing)}): apt install slurm-wlm munge" if missing else ""


def _missing() -> list[str]:
    return [name for name in PROGRAMS if not shutil.which(name, path=ENVIRONMENT["PATH"])]


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Start the daemons, and let the commands of this process talk to them; stop them afterwards."""
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = CONFIGURATION.format(host=host, user=getpass.getuser(), ports=_free_ports(2), folder=folder)
    (folder / "slurm.conf").write_text(text)
    for number in range(8):
        (folder / f"gpu{number}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-7]\n")
    (folder / "cgroup.conf").touch()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    munge = {"key-file": key, "num-threads": 1}
    munge |= {f"{name}-file": folder / f"munge.{name}" for name in ("pid", "log", "seed")}
    options = [f"--{name}={value}" for name, value in munge.items()]
    daemons: list[subprocess.Popen[bytes]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")  # a test may have put programs there
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))

        def start(*command: str) -> None:
            # A test session that is killed takes its daemons along.
            command = ("setpriv", "--pdeathsig", "TERM", *command)
            with (folder / f"{command[3]}.out").open("wb") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True))

        try:
            start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options)
            _wait(lambda: (folder / "munge.socket").exists(), folder)
            start("slurmctld", "-D")
            start("slurmd", "-D")
            _wait(lambda: ask("sinfo", "--noheader", "--format=%T") == "idle", folder)
            yield
            subprocess.run(["scancel", "--me"], check=False)
            _wait(lambda: not ask("squeue", "--noheader"), folder)
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(20)


def ask(*command: str) -> str:
    """What one of Slurm's commands prints; '' where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def submit(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """Submit stages; the number of the job of each."""
    code = cli.main(["submit", *map(str, arguments), "--on", "slurm", "--cpus", "1"])
    out, error = capsys.readouterr()
    assert code == 0, error
    return dict(re.findall(r"^(\w+): job (\d+)$", out, re.M))


def told(job: str) -> dict[str, str]:
    """What Slurm knows about a job."""
    return dict(re.findall(r"(\w+)=(\S*)", ask("scontrol", "show", "job", job)))


def log(folder: Path, stage: str) -> str:
    """What the jobs of a stage have printed."""
    return "".join(path.read_text() for path in (folder / "checkpoints/jobs").glob(f"{stage}-*.log"))


def began_at(stage: Path) -> list[str]:
    """Iterations at which Detectron2 says that it begins."""
    text = "".join(path.read_text() for path in sorted(stage.glob("log*.txt")))
    return re.findall(r"Starting training from iteration (\d+)", text)


def wait_until(ready: Callable[[], object], folder: Path, seconds: float = 400) -> None:
    """Wait, as long as no job fails."""
    deadline = time.monotonic() + seconds
    while not ready():
        failed = ask("squeue", "--noheader", "--states=FAILED,CANCELLED", "--format=%j")
        assert not failed, log(folder, "*")
        assert time.monotonic() < deadline, ask("squeue") + log(folder, "*")
        time.sleep(0.2)


def stop_in_time(job: str, stage: Path, folder: Path) -> None:
    """Send a finetuning that trains what Slurm sends before its limit; wait until it is queued again."""
    wait_until(lambda: began_at(stage), folder)
    assert subprocess.run(["scancel", "--batch", "--signal=USR1", job]).returncode == 0
    wait_until(lambda: "queued again" in log(folder, "finetune"), folder)


def _wait(ready, folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        said = {path.name: path.read_text()[-2000:] for path in folder.glob("*.out")}
        assert time.monotonic() < deadline, said
        time.sleep(0.1)


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
