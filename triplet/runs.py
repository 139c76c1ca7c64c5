"""Turn records into comparable results."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from statistics import mean, stdev
from typing import Any

from triplet import paths, records
from triplet.commands import again
from triplet.errors import KitError
from triplet.progress import say
from triplet.published.configs import flat, recipe_of
from triplet.published.curves import IMAGES, LocalResult, detector, full_ap
from triplet.published.facts import Facts, of_config
from triplet.published.methods import load_methods
from triplet.records import Record

STAGES = ("pretrain", "convert", "finetune", "eval")
SEVERAL = ("linear", "knn", "semi", "svm")
"""Stages that a run may have several times, each in a folder named after its config."""
METRICS = ("AP", "AP50", "AP75")
VAL2017 = 5_000
"""Number of images in val2017."""
# Inputs that are another stage's output: (stage, its input, stage before, its output).
LINKS = (
    ("convert", "weights", "pretrain", "checkpoint"),
    ("finetune", "weights", "convert", "weights"),
    ("eval", "model", "finetune", "model"),
)


@dataclass(frozen=True)
class Run:
    """A method of a table for one seed: the records of its stages.

    Its folder below checkpoints/ is ``[experiment/][seed<N>/]method``.
    """

    name: str
    stages: dict[str, Record]
    """Records by name of the stage; those of SEVERAL as ``linear/<config>``."""
    stale: str = ""
    """Why some of its stages are left out: their inputs have changed since."""
    mend: str = ""
    """Command that makes the first of those again."""

    @property
    def method(self) -> str:
        """Method of the table."""
        return self.name.rpartition("/")[2]

    @property
    def experiment(self) -> str:
        """Folders of the run without the seed's; '' for a run of the table itself."""
        return "/".join(part for part in self.name.split("/")[:-1] if not re.fullmatch(r"seed\d+", part))

    @property
    def label(self) -> str:
        """Name of the run without the seed."""
        return f"{self.experiment}/{self.method}".removeprefix("/")

    @property
    def detectron2(self) -> dict[str, Any]:
        """Resolved config of the finetuning, {} without one."""
        finetune = self.stages.get("finetune")
        return finetune.config.get("detectron2", {}) if finetune else {}

    @property
    def of_the_table(self) -> bool:
        """Whether it was evaluated as in COCO's table: R50-C4 Mask R-CNN on all of val2017."""
        evaluated = self.stages.get("eval")
        if evaluated is None or not self.detectron2 or evaluated.results.get("images") != VAL2017:
            return False
        if any(
            stage.config.get("dataset", "").startswith("checkpoints/") for stage in self.stages.values()
        ):
            return False  # the user's own data, with the same number of images by chance
        return detector(self.detectron2) == "c4" and evaluated.results.get("engine") != "voc"

    @property
    def of_voc(self) -> bool:
        """Whether it was evaluated on VOC's test set."""
        evaluated = self.stages.get("eval")
        return evaluated is not None and evaluated.results.get("engine") == "voc"

    @property
    def iterations(self) -> int:
        """Iterations of the finetuning, converted to 16 images; 0 without one."""
        results = self.stages["finetune"].results if "finetune" in self.stages else {}
        return int(results.get("iterations", 0) * results.get("images_per_batch", 16) // 16)

    def value(self, task: str, metric: str) -> float | None:
        """Return the AP in percent of the task bbox or segm; None if it was not evaluated."""
        evaluated = self.stages.get("eval")
        return evaluated.results.get(task, {}).get(metric) if evaluated else None

    @property
    def seconds(self) -> float:
        """Seconds of all stages."""
        return sum(record.seconds for record in self.stages.values())


@dataclass(frozen=True)
class Score:
    """A metric over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None

    def text(self, form: str = ".1f") -> str:
        """Format as ``41.6 ± 0.1``."""
        spread = f" ± {self.deviation:.1f}" if self.deviation is not None else ""
        return f"{self.mean:{form}}{spread}"


def score(values: list[float | None]) -> Score | None:
    """Return the score of the values that are not None; None if there are none."""
    known = tuple(value for value in values if value is not None)
    return Score(known) if known else None


def collect(checkpoints: Path) -> list[Run]:
    """Return every run below the checkpoints with at least one finished stage, by name."""
    paths = [*checkpoints.rglob("record.json")]
    read = {path.parent.relative_to(checkpoints): records.read(path.parent) for path in paths}
    return assemble({folder: record for folder, record in read.items() if record})


@dataclass(frozen=True)
class Unfinished:
    """A stage that has begun but has no record."""

    run: str
    stage: str
    command: str
    """Command that goes on with it."""


def unfinished(checkpoints: Path) -> list[Unfinished]:
    """Return every stage below the checkpoints that is unfinished or running."""
    found = []
    for path in sorted(checkpoints.rglob("started.json")):
        folder = path.parent.relative_to(checkpoints)
        run, stage = folder.parent, folder.name
        if run.name in SEVERAL:
            run, stage = run.parent, run.name
        if stage in (*STAGES, *SEVERAL) and not path.with_name("record.json").exists():
            command = records.resuming(path.parent) or f"make {stage} RUN={run.as_posix()}"
            found.append(Unfinished(run.as_posix(), stage, command))
    return found


def assemble(known: Mapping[PurePath, Record]) -> list[Run]:
    """Return the runs of these records, by name.

    Args:
        known: records by the stage's folder below the checkpoints, ``<run>/<stage>`` or
            ``<run>/linear/<config>``.
    """
    found: dict[str, dict[str, Record]] = {}
    for folder, record in sorted(known.items()):
        run, stage = folder.parent, folder.name
        if run.name == record.stage and record.stage in SEVERAL:
            run, stage = run.parent, f"{record.stage}/{stage}"
        elif stage not in STAGES:
            continue
        found.setdefault(run.as_posix(), {})[stage] = record
    order = [*STAGES, *SEVERAL]

    def place(stage: tuple[str, Record]) -> tuple[int, str]:
        return order.index(stage[0].partition("/")[0]), stage[0]

    return [
        _consistent(name, dict(sorted(each.items(), key=place))) for name, each in sorted(found.items())
    ]


def _consistent(name: str, stages: dict[str, Record]) -> Run:
    """Return the run without stages whose input differs from the output of the stage before."""
    for stage, read, before, wrote in LINKS:
        given = before == "pretrain"  # convert --weights names a file of another path
        if _differs(stages, stage, read, before, wrote, given):
            return Run(
                name,
                {k: v for k, v in stages.items() if k not in STAGES[STAGES.index(stage) :]},
                f"its {stage} was made from another {before}; run it again with FORCE=1",
                _mend(name, stages[stage]),
            )
    old = [
        stage
        for stage in stages
        if "/" in stage and _differs(stages, stage, "weights", "pretrain", "checkpoint", True)
    ]
    if old:
        why = f"its {old[0].partition('/')[0]} was made from another pretrain; run it again with FORCE=1"
        return Run(
            name, {k: v for k, v in stages.items() if k not in old}, why, _mend(name, stages[old[0]])
        )
    return Run(name, stages)


def _mend(run: str, record: Record) -> str:
    """Return the command that makes a stage again."""
    found = again(record.command, force=True, gpus=record.world_size)
    return found or f"make {record.stage} RUN={run} FORCE=1"


def _differs(
    stages: dict[str, Record], stage: str, read: str, before: str, wrote: str, same_path: bool
) -> bool:
    """Return whether a stage read a file other than the present one; with ``same_path``, only if it had the
    same path."""
    if stage not in stages or before not in stages:
        return False
    used, there = stages[stage].inputs.get(read), stages[before].outputs.get(wrote)
    if not used or not there or (same_path and used.path != there.path):
        return False
    return used.sha256 != there.sha256


def groups(runs: list[Run]) -> Iterator[list[Run]]:
    """Group runs that differ only in the seed: one label, recipe, length and precision."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        precision = run.stages["finetune"].config.get("precision") if "finetune" in run.stages else None
        found.setdefault((run.label, recipe(run), run.iterations, precision), []).append(run)
    yield from found.values()


def recipe(run: Run) -> str:
    """Return ``authors`` (cosine) or ``moco`` (steps) at their learning rates, else ``own``; '' without a
    finetuning."""
    return recipe_of(run.detectron2)


def local_results(runs: Sequence[Run]) -> list[LocalResult]:
    """Return the runs that count as results: R50-C4 on all of COCO by their method's recipe, BN over 8
    images or more."""
    return [own for run in runs if (own := _own(run))]


def of_this_machine() -> list[LocalResult]:
    """Read the local results from the checkpoints; if a record is damaged, print a line and return none."""
    try:
        return local_results(collect(paths.root("checkpoints")))
    except KitError as error:
        say(f"own runs are left out: {error}")
        return []


def _own(run: Run) -> LocalResult | None:
    finetune, box, mask = run.stages.get("finetune"), run.value("bbox", "AP"), run.value("segm", "AP")
    if finetune is None or box is None or mask is None or not run.of_the_table:
        return None
    method = load_methods().get(run.method)
    if method is None or recipe(run) != method.recipe or finetune.config.get("bn_images", 0) < 8:
        return None
    if not on_all_images(run) or not full_ap(run.method, "c4"):
        return None
    return LocalResult(run.name, run.method, run.iterations, (box, mask))


def on_all_images(run: Run) -> bool:
    """Return whether a run was finetuned on all of train2017; older records do not say, and count as
    such."""
    return bool(run.stages["finetune"].results.get("images", IMAGES) == IMAGES)


def facts_of_run(run: Run) -> Facts:
    """Return the facts in the record of a finetuning. Its weights did load, else it would not have
    begun."""
    known = Facts(checked=True, converged=True)
    of_config(known, flat(run.detectron2))
    if known.classes not in (80, None):  # the user's own data; the config may still name COCO
        known.other = known.other or f"a detector of {known.classes} classes"
    finetune = run.stages["finetune"]
    known.iterations = finetune.results.get("iterations", known.planned)
    known.gpus, known.pool = finetune.world_size, finetune.config.get("bn_images")
    known.images = finetune.results.get("images")
    known.mixed = finetune.config.get("precision", "float32") in ("float16", "bfloat16")
    known.last_rate, known.precise_ran = 0.0, known.precise_bn  # the training is finished
    return known
