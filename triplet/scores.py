"""COCO's metrics of detections, from one of three engines that give equal numbers."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triplet.annotations import coco
from triplet.annotations.detections import check
from triplet.coco_engines import ENGINES as ENGINES
from triplet.coco_engines import FASTEST as FASTEST

TASKS = {"bbox": "box", "segm": "mask"}
"""COCO's name of each of the table's tasks -> the kit's word for it."""
READ = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
"""Field of a detection that an engine gets for a task, besides ids and score, and besides the box of a
detection with keypoints. With a box, COCO takes the area from the box; that of a mask is its own."""
LABELS = TASKS | {"keypoints": "keypoint"}
_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NUMBERS = {
    "bbox": _BOXES,
    "segm": _BOXES,
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}
"""Names of the metrics of each task in the order of COCOeval's ``stats`` (cocodataset.org/#detection-eval,
#keypoints-eval)."""


@dataclass(frozen=True)
class Scores:
    """Metrics of one task in percent; None if nothing of that kind is annotated."""

    numbers: dict[str, float | None]
    """Metrics by the names in NUMBERS."""
    categories: dict[str, float | None]
    """AP by name of category."""


class CocoGroundTruth:
    """A COCO annotation file, read once, to score the detections of all tasks.

    The engines are written in C and Rust, and crash or hang on input in an unexpected form. So all input is
    checked before, unless the kit has made it itself.

    Args:
        annotations: the annotation file.
        engine: one of ENGINES.
        checked: whether ``annotations.coco.check`` has checked the file, and the detections come straight
            from a model.

    Raises:
        KitError: an annotation cannot be used.
    """

    def __init__(self, annotations: Path, engine: str = FASTEST, *, checked: bool = False) -> None:
        truth, evaluation = map(importlib.import_module, ENGINES[engine])
        self._checked = checked
        if not checked:
            coco.check(annotations)
        self._make = evaluation.COCOeval
        try:
            self.coco = truth.COCO(str(annotations))
        except ValueError:  # Rust knows no half characters; texts that nothing reads may hold some
            text = json.dumps(json.loads(annotations.read_bytes()), ensure_ascii=False)
            self.coco = truth.COCO(json.loads(text.encode("utf-8", "replace")))

    def score(self, detections: Sequence[dict[str, Any]], task: str) -> Scores:
        """Evaluate detections and return the metrics; see ``evaluate``."""
        return self.numbers(self.evaluate(detections, task))

    def evaluate(self, detections: Sequence[dict[str, Any]], task: str) -> Any:
        """Evaluate as ``detectron2.evaluation.COCOEvaluator`` does.

        This prints COCO's table.

        Args:
            detections: at least one, in COCO's result format, with the file's category ids; not modified.
            task: bbox, segm or keypoints.

        Returns:
            The engine's ``COCOeval`` after all its steps.

        Raises:
            KitError: a detection is not in COCO's format, or its image is not annotated.
        """
        if not self._checked:
            images = self.coco.loadImgs(self.coco.getImgIds())
            sizes = {each["id"]: (each["width"], each["height"]) for each in images}
            check(detections, sizes, {*self.coco.getCatIds()}, task)
        evaluation = self._make(self.coco, self.coco.loadRes(_copy(detections, task)), task)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation

    def names(self, evaluation: Any) -> list[str]:
        """Return the names of an evaluation's categories, in the order of their ids."""
        return [each["name"] for each in self.coco.loadCats(evaluation.params.catIds)]

    def numbers(self, evaluation: Any) -> Scores:
        """Return the metrics of an evaluation in percent."""
        # thresholds x recalls x categories x areas x detections per image
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        by_category = {}
        for k, name in enumerate(self.names(evaluation)):
            known = precision[:, :, k][precision[:, :, k] > -1]
            by_category[name] = _percent(known.mean() if known.size else -1)
        numbers = zip(NUMBERS[evaluation.params.iouType], evaluation.stats, strict=True)
        return Scores({name: _percent(value) for name, value in numbers}, by_category)


def _copy(detections: Sequence[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Copy the fields that a task reads, as the engines write into their input and read all its fields.

    The fields are spelt out because this takes a third of the time of a comprehension over them.
    """
    field = READ[task]
    own = [
        {
            "image_id": each["image_id"],
            "category_id": each["category_id"],
            "score": each["score"],
            field: each[field],
        }
        for each in detections
    ]
    if task == "keypoints":
        for copy, each in zip(own, detections, strict=True):
            copy |= {"bbox": each["bbox"]} if "bbox" in each else {}
    return own


def _percent(value: float) -> float | None:
    return None if value < 0 else 100 * float(value)
