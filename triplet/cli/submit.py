"""Stages on a cluster: submit."""

import argparse
import shlex

from triplet.cli.options import Add, add_force, count, positive
from triplet.commands import METHOD, spoken
from triplet.errors import KitError
from triplet.progress import say
from triplet.submit import CPUS_PER_GPU, SLURM_HOURS

WHERE = ("slurm", "sky", "k8s")
LENGTH = {"--hours", "--schedule"}
"""Options of finetune that say how long to train."""


def add_commands(add: Add) -> None:
    """Add the command of this group."""
    submit = add("submit", _submit, "write the job files of stages for a cluster, show them, submit them")
    submit.add_argument(
        "stages",
        nargs="*",
        metavar="STAGE",
        help="one after the other, each with options of its own in quotes: 'finetune --schedule 1/4x'; "
        "chain means pull convert finetune eval report",
    )
    submit.set_defaults(words="stages")
    submit.add_argument("--on", required=True, choices=WHERE, help="Slurm, SkyPilot or Kubernetes")
    what = submit.add_mutually_exclusive_group()
    what.add_argument(
        "--method",
        nargs="+",
        default=[METHOD],
        metavar="METHOD",
        help=f"methods of the table, or all (default: {METHOD})",
    )
    what.add_argument("--run", metavar="NAME", help="a run of another name, as the stages take it")
    submit.add_argument(
        "--seeds", type=int, nargs="+", default=[], help="once for each, as runs seed<n>/METHOD"
    )
    _add_resources(submit)
    submit.add_argument("--dry", action="store_true", help="write and show the files, submit nothing")
    add_force(submit)


def _add_resources(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("--gpus", type=count, default=1, help="of each node (default: %(default)s)")
    submit.add_argument("--nodes", type=count, default=1, help="(default: %(default)s)")
    submit.add_argument(
        "--hours",
        type=positive,
        help="time limit of a job, not the length of a training (that is 'finetune --schedule 1/4x'); on "
        f"Slurm the job is then queued again (default: {SLURM_HOURS:g} there, else none)",
    )
    submit.add_argument("--cpus", type=count, help=f"of each node (default: {CPUS_PER_GPU} for each GPU)")
    submit.add_argument("--memory", type=count, metavar="GB", help="of each node (default: the cluster's)")
    submit.add_argument("--gpu", metavar="CARD", help="SkyPilot: such as H100")
    submit.add_argument("--partition", metavar="NAME", help="Slurm")
    submit.add_argument("--account", metavar="NAME", help="Slurm")
    submit.add_argument(
        "--extra",
        default="",
        metavar="OPTIONS",
        help="Slurm: further options of sbatch, as in --extra=--qos=x",
    )
    submit.add_argument(
        "--container", metavar="IMAGE", help="Slurm: a .sif file for Apptainer; Kubernetes: in a registry"
    )
    submit.add_argument("--bucket", metavar="ADDRESS", help="SkyPilot: for data and checkpoints: s3://name")


def _submit(a: argparse.Namespace) -> None:
    from triplet.submit import jobs
    from triplet.submit.command import submit

    stages = _stages(a, jobs.CHAIN)
    resources = jobs.Resources(
        a.gpus,
        a.nodes,
        a.hours,
        a.cpus,
        a.memory,
        a.gpu,
        a.partition,
        a.account,
        _extra(a.extra),
        a.container,
        a.bucket,
    )
    runs = jobs.name_runs(a.method, a.run, a.seeds, [words[0] for words in stages])
    described = jobs.plan_jobs(stages, runs, resources)
    for job in described:
        for command in job.commands:
            a.parse(command)  # exits if the stage would, before anything waits in a queue
    submit(described, a.on, resources, dry=a.dry, force=a.force)
    if a.hours and any(words[0] == "finetune" and not LENGTH.intersection(words) for words in stages):
        say(
            f"submit: {a.hours:g} h is the limit of a job; the training has its full schedule. "
            f"To compress it, give finetune {spoken('finetune', '--schedule 1/4x')}"
        )


def _stages(a: argparse.Namespace, chain: tuple[str, ...]) -> list[list[str]]:
    """Return the words of each stage."""
    stages: list[list[str]] = []
    for text in a.stages:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise KitError(f"cannot read the stage {text!r}: {error}") from None
        if words == ["chain"]:
            stages += [["pull", "coco", "weights"] if stage == "pull" else [stage] for stage in chain]
        elif words:
            stages.append(words)
    if not stages:
        raise KitError(
            "name a stage, such as finetune, or chain for all from pull to report (make: STAGE=name)"
        )
    return stages


def _extra(text: str) -> tuple[str, ...]:
    """Return further options of sbatch; KitError for words that are not options."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise KitError(f"cannot read --extra {text!r}: {error}") from None
    if wrong := [word for word in words if not word.startswith("--")]:
        raise KitError(f"--extra takes options of sbatch such as --qos=x: found {' '.join(wrong)}")
    return words
