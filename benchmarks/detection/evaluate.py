"""The eval stage: COCO's numbers for a finetuned model."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import data, model, quiet
from triplet import coco, records
from triplet.errors import KitError
from triplet.progress import Bar, say

from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset


def evaluate(run: str, dataset: Path | None = None, *, force: bool = False) -> None:
    """Evaluate the run's finetuned model on a data set's val2017.

    Args:
        run: whose finetune stage is done.
        dataset: folder in COCO 2017's layout; the one that it was finetuned on unless given.
        force: start over.

    Raises:
        KitError: nothing to evaluate, or a data set that does not fit.
    """
    finetuned = records.require(run, "finetune")
    dataset = dataset or records.local(finetuned.config["dataset"])
    truth = coco.annotations(dataset, "val2017")
    weights = records.output(finetuned, "model")
    config = records.output(finetuned, "config")

    def work(job: records.Job) -> None:
        name, categories = data.register(dataset, "val2017")
        if categories != finetuned.results["categories"]:
            raise KitError(
                f"{truth} has other categories ({', '.join(categories[:3])}, ...) than the model was "
                f"finetuned on ({', '.join(finetuned.results['categories'][:3])}, ...)"
            )
        cfg = model.load_config(config, [f"MODEL.WEIGHTS={weights}", f"OUTPUT_DIR={job.folder}"])
        with quiet.log_to(job.folder / "log.txt"):
            network = model.build(cfg)
            content = torch.load(weights, map_location="cpu", weights_only=True)
            network.load_state_dict(content["model"])
            loader = build_detection_test_loader(cfg, name)
            evaluator = COCOEvaluator(name, ("bbox", "segm"), False, str(job.folder), use_fast_impl=False)
        with Bar("eval", len(loader)) as bar:
            watched = _Watched(loader, bar)
            with quiet.log_to(job.folder / "log.txt"):
                results = inference_on_dataset(network, watched, evaluator)
        if not results or math.isnan(results["bbox"]["AP"]):
            raise KitError(f"{weights} found nothing in {dataset}/val2017: it was not trained")
        job.outputs["predictions"] = job.folder / "coco_instances_results.json"
        job.results.update({task: _finite(values) for task, values in results.items()})
        job.results["images"] = len(loader)
        say(
            "eval: "
            + ", ".join(
                f"{label} AP {results[task]['AP']:.1f} (AP50 {results[task]['AP50']:.1f})"
                for task, label in (("bbox", "box"), ("segm", "mask"))
            )
        )

    records.perform(
        "eval",
        records.stage_folder(run, "eval"),
        config={"dataset": records.portable(dataset)},
        inputs={
            "model": weights,
            "config": config,
            "annotations": truth,
            "images": dataset / "val2017",
        },
        work=work,
        force=force,
        seed=finetuned.seed,
    )


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    """COCO's -1 and NaN (no ground truth of that kind) as None."""
    return {key: None if math.isnan(value) else float(value) for key, value in values.items()}


class _Watched:
    """A data loader that moves a bar."""

    def __init__(self, loader: Any, bar: Bar) -> None:
        self.loader, self.bar = loader, bar

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch
            self.bar.step()
