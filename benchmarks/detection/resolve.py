"""Resolve options, config, GPUs, the begun run and the calibration into a FinetunePlan."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from benchmarks.detection import budget, calibration, data, loading, model, proof, trainer
from benchmarks.detection.calibration import Calibration
from benchmarks.detection.plan import FinetuneOptions, FinetunePlan, record_config
from triplet import paths, records
from triplet.commands import typed
from triplet.defaults import detection_config
from triplet.errors import KitError
from triplet.progress import say
from triplet.published import curves
from triplet.training import checkpoint
from triplet.training.distributed import Processes, perform

from detectron2.config import CfgNode

VOC_IMAGES = 5_011 + 11_540
"""Number of images in VOC 2007's and 2012's trainval."""


@dataclass(frozen=True)
class ResolvedOptions:
    """The user's options with all decisions that need no measurement."""

    cfg: CfgNode
    """The config with the schedule to train, before it is compressed to the user's hours, if given."""
    precision: str
    """One of ``trainer.PRECISIONS``."""
    images: int | None
    """Images of one process in one forward pass; None for the most that fit the GPU."""
    inherited: bool = False
    """Whether this number comes from the run being resumed, which BN must keep."""


@dataclass(frozen=True)
class RunSources:
    """Config, weights and data of a finetuning; a preview has the config alone."""

    config: CfgNode
    """The user's config: file and overrides."""
    placed: CfgNode
    """The config with the run's data, weights, folder and seed."""
    dataset: str = ""
    """Folder of the data as in the record."""
    classes: Sequence[str] = ()
    """Names of the data's classes, in the order of the model's indices."""
    category_ids: Sequence[Any] = ()
    """Ids of the classes in the data, in the same order."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Files and folders that the record hashes, by name; ``weights`` are the converted ones."""
    seen: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """``records.identities`` of the inputs before any of them was read."""
    written_for: int | None = None
    """See ``require_length``."""

    def settings(self, solver: CfgNode) -> dict[str, Any]:
        """Return the user's config with the given schedule, as plain values for a record."""
        return model.plain(budget.with_schedule(self.config, solver))


@dataclass(frozen=True)
class Begun:
    """A finetuning that was interrupted or is done."""

    record: Mapping[str, Any]
    """The config in its record."""
    iterations: int
    """Number of iterations of its newest checkpoint."""


def resolve(
    run: str, config: Path | None, dataset: Path, options: FinetuneOptions, processes: Processes
) -> FinetunePlan:
    """Decide how to finetune a run; measure first if there is a GPU, or a limit in hours.

    Once a finetuning has begun, its schedule, its precision and the number of images that BN sees are kept,
    regardless of new measurements.

    Args:
        run: a run whose convert stage is done.
        config: Detectron2's YAML; by default that of the run's method.
        dataset: folder in the layout that the config's DATASETS.TRAIN names, COCO 2017's or PASCAL VOC's,
            or of the user's own data in the normal form.
        options: the user's options.
        processes: all processes; each must call this.

    Raises:
        KitError: weights, data, GPUs or options do not fit, or a different finetuning has begun.
        Interrupted: a signal stopped the measurement.
    """
    sources = _sources(run, config, dataset, options, processes)
    cfg = sources.placed
    begun = None if options.force else _begun(run, processes)
    resolved = resolve_options(
        cfg, processes.size, options, processes.broadcast_object(trainer.best_precision()), begun
    )
    if begun:  # refuse changes before measuring
        _refuse_changes(run, sources, options, resolved, begun, processes)
    else:
        require_length(cfg, options, loading.data_size(cfg), sources.written_for)
    found = calibrate(run, sources, options, resolved, processes, resumed=bool(begun))
    images = loading.data_size(resolved.cfg)
    return make_plan(Path(run).name, sources, options, resolved, found, images=images, begun=begun)


def make_plan(
    method: str,
    sources: RunSources,
    options: FinetuneOptions,
    resolved: ResolvedOptions,
    found: Calibration,
    *,
    images: int | None,
    begun: Begun | None = None,
) -> FinetunePlan:
    """Put all decisions together, and compress a new run's schedule to the user's hours.

    Args:
        method: method of the table.
        sources: config and data.
        options: the user's options.
        resolved: the decisions that need no measurement.
        found: time and memory on the GPUs of the plan.
        images: number of training images; None if unknown.
        begun: the finetuning to resume, if any.

    Raises:
        KitError: the time of an iteration is unknown, or the hours are too few.
    """
    cfg = resolved.cfg
    if options.hours and not begun:
        cfg = fit_hours(cfg, options.hours, found.seconds)
    return FinetunePlan(
        method=method,
        cfg=cfg,
        settings=sources.settings(cfg.SOLVER),
        uncompressed=sources.placed,
        processes=found.processes,
        images=found.images,
        precision=found.precision,
        hours=options.hours,
        seconds=found.seconds,
        peak=found.peak,
        dataset_images=images,
        iterations_done=begun.iterations if begun else 0,
        dataset=sources.dataset,
        classes=sources.classes,
        category_ids=sources.category_ids,
        inputs=sources.inputs,
        seen=sources.seen,
        seed=options.seed,
    )


