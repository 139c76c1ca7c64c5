"""By category, by size, over recall, over resampled images: from the evaluator's own arrays."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from tests.support.coco_world import world
from triplet import analysis, scores
from triplet.analysis import TaskAnalysis


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """(content, detections, file, evaluation by task and engine) with crowds and equal scores."""
    content, found = world(5, 24, 0.2, 40, False)
    file = tmp_path_factory.mktemp("truth") / "truth.json"
    file.write_text(json.dumps(content))
    truths = {engine: scores.CocoGroundTruth(file, engine) for engine in scores.ENGINES}
    both = {
        (task, engine): truth.evaluate(found, task)
        for task in scores.TASKS
        for engine, truth in truths.items()
    }
    return content, found, file, both


@pytest.mark.parametrize("engine", scores.ENGINES)
@pytest.mark.parametrize("task", scores.TASKS)
def test_images_that_weigh_one_give_the_evaluators_own_ap(evaluated, task, engine):
    evaluation = evaluated[3][task, engine]
    same = np.ones((len(evaluation.params.imgIds), 2))
    ours = analysis.resampled_ap(list(analysis.matches(evaluation)), same, evaluation.params.recThrs)
    assert ours == pytest.approx([evaluation.stats[0]] * 2, abs=1e-12)


@pytest.mark.parametrize("task", scores.TASKS)
def test_a_draw_gives_the_ap_of_its_images(evaluated, task, tmp_path):
    """The evaluator itself judges a file that holds each image as often as it was drawn.

    No two scores of an image are equal here: copies that tie have an order, which weights have not.
    """
    content, found, file, _ = evaluated
    found = [{**each, "score": each["score"] + i * 1e-7} for i, each in enumerate(found)]
    evaluation = scores.CocoGroundTruth(file).evaluate(found, task)
    drawn = analysis.draws(len(evaluation.params.imgIds), 3)
    ours = analysis.resampled_ap(list(analysis.matches(evaluation)), drawn, evaluation.params.recThrs)
    for column, value in zip(drawn.T, ours, strict=True):
        again = {**content, "images": [], "annotations": []}
        detections = []
        for image, times in zip(evaluation.params.imgIds, column, strict=True):
            for copy in range(times):
                number = 1000 * image + copy
                (one,) = (each for each in content["images"] if each["id"] == image)
                again["images"].append({**one, "id": number})
                for each in (each for each in content["annotations"] if each["image_id"] == image):
                    own = {"image_id": number, "id": len(again["annotations"]) + 1}
                    again["annotations"].append({**each, **own})
                detections += [{**each, "image_id": number} for each in found if each["image_id"] == image]
        (tmp_path / "again.json").write_text(json.dumps(again))
        theirs = scores.CocoGroundTruth(tmp_path / "again.json").evaluate(detections, task)
        assert value == pytest.approx(theirs.stats[0], abs=1e-12)


def test_both_engines_give_one_analysis(evaluated):
    content, _, file, both = evaluated
    names = [each["name"] for each in content["categories"]]
    for task in scores.TASKS:
        one, other = (analysis.analyse(both[task, engine], names, 20) for engine in scores.ENGINES)
        assert one == other
        numbers = scores.CocoGroundTruth(file).numbers(both[task, "ultrafast"])
        for size, number in (("all", "AP"), ("small", "APs"), ("medium", "APm"), ("large", "APl")):
            known = [value for value in one.by_size[size] if value is not None]
            mean = float(np.mean(known)) if known else None
            assert numbers.numbers[number] == pytest.approx(mean, abs=1e-4)
        assert one.by_size["all"] == pytest.approx(list(numbers.categories.values()), abs=1e-4)
        for iou, number in (("0.5", "AP50"), ("0.75", "AP75")):
            assert np.mean(one.precision[iou]) == pytest.approx(numbers.numbers[number], abs=1e-4)
        assert len(one.resampled) == 20
        assert min(one.resampled) < numbers.numbers["AP"] < max(one.resampled)


def test_draws_are_a_function_of_the_number_of_images():
    one, other = analysis.draws(50), analysis.draws(50)
    assert one.shape == (50, analysis.RESAMPLES)
    assert (one == other).all()
    assert (one.sum(0) == 50).all()
    assert (analysis.draws(51)[:50] != one).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"by_size": {}},
        {"by_size": {"small": [1.0]}},
        {"by_size": {"all": [1.0], "tiny": [1.0]}},
        {"by_size": {"all": [1.0, 2.0]}},
        {"precision": {"x": [0.0] * 101, "0.75": [0.0] * 101}},
        {"precision": {}},
        {"categories": []},
    ],
)
def test_an_analysis_of_another_form_is_none(changes):
    curves = {"0.5": [1.0] * 101, "0.75": [1.0] * 101}
    right = {"images": 1, "draws": "a", "categories": ["a"], "resampled": []}
    right |= {"by_size": {"all": [1.0], "medium": [None]}, "precision": curves}
    assert TaskAnalysis.model_validate(right).by_size["medium"] == [None]
    with pytest.raises(ValidationError):
        TaskAnalysis.model_validate(right | changes)
