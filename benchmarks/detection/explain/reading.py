"""Read everything that explain is given into the facts of a run."""

from pathlib import Path

from benchmarks.detection.explain import configs, mmdetection
from benchmarks.detection.explain.logs import of_log
from benchmarks.detection.explain.text import read_text
from triplet import paths, records
from triplet.commands import typed
from triplet.errors import KitError
from triplet.published.causes.cause import Result
from triplet.published.facts import Facts, rescale
from triplet.published.methods import load_methods
from triplet.runs import Run, facts_of_run

HEAD = 1 << 18
"""Bytes at the beginning of a log that name the machine."""


def read(
    config: Path | None,
    log: Path | None,
    names: list[str] | None = None,
    gpus: int | None = None,
    method: str = "",
) -> Facts:
    """Read the facts from a config and a log; the log's own copy of the config counts if none is given.

    Args:
        config: the run's Detectron2 YAML, or mmdetection's .py.
        log: the run's ``log.txt`` or ``metrics.json``.
        names: filled with the names of the config and its bases.
        gpus: number of GPUs of the training, if the user knows it.
        method: method of the table, by whose recipe a missing base of the config is read.

    Raises:
        KitError: a file cannot be read; or there is no config and the log has no information.
    """
    facts = Facts(gpus=gpus)
    if log and not gpus:  # mmdetection's config needs them to give the batch
        facts.gpus = mmdetection.count_gpus(mmdetection.unpacked(read_text(log, HEAD)[0]))
    if config:
        known = load_methods().get(method)
        recipe = known.recipe if known else "moco"
        said = configs.of_file(facts, config, recipe)
        if names is not None:
            names.append(said)
    if log:
        before = len(facts.notes)
        of_log(facts, log, gpus, config_given=config is not None)
        if not config and any("told nothing" in note for note in facts.notes[before:]):
            raise KitError(f"{log}: no iteration of Detectron2 in it; expected its log.txt or metrics.json")
    rescale(facts)
    return facts


def of_run(run: str) -> tuple[Facts, Result, str]:
    """Return the facts, the AP and the method of a run whose finetuning and evaluation are recorded.

    Args:
        run: its name below checkpoints/, or the path of its folder.

    Raises:
        KitError: the run has no such records.
    """
    folder = Path(run) if Path(run).is_dir() else paths.stage_folder(run, "eval").parent
    stages = {}
    for stage in ("finetune", "eval"):
        record = records.read(folder / stage)
        if record is None:
            raise KitError(f"{folder} has no {stage} that is done; run: {typed(stage, '--run', run)}")
        stages[stage] = record
    done = Run(folder.name, stages)
    box, mask = done.value("bbox", "AP"), done.value("segm", "AP")
    if box is None or not done.detectron2:
        raise KitError(f"{folder}: its evaluation has no box AP, or its finetuning no config")
    return facts_of_run(done), (box, mask), done.method