def resolve_options(
    cfg: CfgNode,
    processes: int,
    options: FinetuneOptions,
    best_precision: str,
    begun: Begun | None = None,
) -> ResolvedOptions:
    """Make the decisions that need no measurement.

    Args:
        cfg: config with its own schedule.
        processes: number of processes.
        options: the user's options.
        best_precision: the precision, unless the user or the begun finetuning has another one.
        begun: the finetuning to resume, if any.

    Raises:
        KitError: schedule, processes or images do not fit the config.
    """
    if options.schedule and options.hours:
        raise KitError("--hours and --schedule both say how long to train: give one of them")
    share = budget.per_process(cfg, processes)
    budget.bn_images(cfg, 1, 1)  # refuses an unknown norm
    before = begun.record if begun else {}
    kept = None
    if begun and options.images_per_gpu is None and _same_batch_and_norm(cfg, before["detectron2"]):
        kept = budget.images_of_pool(cfg, processes, before.get("bn_images", 0))
    images = options.images_per_gpu or kept
    budget.check_passes(share, images or share)
    precision = options.precision or before.get("precision") or best_precision
    if options.schedule:
        cfg = budget.compress(cfg, budget.part(options.schedule, cfg))
    elif begun and options.hours:
        cfg = budget.with_schedule(cfg, before["detectron2"]["SOLVER"])
    return ResolvedOptions(cfg, precision, images, inherited=kept is not None)


def require_length(cfg: CfgNode, options: FinetuneOptions, images: int, written_for: int | None) -> None:
    """Refuse other data than the config's schedule is written for, unless the user says how long to train.

    Args:
        cfg: config with its own schedule.
        options: the user's options.
        images: number of training images.
        written_for: number of training images for which the config has its schedule; None if unknown.

    Raises:
        KitError: the user gives no length, and the data are others.
    """
    named = any(override.startswith("SOLVER.MAX_ITER=") for override in options.overrides)
    # COCO has 0.9% more images with those that show no object, which a config may keep.
    alike = written_for is None or abs(images - written_for) < 0.01 * written_for
    if options.hours or options.schedule or named or alike:
        return
    passes = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / images
    raise KitError(
        f"the config's {cfg.SOLVER.MAX_ITER} iterations are meant for {written_for} images and would be "
        f"{passes:.0f} passes over these {images}: add --schedule 1/8x, or --hours H; to see first what it "
        f"takes: {typed('plan', '--data', 'FOLDER', '--schedule', '1/8x')}"
    )


def calibrate(
    run: str,
    sources: RunSources,
    options: FinetuneOptions,
    resolved: ResolvedOptions,
    processes: Processes,
    *,
    resumed: bool,
) -> Calibration:
    """Measure the run if there is a GPU, or a limit in hours; otherwise take each share in one pass.

    The run's ``plan`` record keeps the measurement; a resumed finetuning uses it again.

    Raises:
        KitError: the images do not fit the GPU.
        Interrupted: a signal stopped the measurement.
    """
    share = budget.per_process(resolved.cfg, processes.size)
    if not options.hours and processes.device.type != "cuda":
        return Calibration(processes.size, resolved.images or share, resolved.precision)
    folder = paths.stage_folder(run, "plan")

    def work(job: records.Job) -> None:
        log = job.folder / "log.txt" if processes.is_main_process else Path(os.devnull)
        found = calibration.measure(
            resolved.cfg,
            processes,
            resolved.precision,
            resolved.images,
            log=log,
            inherited=resolved.inherited,
        )
        job.results.update(asdict(found))

    config = {
        "detectron2": model.plain(sources.config),
        "images": options.images_per_gpu,
        "precision": resolved.precision,
        "schedule": options.schedule,
        "processes": processes.size,
        "gpu": calibration.gpu_name(),
    }
    perform(processes, "plan", folder, work=work, config=config, inputs={}, derived=True, force=not resumed)
    record = records.read(folder) if processes.is_main_process else None
    results = processes.broadcast_object(record.results if record else None)
    calibration.free_memory(processes)
    known = {each.name: results[each.name] for each in fields(Calibration)}
    return Calibration(**{**known, "images": resolved.images or known["images"]})


