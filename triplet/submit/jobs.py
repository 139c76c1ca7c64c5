"""The description of jobs: stages, their commands for each run, and their resources."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from triplet import paths
from triplet.errors import KitError
from triplet.published.methods import load_methods
from triplet.pull.sources import load_sources
from triplet.submit import CPUS_PER_GPU

KIT = paths.CONFIGS.parent
CHAIN = ("pull", "convert", "finetune", "eval", "report")
"""The stages of a method from its weights to the report, ``chain`` for short."""
DISTRIBUTED = ("pretrain", "finetune", "eval", "linear", "knn", "semi")
"""Stages with one process per GPU, on any number of nodes."""
ONE_PROCESS = ("svm", "demo")
"""Stages with a single process that uses one GPU."""
NO_GPU = ("pull", "pack", "convert", "report")
OF_NO_RUN = ("pull", "pack", "report", "demo")
"""Stages that run once, for any number of runs."""
STAGES = (*DISTRIBUTED, *ONE_PROCESS, *NO_GPU)
CPUS_WITHOUT_GPU = 4


@dataclass(frozen=True)
class Resources:
    """Resources of a job. ``gpus``, ``cpus`` and ``memory`` are those of each node."""

    gpus: int = 1
    nodes: int = 1
    hours: float | None = None
    """Time limit; None for SLURM_HOURS on Slurm, and for no limit elsewhere."""
    cpus: int | None = None
    memory: int | None = None
    """Memory in GB; None for the cluster's default."""
    card: str | None = None
    """Name of the GPU, with which SkyPilot finds a machine."""
    partition: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()
    """Further options of sbatch."""
    container: str | None = None
    """Slurm: a .sif file for Apptainer. Kubernetes: the image in a registry."""
    bucket: str | None = None
    """SkyPilot: bucket for data, checkpoints and reports."""

    @property
    def cores(self) -> int:
        """Cores of each node."""
        return self.cpus or (CPUS_PER_GPU * self.gpus or CPUS_WITHOUT_GPU)

    @property
    def processes(self) -> int:
        """Processes of each node, one per GPU."""
        return max(1, self.gpus)


@dataclass(frozen=True)
class ClusterRun:
    """A run, and the seed of its finetuning; None for the stage's default."""

    name: str
    seed: int | None = None


@dataclass(frozen=True)
class ClusterJob:
    """One stage for all runs.

    ``commands`` holds the words after ``triplet``: one command for each run, or a single one for a stage
    that runs once.
    """

    stage: str
    runs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    resources: Resources

    def command(self, run: int) -> tuple[str, ...]:
        """Return the command for the run with this index."""
        return self.commands[run if len(self.commands) > 1 else 0]


def name_runs(
    methods: Sequence[str], run: str | None, seeds: Sequence[int], stages: Iterable[str]
) -> list[ClusterRun]:
    """Return the requested runs, of methods or of one name, one for each seed.

    ``all`` stands for the table's ten methods or, if the stages begin with pretraining, for those that are
    pretrained here. KitError for a method that the table lacks.
    """
    table = load_methods()
    pretrained = "pretrain" in stages
    every = [name for name, method in table.items() if method.pretrain or not pretrained]
    methods = [name for word in methods for name in (every if word == "all" else [word])]
    if unknown := [name for name in methods if name not in table]:
        raise KitError(
            f"not in the table of methods: {', '.join(unknown)}; take one of {', '.join(table)}, or all; "
            "a run of another name is --run NAME"
        )
    names = [run] if run else methods
    if not seeds:
        return [ClusterRun(name) for name in names]
    return [ClusterRun(f"seed{seed}/{name}", seed) for seed in seeds for name in names]


