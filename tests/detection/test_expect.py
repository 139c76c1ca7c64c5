import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.detection import expect, model
from tests.conftest import KIT
from triplet.methods import load_methods

ROWS = list(load_methods())


def test_published_curves_are_well_formed():
    published = expect.published()
    for curve in [*published.curves, *published.undecayed]:
        lengths = [point[0] for point in curve.points]
        assert lengths == sorted(set(lengths))
        assert curve.source in published.sources
    for effect in published.effects:
        assert effect.box[0] <= effect.box[1]


@pytest.mark.parametrize("row", ROWS)
def test_at_2x_the_published_value_is_expected(row):
    found = expect.expected(row, "c4", expect.FULL)
    readme = load_methods()[row].readme
    assert found.box.mid == pytest.approx(readme.box)
    assert found.mask.mid == pytest.approx(readme.mask)
    assert found.box.holds(readme.box)


@given(row=st.sampled_from(ROWS), n=st.floats(100, 400_000), more=st.floats(1, 4))
def test_longer_is_not_worse_and_bands_are_ordered(row, n, more):
    shorter, longer = (expect.expected(row, "c4", length) for length in (n, n * more))
    for task in ("box", "mask"):
        a, b = getattr(shorter, task), getattr(longer, task)
        assert 0 <= a.low <= a.mid <= a.high
        assert a.mid <= b.mid + 1e-9


def test_bands_hold_what_was_published_of_other_weights():
    """Each curve of pretrained weights lies within the band that the others' shares give it."""
    for curve in expect.published().curves:
        full = curve.at(expect.FULL, 0)
        if curve.detector != "c4" or curve.init == "random" or full is None:
            continue
        low, _, high = expect.share(
            [c for c in expect.published().curves if c is not curve and c.init != "random"], 0, 90_000
        )
        assert full * low - 2 * expect.NOISE <= curve.at(90_000, 0) <= full * high + 2 * expect.NOISE


def test_what_is_not_published_is_not_expected():
    assert expect.expected("triplet", "fpn", 90_000) is None
    assert expect.expected("mine", "c4", 90_000) is None
    assert "nothing was published of such a length" in expect.expected("moco", "c4", 300).basis
    assert expect.expected("moco", "c4", 300).box.low == 0


def test_an_own_run_counts_like_a_published_one():
    own = expect.Curve(
        detector="c4",
        init="moco",
        source="own run moco",
        points=[(45_000, 30.0, 27.0), (180_000, 40.9, 35.5)],
    )
    before, after = (expect.expected("triplet", "c4", 45_000, curves) for curves in ([], [own]))
    assert after.box.mid < before.box.mid
    assert "own run moco" in after.basis


def test_stops_before_the_rate_falls():
    assert expect.undecayed("c4", 36_645)[0] == pytest.approx(27.0 / 38.3)
    assert expect.undecayed("c4", 170_000) is None


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
    assert expect.detector(cfg) == kind
