"""Ratios that hold in every table of COCO and VOC: a swapped or mistyped number breaks one."""

import itertools

import pytest

from triplet.published import curves
from triplet.published.effects import Effect
from triplet.published.effects import published as published_effects
from triplet.published.methods import load_methods
from triplet.published.tables import load_published

CURVES = [*curves.published().curves, *curves.published().undecayed, *curves.published().decayed]
ROUNDING = 0.05


def test_mask_lies_below_box_at_every_point():
    for curve in CURVES:
        for iterations, box, mask in curve.points:
            assert 0.8 * box < mask < box + ROUNDING, (curve.init, curve.source, iterations)


def test_a_longer_schedule_is_not_worse():
    for curve in curves.published().curves:
        for shorter, longer in itertools.pairwise(curve.points):
            assert longer[1] > shorter[1], (curve.init, curve.source, longer[0])
            assert longer[2] > shorter[2], (curve.init, curve.source, longer[0])


def test_the_swapped_pair_would_have_been_found():
    (random,) = (c for c in CURVES if (c.detector, c.init, c.source) == ("c4", "random", "detco"))
    assert "swapped" in random.doubt
    box, mask = random.at(90_000, 0), random.at(90_000, 1)
    assert not 0.8 * mask < box < mask + ROUNDING  # the pair as it is printed


@pytest.mark.parametrize("method", load_methods().values(), ids=load_methods())
def test_the_thresholds_of_a_method_are_in_order(method):
    for published in filter(None, (method.readme, method.zoo, method.student)):
        assert 0.8 * published.box < published.mask < published.box
    if method.zoo:
        zoo = method.zoo
        assert zoo.box < zoo.box75 < zoo.box50
        assert zoo.mask < zoo.mask75 < zoo.mask50
        assert zoo.mask50 < zoo.box50
        assert zoo.mask75 < zoo.box75


def test_vocs_thresholds_are_in_order():
    found = {}
    for value in load_published():
        if value.benchmark == "voc-detection":
            found.setdefault((value.method, value.source), {})[value.metric] = value.value
    assert len(found) == 19
    for (method, _), of_method in found.items():
        assert of_method["AP"] < of_method["AP50"]
        assert of_method["AP75"] < of_method["AP50"]
        if method != "random":  # too weak for tight boxes
            assert of_method["AP"] < of_method["AP75"]


def test_more_answers_more_images_and_more_epochs_are_not_worse():
    found = {(v.method, v.benchmark, v.source, v.metric): v.value for v in load_published()}
    for (method, benchmark, source, metric), value in found.items():
        if metric == "top1" and (top5 := found.get((method, benchmark, source, "top5"))):
            assert value < top5
        if benchmark == "semi-1percent":
            assert value < found[method, "semi-10percent", source, metric]
    shots = ("1", "2", "4", "8", "16", "32", "64", "96", "mAP")
    for method in {key[0] for key in found if key[1] == "svm"}:
        values = [
            found[method, "svm", "zoo", shot] for shot in shots if (method, "svm", "zoo", shot) in found
        ]
        assert values == sorted(values)


def test_a_number_says_when_it_is_of_another_file():
    other = {(v.method, v.benchmark) for v in load_published() if v.file}
    assert other == {("moco-v2", "linear"), ("moco-v2", "voc-detection"), ("byol", "voc-detection")}
    assert {name for name, method in load_methods().items() if method.readme.file} == {
        "moco-v2",
        "byol",
    }


@pytest.mark.parametrize("size", ["box", "mask"])
def test_what_a_mistake_costs_is_a_range(size):
    effects = [effect.model_dump() for effect in published_effects()]
    for effect in effects:
        if effect[size]:
            least, most = effect[size]
            assert 0 <= least <= most, effect
            swapped = {**effect, size: (most + 1, least)}
            with pytest.raises(ValueError, match="holds nothing"):
                Effect(**swapped)
