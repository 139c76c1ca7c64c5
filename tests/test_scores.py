"""The fast engines against COCO's own, and all against what Detectron2 does with the latter."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.detection import compat  # noqa: F401
from tests.support.coco_world import rough_world, world
from triplet import analysis, scores

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("truth") / "truth.json"


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 5),
    crowds=st.sampled_from([0, 0.3, 1]),
    detections=st.sampled_from([0, 5, 160]),
    people=st.booleans(),
)
def test_all_engines_find_the_same_numbers(file, seed, images, crowds, detections, people):
    content, found = world(seed, images, crowds, detections, people)
    file.write_text(json.dumps(content))
    if not found or not content["annotations"]:
        return
    before = json.dumps(found)
    truths = {engine: scores.CocoGroundTruth(file, engine) for engine in scores.ENGINES}
    assert len({type(truth.coco) for truth in truths.values()}) == 3
    for task in ("bbox", "keypoints") if people else ("bbox", "segm"):
        one, *others = (asdict(truth.score(found, task)) for truth in truths.values())
        assert len(one["numbers"]) == (10 if task == "keypoints" else 12)
        assert all(other == one for other in others)
    assert json.dumps(found) == before


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), crowds=st.sampled_from([0, 0.3, 1]), many=st.booleans())
def test_every_curve_and_every_match_is_cocos_bit_for_bit(file, seed, crowds, many):
    """Any masks, empty and full too; areas at the borders of the sizes; equal scores; more than 100."""
    content, found = rough_world(seed, crowds, 130 if many else 6)
    file.write_text(json.dumps(content))
    truths = {engine: scores.CocoGroundTruth(file, engine, checked=True) for engine in scores.ENGINES}
    for task in scores.TASKS:
        expected, *others = (truths[engine].evaluate(found, task) for engine in reversed(scores.ENGINES))
        matches = list(analysis.matches(expected))
        for other in others:
            assert np.array_equal(other.stats, expected.stats)
            for curve in ("precision", "recall", "scores"):
                assert np.array_equal(other.eval[curve], expected.eval[curve])
            for ours, cocos in zip(analysis.matches(other), matches, strict=True):
                for field, value in vars(cocos).items():
                    assert np.array_equal(getattr(ours, field), value), field


@pytest.mark.parametrize("people", [False, True])
def test_they_are_detectron2s(file, people):
    content, found = world(3, 6, 0.2, 300, people)
    assert max(sum(d["image_id"] == i["id"] for d in found) for i in content["images"]) > 100
    file.write_text(json.dumps(content))
    register_coco_instances(f"scores {people}", {}, str(file), "")
    tasks = ("bbox", "keypoints") if people else ("bbox", "segm")
    evaluator = COCOEvaluator(f"scores {people}", tasks, False, use_fast_impl=False)
    ids = [each["id"] for each in content["categories"]]
    MetadataCatalog.get(f"scores {people}").set(
        thing_dataset_id_to_contiguous_id={theirs: ours for ours, theirs in enumerate(ids)},
        thing_classes=[each["name"] for each in content["categories"]],
    )
    evaluator.reset()
    instances = [{**each, "category_id": ids.index(each["category_id"])} for each in found]
    evaluator._predictions = [{"image_id": 0, "instances": instances}]
    expected = evaluator.evaluate()
    for task in tasks:
        ours = scores.CocoGroundTruth(file).score(found, task)
        assert 0 < ours.numbers["AP"] < 100
        theirs = {k: None if np.isnan(v) else v for k, v in expected[task].items()}
        by_category = {f"AP-{name}": value for name, value in ours.categories.items()}
        mine = ours.numbers | (by_category if len(ids) > 1 else {})
        assert {key: mine[key] for key in theirs} == theirs


AREAS = {"s": "small", "m": "medium", "l": "large"}


@pytest.mark.parametrize("people", [False, True])
def test_each_number_is_the_mean_that_its_name_says(file, people):
    """Of COCO's arrays over thresholds, recalls, categories, areas and numbers of detections."""
    content, found = world(0, 12, 0.2, 100, people)
    file.write_text(json.dumps(content))
    truth = scores.CocoGroundTruth(file, "pycocotools")
    for task in ("bbox", "keypoints") if people else ("bbox", "segm"):
        evaluated = truth.evaluate(found, task)
        params, numbers = evaluated.params, truth.numbers(evaluated).numbers
        assert len({*numbers.values()}) == len(numbers), "no two are alike"
        for name, value in numbers.items():
            kind, of = name[:2], name[2:]
            each = evaluated.eval["precision"] if kind == "AP" else evaluated.eval["recall"][:, None]
            each = each[..., params.areaRngLbl.index(AREAS.get(of, "all")), :]
            each = each[..., params.maxDets.index(int(of)) if of in ("1", "10", "100") else -1]
            if of in ("50", "75"):
                each = each[np.isclose(params.iouThrs, int(of) / 100)]
            assert value == pytest.approx(100 * each[each > -1].mean()), (task, name)
