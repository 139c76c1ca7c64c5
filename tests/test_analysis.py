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


def test_all_engines_give_one_analysis(evaluated):
    content, _, file, both = evaluated
    names = [each["name"] for each in content["categories"]]
    for task in scores.TASKS:
        one, *others = (analysis.analyse(both[task, engine], names, 20) for engine in scores.ENGINES)
        assert all(other == one for other in others)
        numbers = scores.CocoGroundTruth(file).numbers(both[task, scores.FASTEST])
        for size, number in (("all", "AP"), ("small", "APs"), ("medium", "APm"), ("large", "APl")):
            known = [value for value in one.by_size[size] if value is not None]
            mean = float(np.mean(known)) if known else None
            assert numbers.numbers[number] == pytest.approx(mean, abs=1e-4)
        assert one.by_size["all"] == pytest.approx(list(numbers.categories.values()), abs=1e-4)
        for iou, number in (("0.5", "AP50"), ("0.75", "AP75")):
            assert np.mean(one.precision[iou]) == pytest.approx(numbers.numbers[number], abs=1e-4)
        assert len(one.resampled) == 20
        assert len(analysis.analyse(both[task, "ultrafast"], names).resampled) == 1000
        assert min(one.resampled) < numbers.numbers["AP"] < max(one.resampled)


def test_draws_are_a_function_of_the_number_of_images():
    one, other = analysis.draws(50), analysis.draws(50)
    assert one.shape == (50, analysis.RESAMPLES)
    assert (one == other).all()
    assert (one.sum(0) == 50).all()
    assert (one.sum(1) > 0).all()
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


def test_precision_is_counted_by_hand_under_any_weights():
    """Two categories, of which a draw may hold no object, in more draws than are computed at a time."""
    recalls = np.linspace(0, 1, 101)
    right, wrong, ignored = (True, False), (False, False), (True, True)

    def one(images, kinds, objects):
        found, left_out = (np.array([[kind[i] for kind in kinds]]) for i in (0, 1))
        return analysis.Matches(np.array(images), found, left_out, np.array(objects))

    # The most certain one is wrong, in image 2; one is left out; image 1 has an object that is not found.
    first = one([2, 0, 1, 0], [wrong, ignored, right, right], [1, 2, 0])
    second = one([1], [right], [0, 1, 0])
    drawn = np.tile([[1], [1], [1]], (1, analysis.CHUNK + 1))
    drawn[:, 0], drawn[:, -2], drawn[:, -1] = (1, 0, 2), (3, 2, 0), (0, 0, 5)
    found = analysis.resampled_ap([first, second], drawn, recalls)
    # Once each: of 3 objects 2 are found, at precision 2/3: 67 of 101 recalls. The other is perfect.
    assert found[1:-2] == pytest.approx(np.full(analysis.CHUNK - 2, (67 / 101 * 2 / 3 + 1) / 2))
    # Image 1 is not there: the second category does not count. Precision 1/3 at all recalls.
    assert found[0] == pytest.approx(1 / 3)
    # Image 0 three times, 1 twice, 2 never: of 7 objects 2, then 5, all of them right: 72 recalls.
    assert found[-2] == pytest.approx((72 / 101 + 1) / 2)
    assert found[-1] == 0  # no object at all
    assert analysis.resampled_ap([first, second], 3000 * drawn, recalls) == pytest.approx(found)


def test_an_object_may_have_the_id_0_for_ultrafast(tmp_path):
    """The others take 0 for no match; the kit numbers annotations from 1 on before they see any."""
    boxes = [{"id": i, "image_id": 7 + i, "category_id": 2, "bbox": [1, 2, 9, 8]} for i in range(3)]
    content = {
        "images": [{"id": 7 + i, "width": 50, "height": 40, "file_name": f"{i}"} for i in range(3)],
        "annotations": [{**each, "area": 72, "iscrowd": 0} for each in boxes],
        "categories": [{"id": 2, "name": "cat"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    truth = scores.CocoGroundTruth(tmp_path / "truth.json", "ultrafast")
    evaluation = truth.evaluate([{**each, "score": 0.5 - 0.1 * each["id"]} for each in boxes], "bbox")
    assert truth.numbers(evaluation).numbers["AP"] == 100
    assert analysis.analyse(evaluation, ["cat"], 4).resampled == [100] * 4
