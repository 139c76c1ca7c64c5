"""The eval stage: COCO's or PASCAL VOC's numbers for a finetuned model."""

import contextlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.detection import data, inference, log_capture, model, own_data, visualize
from benchmarks.detection.loading import SafeMapper
from triplet import files, paths, records, scores
from triplet.analysis import ANALYSIS, Analysis, analyse
from triplet.annotations.voc import VocImage
from triplet.datasets.source import DataSource
from triplet.errors import KitError
from triplet.progress import Bar, is_local_main, say
from triplet.signals import Stop, graceful
from triplet.training.distributed import Processes, join, perform
from triplet.training.loading import load

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import PascalVOCDetectionEvaluator, pascal_voc_evaluation
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.utils import comm


def evaluate(
    run: str,
    dataset: DataSource | None = None,
    *,
    weights: Path | None = None,
    config: Path | None = None,
    engine: str,
    force: bool = False,
) -> None:
    """Evaluate a model on the data of its config's DATASETS.TEST (COCO's val2017 if it names none).

    Under torchrun every process takes a part of the images; the main process keeps the record. The numbers
    do not depend on the number of processes.

    Args:
        run: a run whose finetune stage is done; with ``weights``, any run for the result.
        dataset: data in COCO 2017's or VOC's layout, or the user's own; by default the finetuning's.
        weights: any model file of Detectron2's instead of the run's own.
        config: config of those weights; by default that of a finetuning whose record lies beside them.
        engine: one of ``scores.ENGINES``.
        force: whether to start over.

    Raises:
        KitError: nothing to evaluate, or a data set that does not fit.
        Interrupted: a signal stopped the evaluation; the next call starts again.
    """
    trained = inference.find_model(run, weights, config)
    finetuned = trained.record
    seen = records.identities({"config": trained.config})
    cfg = model.load_config(trained.config)
    if finetuned:
        # The config that the trainer writes names no test data.
        cfg.DATASETS.TEST = tuple(finetuned.config["detectron2"]["DATASETS"]["TEST"])
    dataset = _what_on(finetuned, dataset)
    settings = {"detectron2": model.plain(cfg)} if weights else {}
    known = trained.classes if len(trained.classes) == model.categories(cfg)[1] else []
    with join() as processes:
        processes.use_cores(cfg.DATALOADER.NUM_WORKERS)
        folder = own_data.place(run, dataset, processes, stage="eval-data", classes=known, force=force)
        perform(
            processes,
            "eval",
            paths.stage_folder(run, "eval"),
            work=lambda job: _evaluate(cfg, trained.weights, folder, known, engine, job, processes),
            config={
                "dataset": paths.portable(folder),
                **settings,
                **({"engine": engine} if engine != scores.FASTEST else {}),
            },
            inputs={
                "model": trained.weights,
                "config": trained.config,
                **data.inputs(cfg, folder, train=False),
            },
            seen=seen,
            force=force,
            seed=finetuned.seed if finetuned else None,
        )


def _what_on(finetuned: records.Record | None, named: DataSource | None) -> DataSource:
    """Return the data to evaluate on: those that the user names, else those of the finetuning.

    If the user names the folder that the finetuning's own data were made of, these are meant: the kit may
    have split them.
    """
    if finetuned is None:
        if named is None:
            raise KitError("--model needs --data, what to evaluate it on")
        return named
    before = paths.local(finetuned.config["dataset"])
    if named and not own_data.made_of(before, named):
        return named
    if named and is_local_main():
        say(f"eval: {named} is what it was finetuned on: evaluated on the val part of that time")
    return DataSource(before)


def _evaluate(
    cfg: CfgNode,
    weights: Path,
    dataset: Path,
    known: list[str],
    engine: str,
    job: records.Job,
    processes: Processes,
) -> None:
    log = job.folder / ("log.txt" if processes.is_main_process else f"log.{processes.rank}.txt")
    job.folder.mkdir(parents=True, exist_ok=True)  # another machine lacks the folder
    with graceful() as stop:
        name, categories = data.testing(cfg, dataset)
        if known and categories != known:
            raise KitError(
                f"{dataset} has other categories ({', '.join(categories[:3])}, ...) than the model was "
                f"finetuned on ({', '.join(known[:3])}, ...)"
            )
        data.check_images([name], processes)
        voc = VocEvaluator(name) if MetadataCatalog.get(name).get("year") else None
        with log_capture.log_to(log):
            network = inference.load_network(cfg, weights)
            cfg.DATASETS.TRAIN = (name,)  # the mapper always takes the keypoint names from TRAIN
            loader = build_detection_test_loader(cfg, name, mapper=SafeMapper(cfg, train=False))
        images = load(loader.dataset, loader.sampler, workers=cfg.DATALOADER.NUM_WORKERS, stop=stop)
        with (
            Bar("eval", len(loader), quiet=not processes.is_main_process) as bar,
            log_capture.log_to(log),
            contextlib.closing(images),
        ):
            found = _detect(network, images, voc, bar, stop)
        if any(processes.gather(bool(stop))):
            raise stop.interrupted(f"{bar.done} of {bar.total} images evaluated")
        with log_capture.log_to(log):
            parts = comm.gather(found)
            summary = voc.evaluate() if voc else None  # gathers from all processes
        comm._get_global_gloo_group.cache_clear()  # otherwise its thread would live on until the exit
    if not processes.is_main_process:
        return
    detections = list(itertools.chain.from_iterable(parts))
    if not detections:
        raise KitError(f"{weights} found nothing in {dataset}: it was not trained")
    job.results["images"] = len(loader.dataset)
    job.results["engine"] = "voc" if voc else engine
    with log_capture.log_to(log):
        _draw(name, detections, MetadataCatalog.get(name).thing_classes, job)  # in order of category id
        results = _voc(summary) if summary else _coco(cfg, name, detections, engine, job)
    if results["bbox"]["AP"] is None:
        raise KitError(f"{dataset}: nothing is annotated that counts")
    job.results.update(results)
    say(
        "eval: "
        + ", ".join(
            f"{label} AP {results[task]['AP']:.1f} (AP50 {results[task]['AP50']:.1f})"
            for task, label in scores.LABELS.items()
            if task in results
        )
    )