def known_size(cfg: CfgNode) -> int | None:
    """Return the number of images of a config's data if it is known without the data; else None."""
    names = [name.rpartition("/")[2] for name in cfg.DATASETS.TRAIN or ["coco_2017_train"]]
    if model.categories(cfg)[1] == 80 and names == ["coco_2017_train"]:
        return curves.IMAGES
    return VOC_IMAGES if names == ["voc_2007_trainval", "voc_2012_trainval"] else None


def _sources(
    run: str, config: Path | None, dataset: Path, options: FinetuneOptions, processes: Processes
) -> RunSources:
    """Load config and data, and check that every process has the same ones."""
    converted = records.require(run, "convert")  # has the colour order of the weights
    weights = records.output(converted, "weights")
    chosen = detection_config(run, config)
    if config is None and processes.is_main_process:
        say(f"finetune: {run} under {chosen}")
    cfg = model.load_config(chosen, options.overrides)
    proof.check_pixel_path(cfg, converted)
    processes.use_cores(loading.loaders(cfg, processes))
    asked = (options.hours, options.schedule, options.images_per_gpu, options.precision, options.seed)
    processes.assert_same("converted weights", records.Artifact.of(weights).sha256)
    processes.assert_same("settings", [model.plain(cfg), *asked])
    written_for = known_size(model.load_config(chosen))
    inputs = {"weights": weights, **data.inputs(cfg, dataset, train=True)}
    seen = records.identities(inputs)
    cfg = data.fit_masks(cfg, dataset)
    names, classes = data.training(cfg, dataset)
    cfg = data.fit_classes(cfg, dataset, classes, options.overrides)
    data.check_images((*names, *data.validation(cfg, dataset, classes)), processes)
    placed = cfg.clone()
    placed.DATASETS.TRAIN, placed.DATASETS.TEST = names, ()
    placed.OUTPUT_DIR = str(paths.stage_folder(run, "finetune"))
    placed.MODEL.WEIGHTS, placed.SEED = str(weights), options.seed
    name, category_ids = paths.portable(dataset), data.category_ids(names[0])
    return RunSources(cfg, placed, name, classes, category_ids, inputs, seen, written_for)


def _begun(run: str, processes: Processes) -> Begun | None:
    """Return the finetuning that the main process finds in the run's folder, on every process; None if
    there is none."""
    found = None
    if processes.is_main_process:
        folder = paths.stage_folder(run, "finetune")
        if plan := records.begun(folder, checkpoint.UPKEEP):
            found = Begun(plan.config, checkpoint.reached(folder))
    result: Begun | None = processes.broadcast_object(found)
    return result


def _refuse_changes(
    run: str,
    sources: RunSources,
    options: FinetuneOptions,
    resolved: ResolvedOptions,
    begun: Begun,
    processes: Processes,
) -> None:
    """Raise KitError with the differences if a different finetuning has begun."""
    config = record_config(
        sources.dataset,
        sources.settings(resolved.cfg.SOLVER),
        options.seed,
        resolved.precision,
        budget.bn_images(resolved.cfg, processes.size, resolved.images or 1),
        options.hours,
    )
    before = records.Plan(stage="finetune", config=dict(begun.record), inputs={})
    now = records.Plan(stage="finetune", config=config, inputs={})
    # The main process decides, as for the record: on other nodes the data may lie elsewhere.
    if changes := processes.broadcast_object(before.changes(now)):
        trained = f"with {begun.iterations} iterations trained" if begun.iterations else ""
        raise records.other(paths.stage_folder(run, "finetune"), "finetune", changes, trained)


def _same_batch_and_norm(cfg: CfgNode, begun: Mapping[str, Any]) -> bool:
    """Return whether batch and norm are those of the begun finetuning; ``_refuse_changes`` refuses others
    later."""
    theirs = begun["SOLVER"]["IMS_PER_BATCH"], begun["MODEL"]["RESNETS"]["NORM"]
    return theirs == (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.RESNETS.NORM)


def fit_hours(cfg: CfgNode, hours: float, seconds: float | None) -> CfgNode:
    """Return the config with its schedule compressed to fit the hours."""
    if not seconds:
        raise KitError("--hours needs the seconds of an iteration on your GPUs: give --seconds")
    return budget.compress(cfg, budget.part_in(hours, seconds, cfg))
