"""Analyses of an evaluation: categories, sizes, precision over recall, resampled images.

All analyses use the evaluator's own matches. AP over resampled images is the bootstrap of Efron and
Tibshirani (An Introduction to the Bootstrap, 1993, chapter 6): images are drawn with replacement, each with
everything in it, so that an image drawn twice counts twice. The draws depend only on the number of images,
so two runs evaluated on the same images have the same draws, and the differences of their resampled APs are
those of a paired comparison.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, Field, RootModel, model_validator

RESAMPLES = 1000
CHUNK = 125
"""Number of resamples computed at a time: val2017's 100 000 detections of persons then take 100 MB."""
AREAS = ("all", "small", "medium", "large")
"""COCO's size classes of objects, the first for all objects; keypoints have no small ones."""
LOADED = 10_000
"""Number of detections to take from hotcoco at a time, each a dictionary with its mask."""
CURVES = (0.5, 0.75)
"""IoU thresholds at which precision over recall is kept."""
ANALYSIS = "analysis"
"""Name of the eval stage's output with the analysis."""
Percent = Annotated[float, Field(ge=0, le=100)]


class TaskAnalysis(BaseModel):
    """Analysis of one task; every AP and precision in percent, None where nothing is annotated."""

    images: int
    draws: str
    """Hash of the resampled images; two runs with the same hash can be compared."""
    categories: list[str]
    by_size: dict[str, list[Percent | None]]
    """Label of an area (``all``, ``small``, ...) -> AP by category."""
    precision: dict[str, Annotated[list[Percent], Field(min_length=101, max_length=101)]]
    """IoU -> precision at the recalls 0, 0.01, ... 1, averaged over categories."""
    resampled: Annotated[list[Percent], Field(max_length=RESAMPLES)]
    """AP over each draw of images."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse values that ``analyse`` never returns: other areas, IoU or numbers of categories."""
        areas = [*self.by_size]
        if areas != [each for each in AREAS if each in areas or each == AREAS[0]]:
            raise ValueError(f"its areas are {areas}, expected some of {', '.join(AREAS)}")
        if [*self.precision] != [f"{iou:g}" for iou in CURVES]:
            raise ValueError(f"its precision is at IoU {[*self.precision]}, expected {CURVES}")
        if {len(each) for each in self.by_size.values()} != {len(self.categories)}:
            raise ValueError("it does not have an AP of each category for each area")
        return self


class Analysis(RootModel[dict[str, TaskAnalysis]]):
    """Analyses by task."""


@dataclass(frozen=True)
class Matches:
    """One category's detections as the evaluator matched them, by descending score.

    Equal scores are ordered as in ``COCOeval.accumulate``: by image, then in the given order.
    """

    image: np.ndarray
    """(d,) int: number of the image."""
    found: np.ndarray
    """(t, d) bool: matched to an object that counts, by IoU threshold."""
    ignored: np.ndarray
    """(t, d) bool: neither right nor wrong."""
    objects: np.ndarray
    """(images,) int: number of objects that count."""


def analyse(evaluation: Any, names: list[str], resamples: int = RESAMPLES) -> TaskAnalysis:
    """Analyse a ``COCOeval`` of any engine after all three of its steps.

    Args:
        evaluation: see ``CocoGroundTruth.evaluate``.
        names: names of its categories, in the order of ``params.catIds``.
        resamples: number of draws of images.
    """
    params, precision = evaluation.params, evaluation.eval["precision"][..., -1]
    drawn = draws(len(params.imgIds), resamples)
    curves = {}
    for iou in CURVES:
        at = precision[int(np.argmin(np.abs(np.subtract(params.iouThrs, iou)))), :, :, 0]
        known = at[:, (at > -1).all(0)]
        curves[f"{iou:g}"] = _percents(known.mean(1) if known.size else np.zeros(len(at)))
    by_size = {
        label: [_mean(precision[:, :, k, a]) for k in range(len(names))]
        for a, label in enumerate(params.areaRngLbl)
    }
    return TaskAnalysis(
        images=len(params.imgIds),
        draws=hashlib.sha256(drawn.tobytes()).hexdigest()[:16],
        categories=names,
        by_size=by_size,
        precision=curves,
        resampled=_percents(resampled_ap(list(matches(evaluation)), drawn, params.recThrs)),
    )


