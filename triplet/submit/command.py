"""Write the job files, show them, and hand them to the scheduler; the command of ``triplet submit``."""

import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from triplet import files
from triplet.errors import KitError
from triplet.progress import say
from triplet.submit import kubernetes, sky, slurm
from triplet.submit.jobs import OF_NO_RUN, ClusterJob, Resources, ask, folder, label, title


class Way(NamedTuple):
    """A scheduler, and how to submit jobs to it."""

    program: str
    advice: str
    """Advice on how to install the program."""
    write: Callable[[Sequence[ClusterJob]], dict[str, str]]
    """Return the files for jobs, by name."""
    queued: Callable[[Sequence[ClusterJob]], list[str]]
    """Return the entries for these jobs that the queue already has."""


WAYS = {
    "slurm": Way(
        "sbatch",
        "run this on a login node of the cluster (Debian, Ubuntu: apt install slurm-client)",
        slurm.write,
        slurm.queued,
    ),
    "sky": Way(
        "sky",
        "install it in an environment of its own, for your cloud: uv tool install 'skypilot[aws]'",
        sky.write,
        sky.queued,
    ),
    "k8s": Way(
        "kubectl",
        "install it, and name the cluster in ~/.kube/config",
        kubernetes.write,
        kubernetes.queued,
    ),
}
ONLY = {
    "partition": ("slurm",),
    "account": ("slurm",),
    "extra": ("slurm",),
    "container": ("slurm", "k8s"),
    "card": ("sky",),
    "bucket": ("sky",),
}
"""Resources that not every scheduler supports -> the schedulers that do."""
OPTIONS = {"card": "GPU"}
"""Resource -> make variable, if the names differ."""


def submit(
    jobs: Sequence[ClusterJob], on: str, asked: Resources, *, dry: bool = False, force: bool = False
) -> None:
    """Write the files of jobs, show and submit them.

    Args:
        jobs: jobs in the order in which they run.
        on: one of WAYS.
        asked: the resources that the user asked for.
        dry: whether to show the files and the commands without submitting.
        force: whether to submit even if the queue already has the same jobs.

    Raises:
        KitError: the scheduler does not support a resource, or needs one that was not given; its program is
            missing or refuses; or the queue already has the same jobs.
    """
    _check(jobs, on, asked)
    written = _write(jobs, on)
    if dry:
        say("\n".join(["", *_shown(jobs, on, written, force=force)]))
        return
    way = WAYS[on]
    if shutil.which(way.program) is None:
        raise KitError(
            f"found no {way.program} on the PATH; {way.advice}; DRY=1 (--dry) shows the files without it"
        )
    if not force and (known := way.queued(jobs)):
        raise KitError(
            f"submitted already: {', '.join(known)}; wait for it, cancel it, or add FORCE=1 (--force)"
        )
    if on == "slurm":
        lines = slurm.send(jobs, written)
    else:
        lines = [ask(words, "refuses") for words in _commands(jobs, on, written, force=force)]
    say("\n".join(["", *lines]))


def _check(jobs: Sequence[ClusterJob], on: str, asked: Resources) -> None:
    """Refuse jobs and resources that the scheduler does not support."""
    for name, ways in ONLY.items():
        if getattr(asked, name) and on not in ways:
            raise KitError(
                f"{OPTIONS.get(name, name.upper())} is for ON={' or '.join(ways)}: found ON={on}"
            )
    if on == "k8s" and not asked.container:
        raise KitError(
            "ON=k8s needs CONTAINER=registry/image, that `make build` has made and you have pushed"
        )
    if on == "sky" and not asked.bucket:
        raise KitError("ON=sky needs BUCKET=s3://name, or gs://, of yours: data and checkpoints lie there")
    if on == "sky" and not asked.card and any(job.resources.gpus for job in jobs):
        raise KitError("ON=sky needs GPU=card, such as GPU=H100, by which it finds machines")
    if on == "slurm" and asked.container and not Path(asked.container).is_file():
        raise KitError(f"found no file {asked.container}; make it as docs/clusters.md says under Apptainer")
    if on != "slurm":
        _check_one_after_the_other(jobs, on)


def _check_one_after_the_other(jobs: Sequence[ClusterJob], on: str) -> None:
    """Refuse, except on Slurm, stages that wait for all runs of another stage: other schedulers have one
    job per run."""
    names = [job.stage for job in jobs]
    if len(jobs[0].runs) > 1 and (once := [name for name in names if name in OF_NO_RUN]):
        raise KitError(
            f"{', '.join(once)} is done once for all {len(jobs[0].runs)} runs, and ON={on} makes a job for "
            "each: submit it by itself, with one METHOD, before or after the other stages"
        )


def _write(jobs: Sequence[ClusterJob], on: str) -> dict[str, Path]:
    """Write the files into a folder named after this submission, and show them."""
    place = folder() / label(title(jobs), "-".join(jobs[0].runs))
    written = {}
    for name, text in WAYS[on].write(jobs).items():
        written[name] = place / name
        files.write_text(written[name], text)
        say(f"submit: {written[name]}\n\n{text}")
    return written


def _shown(jobs: Sequence[ClusterJob], on: str, written: dict[str, Path], *, force: bool) -> list[str]:
    """Return the commands as a user would type them."""
    commands = _commands(jobs, on, written, force=force)
    if on != "slurm":
        return [shlex.join(words) for words in commands]
    return [
        f"{job.stage}=$({' '.join(word if '$' in word else shlex.quote(word) for word in words)})"
        for job, words in zip(jobs, commands, strict=True)
    ]


def _commands(
    jobs: Sequence[ClusterJob], on: str, written: dict[str, Path], *, force: bool
) -> list[list[str]]:
    if on == "slurm":
        return slurm.submissions(jobs, written)
    paths = list(written.values())
    return sky.submissions(paths) if on == "sky" else kubernetes.submissions(paths, force=force)
