"""The description of what is submitted: stages, their commands for each run, and what they need."""

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

KIT = paths.CONFIGS.parent
CHAIN = ("pull", "convert", "finetune", "eval", "report")
"""The stages of a method, from its weights to the page; ``chain`` for short."""
DISTRIBUTED = ("pretrain", "finetune", "eval", "linear", "knn", "semi")
"""Stages of a process a GPU, on as many nodes as they are given."""
ONE_PROCESS = ("svm", "demo")
"""Stages of one process that uses one GPU."""
NO_GPU = ("pull", "pack", "convert", "report")
OF_NO_RUN = ("pull", "pack", "report", "demo")
"""Stages that are done once, however many runs there are."""
STAGES = (*DISTRIBUTED, *ONE_PROCESS, *NO_GPU)
CPUS_PER_GPU = 8
"""Loading and augmenting for one GPU keeps about as many cores busy."""
CPUS_WITHOUT_GPU = 4


@dataclass(frozen=True)
class Resources:
    """Resources of a job. ``gpus``, ``cpus`` and ``memory`` are those of each node."""

    gpus: int = 1
    nodes: int = 1
    hours: float | None = None
    """None: 24 on Slurm, which must have a limit, and none elsewhere."""
    cpus: int | None = None
    memory: int | None = None
    """Memory in GB; None for the cluster's default."""
    card: str | None = None
    """Name of the GPU, by which SkyPilot finds a machine."""
    partition: str | None = None
    account: str | None = None
    extra: tuple[str, ...] = ()
    """Further options of sbatch."""
    container: str | None = None
    """Slurm: a .sif file, which Apptainer runs. Kubernetes: the image in a registry."""
    bucket: str | None = None
    """SkyPilot: where data, checkpoints and reports lie."""

    @property
    def cores(self) -> int:
        """Cores of each node."""
        return self.cpus or (CPUS_PER_GPU * self.gpus or CPUS_WITHOUT_GPU)

    @property
    def processes(self) -> int:
        """Processes of each node, one a GPU."""
        return max(1, self.gpus)


@dataclass(frozen=True)
class Run:
    """A run, and the seed that its finetuning gets; None for the stage's own default."""

    name: str
    seed: int | None = None


@dataclass(frozen=True)
class Job:
    """One stage for all runs.

    ``commands`` holds the words behind ``triplet``: one command for each run, or a single one for a stage
    that is done once.
    """

    stage: str
    runs: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...]
    resources: Resources

    def command(self, run: int) -> tuple[str, ...]:
        """The command for the run of this index."""
        return self.commands[run if len(self.commands) > 1 else 0]


def name_runs(
    methods: Sequence[str], run: str | None, seeds: Sequence[int], stages: Iterable[str]
) -> list[Run]:
    """The runs that were asked for: of methods or of one name, each once for each seed.

    ``all`` stands for the table's ten methods; where the stages begin with pretraining, for those that are
    pretrained here. KitError for a method that the table does not have.
    """
    table = load_methods()
    pretrained = "pretrain" in stages
    every = [name for name, method in table.items() if method.pretrain or not pretrained]
    methods = [name for word in methods for name in (every if word == "all" else [word])]
    if unknown := [name for name in methods if name not in table]:
        raise KitError(
            f"not in the table of methods: {', '.join(unknown)}; take one of {', '.join(table)}, or all; "
            "a run of another name is --run NAME (make: RUN=NAME)"
        )
    names = [run] if run else methods
    if not seeds:
        return [Run(name) for name in names]
    return [Run(f"seed{seed}/{name}", seed) for seed in seeds for name in names]


def plan_jobs(stages: Sequence[Sequence[str]], runs: Sequence[Run], resources: Resources) -> list[Job]:
    """Describe the job of each stage, in the order in which they follow each other.

    Args:
        stages: words of each, as behind ``triplet``: the stage, then its own options.
        runs: what each stage is done for.
        resources: what was asked for; a stage of one process takes one node of it, and a stage that needs
            no GPU takes none.

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
    for run in runs:
        paths.stage_folder(run.name, "job")
    return [
        Job(
            words[0],
            tuple(run.name for run in runs),
            tuple(_command(words, run, runs) for run in (runs[:1] if words[0] in OF_NO_RUN else runs)),
            _share(words[0], resources),
        )
        for words in stages
    ]


def _command(words: Sequence[str], run: Run, runs: Sequence[Run]) -> tuple[str, ...]:
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


def title(jobs: Sequence[Job]) -> str:
    """``finetune``, or ``chain`` for several stages."""
    return jobs[0].stage if len(jobs) == 1 else "chain"


def label(stage: str, run: str) -> str:
    """A name for this run in these checkpoints that Kubernetes and the clouds allow: at most 52 characters.

    Pods add to it, and all of it is the name of a host, which has 63 at most.
    """
    words = re.sub("[^a-z0-9]+", "-", f"triplet-{stage}-{run}".lower())[:43].rstrip("-")
    whole = os.fsencode(paths.root("checkpoints") / run)
    return f"{words}-{hashlib.sha256(whole).hexdigest()[:8]}"


def folder() -> Path:
    """Return the folder of job files and their logs: below the checkpoints, which all nodes see."""
    return paths.root("checkpoints") / "jobs"


def ask(words: Sequence[str], failing: str = "does not answer") -> str:
    """Run a scheduler's program and return what it prints; KitError with its reason where it fails.

    Args:
        words: of the command.
        failing: what the message says that the program does.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise KitError(f"{words[0]} {failing}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


def programs() -> Path:
    """Folder of the environment's programs."""
    return Path(sys.executable).absolute().parent  # not resolved: that would leave the environment