def draws(images: int, count: int = RESAMPLES) -> np.ndarray:
    """Return (images, count) uint16, how often each image is in each draw."""
    rng = np.random.default_rng(2021)
    drawn = rng.integers(0, images, (count, images))
    return np.stack([np.bincount(each, minlength=images) for each in drawn], 1).astype(np.uint16)


def resampled_ap(categories: list[Matches], drawn: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Compute COCO's AP, from 0 to 1, for each draw, weighting each image by how often it was drawn.

    Args:
        categories: the matches of each category.
        drawn: (images, n) weights; all ones give the AP of the evaluation itself.
        recalls: ``params.recThrs``.

    Returns:
        (n,) float64. As in COCO, a category without objects in a draw does not count there; 0 if no
        category counts.
    """
    parts = [drawn[:, first : first + CHUNK] for first in range(0, drawn.shape[1], CHUNK)]
    return np.concatenate([_ap(categories, part, recalls) for part in parts])


def _ap(categories: list[Matches], weights: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    total, counted = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for each in categories:
        objects = each.objects @ weights.astype(np.float64)
        there = objects > 0
        if not there.any():
            continue
        own = weights[each.image].astype(np.float32)  # (d, n)
        seen = np.cumsum(own, 0)
        sums = [
            _precision_sum(found, ignored, own, seen, np.maximum(objects, 1), recalls)
            for found, ignored in zip(each.found, each.ignored, strict=True)
        ]
        total += np.where(there, np.mean(sums, 0) / len(recalls), 0)
        counted += there
    return total / np.maximum(counted, 1)


def _precision_sum(
    found: np.ndarray,
    ignored: np.ndarray,
    own: np.ndarray,
    seen: np.ndarray,
    objects: np.ndarray,
    recalls: np.ndarray,
) -> np.ndarray:
    """Return (n,) the interpolated precision at one IoU, summed over the recalls.

    Precision is needed only at right detections, as it only falls between them.
    """
    at = np.flatnonzero(found & ~ignored)
    if not at.size:
        return np.zeros(own.shape[1])
    right = np.cumsum(own[at], 0, dtype=np.float64)
    counted = seen[at].astype(np.float64)
    if ignored.any():
        left_out = np.concatenate([np.zeros((1, own.shape[1])), np.cumsum(own[ignored], 0)])
        counted -= left_out[np.cumsum(ignored)[at]]
    precision = right / (counted + np.spacing(1))
    best = np.maximum.accumulate(precision[::-1], 0)[::-1]
    reached = np.searchsorted(recalls, right / objects, side="right")  # recalls up to here
    total: np.ndarray = np.sum(best * np.diff(reached, axis=0, prepend=0), 0)
    return total


def matches(evaluation: Any) -> Iterator[Matches]:
    """Yield the matches behind AP over all sizes, category by category."""
    if hasattr(evaluation, "per_instance"):
        yield from _of_columns(evaluation)
    elif hasattr(type(evaluation), "eval_imgs"):
        yield from _of_pairs(evaluation)
    else:
        yield from _of_images(evaluation)


def _of_pairs(evaluation: Any) -> Iterator[Matches]:
    """Yield matches of hotcoco, which makes pycocotools' dictionaries on demand.

    Half a million dictionaries take minutes and gigabytes. So only those of the images in which a category
    is annotated are requested: its detections in other images match nothing.
    """
    params = evaluation.params
    image, category, scores, outside = _detections(evaluation)
    found = np.zeros((len(params.iouThrs), len(scores)), bool)
    ignored = np.tile(outside, (len(found), 1))
    number = {image_id: i for i, image_id in enumerate(params.imgIds)}
    for each in params.catIds:
        count = np.zeros(len(number), int)
        for one in _pairs(evaluation, each):
            at = np.array(one["dtIds"], int) - 1
            found[:, at] = np.array(one["dtMatches"]) > 0
            if 0 in one["gtIds"]:  # an id of 0 also means no match
                found[:, at] |= [np.isin(one["dtIds"], each_iou) for each_iou in one["gtMatches"]]
            ignored[:, at] = np.array(one["dtIgnore"])
            count[number[one["image_id"]]] = one["gtIgnore"].count(False)
        mine = np.flatnonzero(category == each)
        mine = mine[np.lexsort((-scores[mine], image[mine]))]
        rank = np.arange(len(mine)) - np.searchsorted(image[mine], image[mine])
        mine = mine[rank < params.maxDets[-1]]
        mine = mine[np.argsort(-scores[mine], kind="stable")]
        yield Matches(image[mine], found[:, mine], ignored[:, mine], count)


def _detections(evaluation: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return four (d,) arrays in hotcoco's order of detections: number of the image, category, score, and
    whether the area lies outside all sizes."""
    results, (low, high) = evaluation.cocoDt, evaluation.params.areaRng[0]
    ids = sorted(results.getAnnIds())
    read = [
        (each["image_id"], each["category_id"], each["score"], not low <= each["area"] <= high)
        for first in range(0, len(ids), LOADED)
        for each in results.loadAnns(ids[first : first + LOADED])
    ]
    image, category, scores, outside = map(np.array, zip(*read, strict=True))
    return np.searchsorted(evaluation.params.imgIds, image), category, scores, outside


def _pairs(evaluation: Any, category: int) -> list[dict[str, Any]]:
    """Return hotcoco's dictionaries for a category and the images in which it is annotated."""
    params = evaluation.params
    images = sorted(evaluation.cocoGt.getImgIds(catIds=[category]))
    if not images:
        return []
    part = type(evaluation)(evaluation.cocoGt, evaluation.cocoDt, params.iouType)
    part.params.imgIds, part.params.catIds = images, [category]
    part.params.areaRng, part.params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
    part.params.maxDets = params.maxDets[-1:]
    part.evaluate()
    found: list[dict[str, Any]] = part.evalImgs
    return found


def _of_columns(evaluation: Any) -> Iterator[Matches]:
    """Yield matches of ultrafast-pycocotools, which returns a column per field for one IoU at a time."""
    params = evaluation.params
    each = [evaluation.per_instance(iou_thr=iou) for iou in params.iouThrs]
    detections, objects = each[0]
    found = np.stack([columns["gt_id"] >= 0 for columns, _ in each])
    ignored = np.stack([columns["ignore"] for columns, _ in each]).astype(bool)
    ids = np.asarray(params.imgIds)
    image = np.searchsorted(ids, detections["image_id"])
    owner = np.searchsorted(ids, objects["image_id"])
    for category in params.catIds:
        mine = np.flatnonzero(detections["category_id"] == category)
        mine = mine[np.argsort(image[mine], kind="stable")]
        mine = mine[np.argsort(-detections["score"][mine], kind="stable")]
        real = (objects["category_id"] == category) & ~objects["ignore"].astype(bool)
        count = np.bincount(owner[real], minlength=len(ids))
        yield Matches(image[mine], found[:, mine], ignored[:, mine], count)


def _of_images(evaluation: Any) -> Iterator[Matches]:
    """Yield matches of pycocotools, which keeps a dictionary for each category, area and image."""
    params = evaluation.params
    images, most = len(params.imgIds), params.maxDets[-1]
    step = images * len(params.areaRng)
    none = np.zeros((len(params.iouThrs), 0))
    for k in range(len(params.catIds)):
        own = evaluation.evalImgs[k * step : k * step + images]
        there = [(i, each) for i, each in enumerate(own) if each]
        count = np.zeros(images, int)
        for i, each in there:
            count[i] = np.sum(np.asarray(each["gtIgnore"]) == 0)
        scores = np.concatenate([np.zeros(0), *(each["dtScores"][:most] for _, each in there)])
        order = np.argsort(-scores, kind="stable")
        image = np.repeat([i for i, _ in there], [len(each["dtScores"][:most]) for _, each in there])
        found = np.concatenate([none, *(each["dtMatches"][:, :most] for _, each in there)], 1) > 0
        ignored = np.concatenate([none, *(each["dtIgnore"][:, :most] for _, each in there)], 1) > 0
        yield Matches(image[order].astype(int), found[:, order], ignored[:, order], count)


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return _percents(known.mean(keepdims=True))[0] if known.size else None


def _percents(values: np.ndarray) -> list[float]:
    """Round percentages for a small file, to a precision far below the noise of any comparison."""
    return [round(100 * float(value), 5) for value in values]