def plan_jobs(
    stages: Sequence[Sequence[str]], runs: Sequence[ClusterRun], resources: Resources
) -> list[ClusterJob]:
    """Describe the job of each stage, in the order in which the jobs run.

    Args:
        stages: words of each stage as after ``triplet``: the stage, then its own options.
        runs: the runs for each stage.
        resources: the requested resources; a stage with one process uses one node of them, and a stage that
            needs no GPU uses none.

    Raises:
        KitError: an unknown stage, ``--force``, no stage that can use several nodes, a bad name of a run.
    """
    names = [words[0] for words in stages]
    if unknown := [name for name in names if name not in STAGES]:
        raise KitError(
            f"no stage that can be submitted: {', '.join(unknown)}; take chain ({', '.join(CHAIN)}) or "
            f"some of {', '.join(STAGES)}"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise KitError(f"a stage stands once in a list: found {', '.join(sorted(twice))} again")
    if resources.nodes > 1 and not set(names) & set(DISTRIBUTED):
        raise KitError(
            f"{', '.join(names)} knows one process only, found NODES={resources.nodes}; several nodes are "
            f"for {', '.join(DISTRIBUTED)}"
        )
    if any("--force" in words for words in stages):
        raise KitError(
            "a job that is queued again must go on, and --force would start over each time; "
            "delete the stage's folder below checkpoints/ instead, then submit without it"
        )
    if any(word.partition("=")[0] == "--run" for words in stages for word in words):
        raise KitError(
            "a stage here takes its run from submit: --run NAME beside the stages, not among them"
        )
    for run in runs:
        paths.stage_folder(run.name, "job")
    return [
        ClusterJob(
            words[0],
            tuple(run.name for run in runs),
            tuple(_command(words, run, runs) for run in (runs[:1] if words[0] in OF_NO_RUN else runs)),
            _share(words[0], resources),
        )
        for words in stages
    ]


def _command(words: Sequence[str], run: ClusterRun, runs: Sequence[ClusterRun]) -> tuple[str, ...]:
    stage, *options = words
    if stage == "pull":
        methods = list(dict.fromkeys(PurePath(each.name).name for each in runs))
        named = {"weights", "all"} & {*options} and "--method" not in options
        known = load_sources().weights
        if named and (unknown := [method for method in methods if method not in known]):
            raise KitError(
                f"no weights are published of {', '.join(unknown)}: end the run's name in one of "
                f"{', '.join(known)}, or submit convert with WEIGHTS=file, without pull"
            )
        return (stage, *options, *(["--method", *methods] if named else []))
    if stage in OF_NO_RUN:
        return tuple(words)
    seed = ["--seed", str(run.seed)] if stage == "finetune" and run.seed is not None else []
    return (stage, "--run", run.name, *options, *seed)


def _share(stage: str, asked: Resources) -> Resources:
    if stage in DISTRIBUTED:
        return asked
    return replace(asked, nodes=1, gpus=min(asked.gpus, 1) if stage in ONE_PROCESS else 0, cpus=None)


def title(jobs: Sequence[ClusterJob]) -> str:
    """Return the title of jobs: ``finetune``, or ``chain`` for several stages."""
    return jobs[0].stage if len(jobs) == 1 else "chain"


def label(stage: str, run: str) -> str:
    """Return a name for a run in these checkpoints that Kubernetes and clouds allow: at most 43 characters.

    Pods append up to 20, as in ``-finetune-0-12-abcde``, and the result is a host name, which has at most
    63 characters.
    """
    words = re.sub("[^a-z0-9]+", "-", f"triplet-{stage}-{run}".lower())[:34].rstrip("-")
    whole = os.fsencode(paths.root("checkpoints") / run)
    return f"{words}-{hashlib.sha256(whole).hexdigest()[:8]}"


def folder() -> Path:
    """Return the folder of job files and their logs, below the checkpoints, which all nodes share."""
    return paths.root("checkpoints") / "jobs"


def ask(words: Sequence[str], failing: str = "does not answer") -> str:
    """Run a scheduler's program and return its output; KitError with its reason if it fails.

    Args:
        words: words of the command.
        failing: the verb of the error message.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise KitError(f"{words[0]} {failing}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def programs() -> Path:
    """Return the folder of the environment's programs."""
    return Path(sys.executable).absolute().parent  # resolving would leave the environment
