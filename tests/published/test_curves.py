import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detection import model
from tests.conftest import KIT
from triplet.published import curves
from triplet.published.methods import load_methods

METHODS = list(load_methods())


def test_published_curves_are_well_formed():
    published = curves.published()
    for curve in [*published.curves, *published.undecayed, *published.decayed]:
        lengths = [point[0] for point in curve.points]
        assert lengths == sorted(set(lengths))
        assert curve.source in published.sources


@pytest.mark.parametrize("method", METHODS)
def test_at_2x_the_published_value_is_expected(method):
    found = curves.expected(method, "c4", curves.FULL)
    of_its_weights = load_methods()[method].of_its_weights
    assert found.box.mid == pytest.approx(of_its_weights.box)
    assert found.mask.mid == pytest.approx(of_its_weights.mask)
    assert found.box.holds(of_its_weights.box)


@pytest.mark.parametrize(("method", "zoo"), [("byol", (40.2, 34.9)), ("moco-v2", (41.0, 35.6))])
def test_the_zoos_ap_counts_where_readmes_is_of_another_file(method, zoo):
    assert load_methods()[method].readme.file
    assert curves.full_ap(method, "c4") == [zoo]


@given(method=st.sampled_from(METHODS), n=st.floats(100, 400_000), more=st.floats(1, 4))
def test_longer_is_not_worse_and_bands_are_ordered(method, n, more):
    shorter, longer = (curves.expected(method, "c4", length) for length in (n, n * more))
    for task in ("box", "mask"):
        a, b = getattr(shorter, task), getattr(longer, task)
        assert 0 <= a.low <= a.mid <= a.high
        assert a.mid <= b.mid + 1e-9


def test_at_2x_the_interval_is_the_noise_between_two_runs():
    """Nothing is regressed there; left out, the noise would make the interval a point."""
    found = curves.expected("triplet", "c4", curves.FULL)
    for band in (found.box, found.mask):
        assert band.high - band.mid == pytest.approx(curves.NOISE)
        assert band.mid - band.low == pytest.approx(curves.NOISE)


def test_the_noise_widens_the_interval_of_every_length():
    share = curves.regression(False, 0).share(90_000, 40.0, "c4")
    regressed = curves.QUANTILE * share.deviation * 40.0
    assert share.half(40.0) ** 2 == pytest.approx(regressed**2 + curves.NOISE**2)


def test_stronger_weights_keep_a_larger_share():
    strong, weak = (curves.regression(False, 0).share(12_000, full, "c4").mid for full in (41.7, 39.4))
    assert strong > weak


def test_what_the_points_lack_widens_the_interval_and_is_said():
    plain = curves.expected("moco", "c4", 22_500)
    other = curves.expected("moco", "c4", 22_500, unlike=["BN over 16 images -> 4"])
    assert other.box.mid == plain.box.mid
    assert other.box.high - other.box.mid == pytest.approx(curves.WIDER * (plain.box.high - plain.box.mid))
    assert plain.unlike == ()
    assert other.unlike == ("BN over 16 images -> 4",)
    assert "which no curve covers: BN over 16 images -> 4" in other.basis
    assert "a cosine from 0.05" in curves.expected("triplet", "c4", 22_500).basis


def test_a_shorter_schedule_is_not_expected_to_reach_more():
    for method in METHODS:
        assert curves.expected(method, "c4", 300).box.high <= curves.expected(method, "c4", 12_000).box.high


def test_where_sources_differ_both_are_within():
    found = curves.expected("supervised", "fpn", curves.FULL)
    for curve in curves.published().curves:
        if (curve.detector, curve.init) == ("fpn", "supervised") and (box := curve.at(curves.FULL, 0)):
            assert found.box.holds(box)
            assert found.mask.holds(curve.at(curves.FULL, 1))
            assert f"{box:.1f} / " in found.basis


def test_what_is_not_published_is_not_expected():
    assert curves.expected("triplet", "fpn", 90_000) is None
    assert curves.expected("mine", "c4", 90_000) is None
    assert "this length (the published curves" in curves.expected("moco", "c4", 300).basis
    assert curves.expected("moco", "c4", 300).box.low == 0


def test_an_own_run_moves_what_is_expected_half_of_the_way():
    at = {n: curves.expected("triplet", "c4", n) for n in (45_000, 180_000)}
    theirs = curves.expected("moco", "c4", 45_000)
    own = curves.LocalResult("moco", "moco", 45_000, (theirs.box.mid * 0.8, theirs.mask.mid))
    after = curves.expected("triplet", "c4", 45_000, [own])
    assert after.box.mid == pytest.approx(0.9 * at[45_000].box.mid)
    assert after.mask.mid == pytest.approx(at[45_000].mask.mid)
    assert after.box.low < at[45_000].box.low
    assert after.box.high == at[45_000].box.high
    assert "adjusted by 1 of your runs (moco)" in after.basis
    # of another length it tells nothing
    assert curves.expected("triplet", "c4", 180_000, [own]) == at[180_000]


def test_own_runs_never_move_a_published_point():
    before = curves.PATH.read_bytes(), curves.published().model_dump()
    own = [curves.LocalResult("moco", "moco", length, (20.0, 18.0)) for length in (45_000, 180_000)]
    curves.expected("moco", "c4", 45_000, own)
    assert (curves.PATH.read_bytes(), curves.published().model_dump()) == before
    for method in METHODS:  # nor what is expected of 2x, which is published
        assert curves.expected(method, "c4", curves.FULL, own) == curves.expected(method, "c4", curves.FULL)
    assert curves.expected("moco", "c4", 150_000, own) != curves.expected("moco", "c4", 150_000)


def test_stops_before_the_rate_falls():
    assert curves.undecayed("c4", 36_645)[0] == pytest.approx(27.0 / 38.2)
    # nothing is gained after the last point before it falls
    assert curves.undecayed("c4", 170_000) == curves.undecayed("c4", 124_593)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "c4"),
        (["MODEL.ROI_HEADS.NUM_CLASSES=6"], None),
        (["MODEL.ROI_HEADS.NUM_CLASSES=81"], None),
        (["MODEL.RESNETS.DEPTH=101"], None),
        (["MODEL.MASK_ON=False"], None),
    ],
)
def test_detectors_are_told_apart(overrides, kind):
    cfg = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml", overrides)
    assert curves.detector(cfg) == kind


@pytest.mark.parametrize("method", ["random", "triplet"])
@pytest.mark.parametrize("iterations", [1000, 5000, 8718, 12_000, 180_000])
def test_masks_are_not_expected_above_boxes(method, iterations):
    found = curves.expected(method, "c4", iterations)
    assert found.mask.mid <= found.box.mid
    assert found.mask.low <= found.box.low
    assert found.mask.high <= found.box.high
