import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detection import model
from tests.conftest import KIT
from triplet.published import curves
from triplet.published.rows import load_methods

ROWS = list(load_methods())


def test_published_curves_are_well_formed():
    published = curves.published()
    for curve in [*published.curves, *published.undecayed]:
        lengths = [point[0] for point in curve.points]
        assert lengths == sorted(set(lengths))
        assert curve.source in published.sources


@pytest.mark.parametrize("row", ROWS)
def test_at_2x_the_published_value_is_expected(row):
    found = curves.expected(row, "c4", curves.FULL)
    readme = load_methods()[row].readme
    assert found.box.mid == pytest.approx(readme.box)
    assert found.mask.mid == pytest.approx(readme.mask)
    assert found.box.holds(readme.box)


@given(row=st.sampled_from(ROWS), n=st.floats(100, 400_000), more=st.floats(1, 4))
def test_longer_is_not_worse_and_bands_are_ordered(row, n, more):
    shorter, longer = (curves.expected(row, "c4", length) for length in (n, n * more))
    for task in ("box", "mask"):
        a, b = getattr(shorter, task), getattr(longer, task)
        assert 0 <= a.low <= a.mid <= a.high
        assert a.mid <= b.mid + 1e-9


def test_bands_hold_what_was_published_of_other_weights():
    """Each curve of pretrained weights lies within the band that the others' shares give it."""
    for curve in curves.published().curves:
        full = curve.at(curves.FULL, 0)
        if curve.detector != "c4" or curve.init == "random" or full is None:
            continue
        low, _, high = curves.share(
            [c for c in curves.published().curves if c is not curve and c.init != "random"], 0, 90_000
        )
        assert full * low - 2 * curves.NOISE <= curve.at(90_000, 0) <= full * high + 2 * curves.NOISE


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
    assert "nothing was published of such a length" in curves.expected("moco", "c4", 300).basis
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
    assert "moved by 1 of your runs (moco)" in after.basis
    # of another length it tells nothing
    assert curves.expected("triplet", "c4", 180_000, [own]) == at[180_000]


def test_stops_before_the_rate_falls():
    assert curves.undecayed("c4", 36_645)[0] == pytest.approx(27.0 / 38.3)
    # nothing is gained after the last point before it falls
    assert curves.undecayed("c4", 170_000) == curves.undecayed("c4", 124_593)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "c4"),
        (["MODEL.ROI_HEADS.NUM_CLASSES=6"], None),
        (["MODEL.RESNETS.DEPTH=101"], None),
        (["MODEL.MASK_ON=False"], None),
    ],
)
def test_detectors_are_told_apart(overrides, kind):
    cfg = model.load_config(KIT / "configs/detection/coco_r50_c4_2x_moco.yaml", overrides)
    assert curves.detector(cfg) == kind