class VocEvaluator(PascalVOCDetectionEvaluator):
    """Detectron2's evaluator with annotations read as VOC's toolkit reads them; Detectron2's own reader
    accepts integers only."""

    def evaluate(self) -> Any:
        """Evaluate as the base class does, on the annotations that the kit has read."""
        annotated: dict[str, VocImage] = MetadataCatalog.get(self._dataset_name).annotated
        objects = {
            number: [
                {"name": each.name, "difficult": int(each.difficult), "bbox": [*each.box]}
                for each in image.objects
            ]
            for number, image in annotated.items()
        }
        pascal_voc_evaluation.parse_rec = lambda file: objects.get(Path(file).stem, [])
        return super().evaluate()


def _detect(
    network: nn.Module,
    images: Iterable[dict[str, Any] | KitError],
    voc: PascalVOCDetectionEvaluator | None,
    bar: Bar,
    stop: Stop,
) -> list[dict[str, Any]]:
    """Return this process's detections in COCO's result format, with categories counted from 0."""
    if voc:
        voc.reset()
    found: list[dict[str, Any]] = []
    for image, parts in inference.detect(network, images, stop):
        if isinstance(image, KitError):
            raise image
        for instances in parts:
            if voc:
                voc.process([image], [{"instances": instances}])
            found += instances_to_coco_json(instances, image["image_id"])
        bar.step()
    return found


def _draw(
    name: str, detections: Sequence[dict[str, Any]], categories: Sequence[str], job: records.Job
) -> None:
    folder = job.folder / "pictures"
    chosen = visualize.choose(DatasetCatalog.get(name))
    job.results["pictures"] = visualize.draw(chosen, detections, categories, folder)
    job.outputs["pictures"] = folder


def _coco(
    cfg: CfgNode, name: str, detections: list[dict[str, Any]], engine: str, job: records.Job
) -> dict[str, Any]:
    """Return all of COCO's metrics by task and name, and every category's AP."""
    metadata = MetadataCatalog.get(name)
    ids = {ours: theirs for theirs, ours in metadata.thing_dataset_id_to_contiguous_id.items()}
    detections = [{**each, "category_id": ids[each["category_id"]]} for each in detections]
    path = job.folder / "coco_instances_results.json"
    files.write_text(path, json.dumps(_own_ids(detections, metadata.image_ids, metadata.category_ids)))
    job.outputs["predictions"] = path
    tasks = ["bbox", *["segm"] * cfg.MODEL.MASK_ON, *["keypoints"] * cfg.MODEL.KEYPOINT_ON]
    truth = scores.CocoGroundTruth(Path(metadata.json_file), engine, checked=True)
    evaluated = {task: truth.evaluate(detections, task) for task in tasks}
    found = {task: truth.numbers(each) for task, each in evaluated.items()}
    analyses = {task: analyse(each, truth.names(each)) for task, each in evaluated.items()}
    files.write_text(job.folder / "analysis.json", Analysis(analyses).model_dump_json())
    job.outputs[ANALYSIS] = job.folder / "analysis.json"
    return {
        **{task: each.numbers for task, each in found.items()},
        "categories": {task: each.categories for task, each in found.items()},
    }


def _own_ids(
    detections: list[dict[str, Any]], images: Mapping[int, Any], categories: Mapping[int, Any]
) -> list[dict[str, Any]]:
    """Return the detections with the ids of the user's own file, if those were changed for Detectron2."""
    if not images and not categories:
        return detections
    return [
        {
            **each,
            "image_id": images.get(each["image_id"], each["image_id"]),
            "category_id": categories.get(each["category_id"], each["category_id"]),
        }
        for each in detections
    ]


def _voc(summary: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Return VOC's metrics as plain numbers; NaN becomes None."""
    return {
        "bbox": {key: None if math.isnan(value) else float(value) for key, value in summary["bbox"].items()}
    }
