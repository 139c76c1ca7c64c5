"""The user's own data in a run's folder, in the normal form that ``data`` reads."""

from collections.abc import Sequence
from pathlib import Path

from triplet import paths, records
from triplet.datasets import source as datasets
from triplet.datasets.layouts import is_standard
from triplet.datasets.source import DataSource
from triplet.progress import first_here, say
from triplet.training.distributed import Processes, perform


def place(
    run: str,
    source: DataSource,
    processes: Processes,
    *,
    stage: str = "data",
    classes: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Find the data, or bring it into the normal form in a folder of the run.

    That is a stage of its own, with a record of where the data came from and how it was split. Once a
    finetuning has begun, other data are refused until ``force``.

    Args:
        run: whose folder.
        source: what the user names.
        processes: all of them; each calls this.
        stage: name of the folder and the record.
        classes: of a model that is to be evaluated on it.
        force: replace what is there.

    Returns:
        A folder for ``data.parts``: the user's own where it is in COCO 2017's or VOC's layout.

    Raises:
        KitError: an unknown layout, annotations that cannot be used, or other data than what has begun has.
    """
    if source.folder and (is_standard(source.folder) or datasets.written(source.folder)):
        return source.folder
    own = datasets.read(source, "train" if stage == "data" else "val", classes)
    if first_here():
        say(f"{stage}: {own.line()}")
    folder = paths.stage_folder(run, stage)

    def work(job: records.Job) -> None:
        if first_here():
            datasets.write(own, job.folder)
        job.outputs.update({name: job.folder / name for name in (*own.texts, datasets.DESCRIPTION)})
        job.results.update(
            images={name: len(part.content["images"]) for name, part in own.parts.items()},
            classes=list(own.classes.values()),
        )

    begun = processes.is_main_process and records.begun(paths.stage_folder(run, "finetune")) is not None
    perform(
        processes,
        stage,
        folder,
        work=work,
        config=datasets.identity(own),
        inputs={},
        derived=stage != "data" or not begun,
        force=force,
    )
    processes.gather(None)  # the first process of each machine has written it
    return folder
