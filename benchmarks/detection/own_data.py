"""Convert the user's own data into the normal form that ``data`` reads, in a run's folder."""

from collections.abc import Sequence
from pathlib import Path

from triplet import paths, records
from triplet.datasets import source as datasets
from triplet.datasets.layouts import find, is_standard
from triplet.datasets.source import DataSource
from triplet.progress import is_local_main, say
from triplet.training.distributed import Processes, perform


def in_place(source: DataSource) -> Path | None:
    """Return the user's own folder if ``data.parts`` reads it as it is; None if it must be converted."""
    folder = source.folder
    return folder if folder and (is_standard(folder) or datasets.written(folder)) else None


def made_of(folder: Path, source: DataSource) -> bool:
    """Return whether a run's data in a folder were made of the folder that the user names."""
    if source.folder is None or in_place(source) or not (record := records.read(folder)):
        return False
    named = {paths.portable(part.annotations) for part in find(source.folder)[1].values()}
    return record.stage == "data" and named <= {each["source"] for each in record.config["parts"].values()}


def place(
    run: str,
    source: DataSource,
    processes: Processes,
    *,
    stage: str = "data",
    classes: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Find the data, or convert it to the normal form in a folder of the run.

    The conversion is a stage of its own, with a record of the data's origin and split. Once a finetuning
    has begun, other data are refused without ``force``.

    Args:
        run: the run whose folder gets the data.
        source: the data that the user names.
        processes: all processes; each calls this.
        stage: name of the folder and the record.
        classes: classes of the model to be evaluated on the data, if any.
        force: whether to replace existing data.

    Returns:
        A folder for ``data.parts``: the user's own if it is in COCO 2017's or VOC's layout.

    Raises:
        KitError: an unknown layout, unusable annotations, or other data than those of the begun finetuning.
    """
    if folder := in_place(source):
        return folder
    own = datasets.read(source, "train" if stage == "data" else "val", classes)
    if is_local_main():
        say(f"{stage}: {own.line()}")
    folder = paths.stage_folder(run, stage)

    def work(job: records.Job) -> None:
        if is_local_main():
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
    processes.gather(None)  # a barrier: the first process of each machine has written the data
    return folder
