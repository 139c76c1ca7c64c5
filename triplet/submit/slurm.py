"""Slurm: a batch script for each stage, arrays over runs, and dependencies from stage to stage."""

import json
import math
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2

from triplet import paths
from triplet.errors import KitError
from triplet.submit import SLURM_HOURS
from triplet.submit.jobs import KIT, ClusterJob, Resources, ask, folder, programs

NOTICE = 300
"""Seconds before the time limit at which a stage is told to stop and save."""


def write(jobs: Sequence[ClusterJob]) -> dict[str, str]:
    """Return the batch scripts by file name."""
    return {f"{job.stage}.slurm": _script(job) for job in jobs}


def _script(job: ClusterJob) -> str:
    template = jinja2.Template(
        Path(__file__).with_name("job.slurm.j2").read_text(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    resources = job.resources
    text: str = template.render(
        options=[_directive(option) for option in _options(job)],
        resources=resources,
        places={f"TRIPLET_{name.upper()}": shlex.quote(str(paths.root(name))) for name in paths.PLACES},
        programs=shlex.quote(str(programs())),
        commands=[shlex.join(command) for command in job.commands],
        launch=shlex.join(_launcher(job)),
        seconds=_notice(resources),
    )
    return text


def _directive(option: str) -> str:
    """Return one line of sbatch's options; sbatch reads quotes like a shell, but only within a line."""
    if not option.isprintable():
        raise KitError(f"a line of a job file cannot hold {option!r}")
    name, sign, value = option.partition("=")
    return f"#SBATCH --{name}{sign}{shlex.quote(value) if sign else ''}"


def _options(job: ClusterJob) -> list[str]:
    resources = job.resources
    array = len(job.commands) > 1
    log = folder() / f"{job.stage}-{'%A_%a' if array else '%j'}.log"
    escaped = str(log.parent).replace("%", "%%")
    comment = json.dumps({"checkpoints": str(paths.root("checkpoints")), "runs": job.runs})
    chosen = {
        "gpus-per-node": resources.gpus or None,
        "mem": resources.memory and f"{resources.memory}G",
        "partition": resources.partition,
        "account": resources.account,
        "array": f"0-{len(job.commands) - 1}" if array else None,
    }
    return [
        f"job-name=triplet-{job.stage}",
        f"comment={comment}",
        f"chdir={Path.cwd()}",
        f"output={escaped}/{log.name}",
        "open-mode=append",
        f"nodes={resources.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={resources.cores}",
        f"time={_minutes(resources)}",
        f"signal=B:USR1@{_notice(resources)}",
        "requeue",
        "kill-on-invalid-dep=yes",
        *(f"{name}={value}" for name, value in chosen.items() if value is not None),
        *(option.removeprefix("--") for option in resources.extra),
    ]


def _minutes(resources: Resources) -> int:
    """Return the time limit in whole minutes, as Slurm counts them."""
    return math.ceil((resources.hours or SLURM_HOURS) * 60)


def _notice(resources: Resources) -> int:
    """Return the seconds between the notice and the limit; for a short job, half of the limit."""
    return min(NOTICE, _minutes(resources) * 30)


def _launcher(job: ClusterJob) -> list[str]:
    """Return the command that starts the stage on a node: the kit's launcher, in a container if one is
    named."""
    container = job.resources.container
    if container is None:
        return [str(KIT / "scripts" / "launch.sh")]
    binds = {str(paths.root(name)): f"/{name}" for name in paths.PLACES}
    binds[str(paths.CONFIGS)] = "/kit/configs:ro"  # the user's own configs, as in compose.yaml
    named = [word for command in job.commands for word in command if word.startswith("/")]
    binds |= {word: f"{word}:ro" for word in named if Path(word).exists()}
    for path in binds:
        if set(path) & {":", ","}:
            raise KitError(f"Apptainer cannot bind {path}: its name has a colon or a comma in it")
    return [
        "apptainer",
        "exec",
        *(["--nv"] if job.resources.gpus else []),
        *(word for bind in binds.items() for word in ("--bind", ":".join(bind))),
        *(word for name in paths.PLACES for word in ("--env", f"TRIPLET_{name.upper()}=/{name}")),
        *("--env", f"TRIPLET_IMAGE={Path(container).name}"),
        "--pwd",
        "/kit",
        str(Path(container).absolute()),
        "scripts/launch.sh",
    ]


def submissions(jobs: Sequence[ClusterJob], files: Mapping[str, Path]) -> list[list[str]]:
    """Return the commands that submit the jobs; ``$STAGE`` stands for that stage's job number."""
    commands: list[list[str]] = []
    before = None
    for job in jobs:
        after: list[str] = []
        if before:
            after = [f"--dependency={_kind(before, job)}:${before.stage}"]
        commands.append(["sbatch", "--parsable", *after, str(files[f"{job.stage}.slurm"])])
        before = job
    return commands


def _kind(before: ClusterJob, job: ClusterJob) -> str:
    """Return a job's kind of dependency: each run waits for its own predecessor, and a summary of several
    runs waits for all of them, even failed ones."""
    if len(before.commands) == 1:
        return "afterok"
    return "aftercorr" if len(job.commands) > 1 else "afterany"


def send(jobs: Sequence[ClusterJob], files: Mapping[str, Path]) -> list[str]:
    """Submit the jobs; return a line for each.

    Raises:
        KitError: sbatch refuses a job, with its reason; the jobs before it are cancelled.
    """
    numbers: dict[str, str] = {}
    for job, command in zip(jobs, submissions(jobs, files), strict=True):
        words = [_fill(word, numbers) for word in command]
        try:
            said = ask(words, f"refuses {job.stage}")
        except KitError:
            if numbers:
                subprocess.run(["scancel", *numbers.values()], capture_output=True)
            raise
        numbers[job.stage] = said.partition(";")[0]  # the cluster's name may follow
    return [f"{stage}: job {number}" for stage, number in numbers.items()]


def _fill(word: str, numbers: Mapping[str, str]) -> str:
    option, _, stage = word.partition(":$")
    return f"{option}:{numbers[stage]}" if option.startswith("--dependency") else word


def queued(jobs: Sequence[ClusterJob]) -> list[str]:
    """Return the jobs in the queue for the same stage of the same run, such as ``finetune (job 12)``."""
    known = ask(["squeue", "--me", "--noheader", "--format=%i|%j|%k"])
    mine = {f"triplet-{job.stage}": job for job in jobs}
    found = []
    for line in known.splitlines():
        number, _, rest = line.partition("|")
        name, _, comment = rest.partition("|")
        try:
            told = json.loads(comment)
        except ValueError:
            continue
        if name in mine and _same(told, mine[name]):
            found.append(f"{mine[name].stage} (job {number})")
    return found


def _same(told: object, job: ClusterJob) -> bool:
    """Return whether a comment belongs to a job for one of the same runs."""
    return (
        isinstance(told, dict)
        and told.get("checkpoints") == str(paths.root("checkpoints"))
        and bool(set(told.get("runs", ())) & set(job.runs))
    )
