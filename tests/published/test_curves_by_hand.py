"""The AP to expect, beside a regression that is written out, and at each bound."""

import math

import numpy as np
import pytest
from sklearn.linear_model import BayesianRidge

from triplet.published import curves
from triplet.published.curves import Band, Curve, LocalResult, Regression

POINTS = {
    "a": ("c4", [(20_000, 21.0, 20.0), (60_000, 33.0, 29.0), (90_000, 36.0, 31.5), (180_000, 38.0, 33.5)]),
    "b": (
        "fpn",
        [(30_000, 27.0, 24.0), (90_000, 37.5, 33.0), (180_000, 41.0, 36.5), (360_000, 42.5, 37.0)],
    ),
    "c": ("c4", [(12_000, 17.0, 15.0), (45_000, 32.0, 28.0), (90_000, 35.0, 30.5)]),
}
MADE = [Curve(detector=kind, init=name, source="s", points=p) for name, (kind, p) in POINTS.items()]


@pytest.mark.parametrize("task", [0, 1])
def test_a_share_is_a_regression_of_what_is_missing(task):
    chain = np.mean([(36.0, 31.5)[task] / (38.0, 33.5)[task], (37.5, 33.0)[task] / (41.0, 36.5)[task]])
    rows, missing = [], []
    for kind, points in POINTS.values():
        known = {point[0]: point[1 + task] for point in points}
        full = known.get(180_000) or known[90_000] / chain  # of which the curve then tells nothing
        for n, value in known.items():
            if n != (180_000 if 180_000 in known else 90_000):
                length = math.log(180_000 / n)
                rows.append([length, full, kind == "fpn"])
                missing.append((1 - value / full) / length)
    plain = BayesianRidge().fit(np.array(rows, dtype=float), missing)
    fitted = Regression(MADE, task)
    for n in (25, 3_000, 50_000, 150_000):
        for full, kind in ((35.0, "c4"), (44.0, "fpn")):
            length = math.log(180_000 / n)
            (mean,), (deviation,) = plain.predict([[length, full, kind == "fpn"]], return_std=True)
            found = fitted.share(n, full, kind)
            assert found.mid == pytest.approx(max(0.0, 1 - mean * length))
            assert found.deviation == pytest.approx(deviation * abs(length))
    assert fitted.share(25, 35.0, "c4").mid == 0
    assert fitted.share(720_000, 44.0, "fpn") == fitted.share(360_000, 44.0, "fpn")


def test_nothing_is_lost_past_the_turning_point():
    """Missing is length times a line; where that line is steep, its product turns before the longest."""
    steep = [
        Curve(
            detector="c4",
            init="d",
            source="s",
            points=[
                (n, *2 * (40 * (1 - x * (x + 0.4) / 9),))
                for n, x in ((n, math.log(180_000 / n)) for n in (20_000, 60_000, 90_000, 180_000, 360_000))
            ],
        )
    ]
    fitted = Regression(steep, 0)
    start, slope = fitted.model.predict([[0.0, 0.0, 0.0]])[0], fitted.model.coef_[0]
    turn = -start / (2 * slope)
    assert -math.log(2) < turn < 0
    best = fitted.share(180_000 * math.exp(-turn), 40.0, "c4").mid
    assert fitted.share(350_000, 40.0, "c4").mid == pytest.approx(best)
    assert fitted.share(200_000, 40.0, "c4").mid < best


def test_an_interval_widens_by_half_for_each_thing_unknown():
    half = math.hypot(1.2815516 * 0.02 * 30, 0.3)
    share = curves.Share(0.9, 0.02)
    assert share.half(30.0) == pytest.approx(half)
    assert share.half(30.0, 1) == pytest.approx(1.5 * half)
    assert share.half(30.0, 3) == pytest.approx(3.375 * half)
    full = curves.full_ap("supervised", "fpn")
    assert len(full) > 1
    for task, band in enumerate(("box", "mask")):
        found = getattr(curves.expected("supervised", "fpn", 90_000), band)
        shares = [(ap[task], curves.regression(False, task).share(90_000, ap[task], "fpn")) for ap in full]
        assert found.mid == pytest.approx(np.mean([ap * share.mid for ap, share in shares]))
        assert found.low == pytest.approx(min(ap * share.mid - share.half(ap) for ap, share in shares))
        assert found.high == pytest.approx(max(ap * share.mid + share.half(ap) for ap, share in shares))


def test_a_band_holds_its_ends_and_stays_below_a_longer_ones():
    band = Band(1.0, 5.0, 9.0)
    assert [band.holds(value) for value in (0.99, 1, 9, 9.01)] == [False, True, True, False]
    for longer, high in ((10, 9), (7, 7), (3, 5)):
        assert curves._capped(band, Band(0, 2, longer)) == Band(1, 5, high)
    for method in ("moco", "triplet", "random"):
        shortest = min(point[0] for curve in curves.alike(method == "random") for point in curve.points)
        short, longer = (curves.expected(method, "c4", n) for n in (shortest * 0.9, shortest))
        wider = ([short.mask.high, longer.mask.high], [short.box.high, longer.box.high])
        assert all(high <= most for high, most in wider)


def test_own_runs_of_up_to_twice_and_half_the_length_count():
    before = curves.expected("moco", "c4", 60_000)

    def moved(n, box, mask=1.0, kind="c4"):
        theirs = curves.expected("byol", "c4", n)
        own = LocalResult("mine", "byol", n, (theirs.box.mid * box, theirs.mask.mid * mask))
        return curves.expected("moco", kind, 60_000, [own])

    assert [moved(n, 0.7) == before for n in (29_900, 30_000, 120_000, 120_100)] == [
        True,
        False,
        False,
        True,
    ]
    up = moved(50_000, 1.2, 1.4)
    for band, old, factor in ((up.box, before.box, 1.1), (up.mask, before.mask, 1.2)):
        assert (band.low, band.mid) == (old.low, pytest.approx(old.mid * factor))
        assert band.high == pytest.approx(old.high * factor)
    down = moved(50_000, 0.8)
    assert (down.box.low, down.box.high) == (pytest.approx(before.box.low * 0.9), before.box.high)
    assert moved(60_000, 0.5, kind="fpn") == curves.expected("moco", "fpn", 60_000)  # runs are of C4


def test_what_was_published_of_a_length_is_told():
    lengths = [
        point[0] for curve in curves.alike(False) if curve.detector == "c4" for point in curve.points
    ]
    for n, told in (
        (min(lengths), True),
        (min(lengths) - 1, False),
        (max(lengths), True),
        (max(lengths) + 1, False),
    ):
        basis = curves.expected("moco", "c4", n).basis
        assert ("this length (the published curves" in basis) != told
    for apart, told in ((0.04, True), (-0.04, True), (0.06, False), (-0.06, False)):
        basis = curves.expected("triplet", "c4", 180_000 * math.exp(apart)).basis
        assert ("a cosine from 0.05" in basis) != told


def test_a_stopped_training_has_its_share_of_its_own_final_ap():
    """Between two points, AP grows with the logarithm of the length."""
    (curve,) = (each for each in curves.published().undecayed if each.detector == "c4")
    (first, *one), (second, *other) = curve.points[1:3]
    middle = [(a + b) / 2 / end for a, b, end in zip(one, other, curve.points[-1][1:], strict=True)]
    assert curves.undecayed("c4", math.sqrt(first * second)) == pytest.approx(middle)
    assert curves.decays("c4") == curve.points[-2][0] < curve.points[-1][0]
    assert curve.at(first, 0) == one[0] != one[1] == curve.at(first, 1)
    assert curve.at(first + 1, 0) is None
