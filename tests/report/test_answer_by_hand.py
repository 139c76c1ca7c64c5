"""The first screen from lines of COCO's table of which no two numbers are equal."""

import pytest

from triplet.published.causes import EXCLUDED, Cause
from triplet.published.causes.cause import SEEN
from triplet.published.curves import Band
from triplet.report import answer
from triplet.report.coco import CocoRow
from triplet.runs import Run, Score, Unfinished


def line(method, *ours, label="", task="box", schedule="2x", **more):
    """A line whose method has 40.9 in the README, and 38.3 in the zoo, which its weights have."""
    runs = (f"{label}{method}",) if ours and "runs" not in more else ()
    fields = dict(readme=40.9, zoo=(38.3, 58.1, 41.2), published=38.3, source="zoo")
    fields |= dict(runs=runs, schedule=schedule)
    score = Score(ours) if ours else None
    return CocoRow(method, label or method.upper(), task, **{**fields, **more}, ours=(score, None, None))


def said(*lines, runs=(), causes=None):
    return answer.sentences(runs, lines, {}, causes or {})


def test_the_papers_method_comes_first_and_of_each_its_own_run():
    lines = [line("moco", 1.0, label="MoCo (x)"), line("moco", 2.0), line("triplet", 3.0, label="T (x)")]
    found = said(*lines, line("triplet", 4.0), line("byol"), runs=[Run("old", {}, "its eval is older")])
    whose = [each.who.partition(",")[0] for each in found]
    assert whose == ["TRIPLET", "T (x)", "MOCO", "MoCo (x)", "old"]
    assert (found[-1].text, found[-1].kind, found[-1].link) == ("its eval is older.", "short", "run-old")


@pytest.mark.parametrize(
    ("box", "mask", "kind"),
    [
        ("within noise", "as expected of this length", "good"),
        ("within noise", "below", "short"),
        ("above", "within noise", "plain"),
        ("", "", "plain"),
    ],
)
def test_a_sentence_is_as_good_as_its_worst_number(box, mask, kind):
    (found,) = said(line("moco", 38.0, verdict=box), line("moco", 33.0, task="mask", verdict=mask))
    assert found.kind == kind


def test_numbers_stand_beside_what_they_are_compared_with():
    band = Band(33.1, 34.2, 35.3)
    (full,) = said(line("moco", 38.0, 39.0, verdict="below", expected=band))
    assert full.who == "MOCO, 2x schedule, 2 seeds"
    assert full.text == "box AP 38.5 ± 0.7, zoo 38.3: below."
    (short,) = said(line("moco", 34.0, schedule="1x", expected=band, verdict="as expected"))
    assert short.who == "MOCO, 1x schedule"
    assert short.text == "box AP 34.0, 34.2 (33.1 to 35.3) expected of this schedule: as expected."
    (other,) = said(line("moco", 34.0, schedule="1x"))
    assert other.text == "box AP 34.0, zoo 38.3: nothing published to compare it with."


def test_the_cause_is_the_likeliest_of_a_number_that_falls_short():
    first, second = (Cause(name, SEEN, "w") for name in ("one", "two"))
    above = line("moco", 38.0, verdict="above", cause="a")
    below = line("moco", 30.0, task="mask", verdict="below", cause="b")
    (found,) = said(above, below, causes={"a": [second], "b": [first, second]})
    assert (found.cause, found.cause_link) == ("one", answer.why("b"))
    none = [Cause("one", EXCLUDED, "w")]
    assert said(below, causes={"b": none})[0].cause == ""
    assert said(above, causes={"a": [first]})[0].cause_link == ""


def test_the_scale_holds_what_is_published_and_twelve_ap_below():
    def ends(*ours):
        return answer._scale([line("moco"), *(line("byol", each) for each in ours)])

    assert ends() == pytest.approx((38.3 - 0.8, 40.9 + 0.8))
    assert ends(33.0, 43.5) == pytest.approx((33 - 0.8, 43.5 + 0.8))
    assert ends(20.0) == pytest.approx((38.3 - 12.8, 41.7))
    student = line("byol", 20.0, runs=())
    assert answer._scale([line("moco"), student]) == pytest.approx((37.5, 41.7))


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (33.2, 40.2, ["34", "35", "36", "37", "38", "39", "40"]),
        (34.0, 42.5, ["34", "36", "38", "40", "42"]),
        (11.0, 30.0, ["15", "20", "25", "30"]),
        (0.0, 60.0, ["0", "10", "20", "30", "40", "50", "60"]),
    ],
)
def test_ticks_are_few_whole_numbers_at_their_places(low, high, labels):
    ticks = answer._ticks(low, high)
    assert [text for _, text in ticks] == labels
    for place, text in ticks:
        assert place == pytest.approx(100 * (float(text) - low) / (high - low), abs=0.006)


def test_a_track_has_every_number_where_it_is():
    """On a scale from 30 to 50."""
    found = answer._track(
        [line("moco", 29.0, label="M (x)"), line("moco", 40.0, 42.0, schedule="1x"), line("moco")],
        30.0,
        50.0,
    )
    assert (found.published, found.other) == (41.5, 54.5)  # the zoo's, and README's
    assert found.noise == (40.0, 43.0)
    far, near = found.marks
    assert (far.low, far.at, far.high, far.text) == (0, 0, 0, "M (x), 2x: 29.0")
    assert (near.low, near.at, near.high) == pytest.approx((47.93, 55, 62.07))
    assert near.text == "MOCO, 1x: 41.0 ± 1.4"
    assert (far.shape, near.shape) == ("arrow", "diamond")
    marks = answer._track([line("moco", 40.0, label="M (x)"), line("moco", 40.0)], 30.0, 50.0).marks
    assert [mark.shape for mark in marks] == ["square", "circle"]
    assert found.text == "41.0 ± 1.4 / 38.3"
    bare = answer._track([line("moco", zoo=(None,) * 3, published=40.9, source="README")], 30.0, 50.0)
    assert (bare.other, bare.text, bare.noise) == (None, "– / 40.9", (53.0, 56.0))


def test_at_most_four_steps_the_most_useful_first():
    begun = [Unfinished(f"r{i}", "eval", f"make eval RUN=r{i}") for i in range(5)]
    assert len(answer.steps([], [], begun)) == 4
    assert answer.steps([], [], [])[0].command == "make demo"
    run = Run("a", {}, "its eval is of another model; it is left out", "make eval RUN=a FORCE=1")
    (stale,) = answer.steps([run], [], [])
    assert stale == answer.NextStep("a: its eval is of another model", "make eval RUN=a FORCE=1")
    command = {name: f"make finetune METHOD={name}" for name in ("triplet", "moco", "byol")}
    lacking = [
        line(name, task=task, command=text) for name, text in command.items() for task in ("box", "mask")
    ]
    papers, rest = answer.steps([run], lacking, [])[1:]
    assert papers.command == command["triplet"]
    assert rest.reason == "The other 2 methods of the table"
    assert rest.command == "for method in moco byol; do make finetune METHOD=$method || break; done"

    def five_seeds(*lines):
        return "make seeds METHOD=triplet" in [each.command for each in answer.steps([run], lines, [])]

    assert five_seeds(line("triplet", 40.0))
    assert five_seeds(line("triplet", 40.0), line("moco", 40.0, 41.0))
    assert not five_seeds(line("triplet", 40.0, schedule="1x"))
    assert not five_seeds(line("triplet", 40.0), line("triplet", 40.0, 41.0, label="T (x)"))
    assert not five_seeds(line("triplet", 40.0, task="mask"))
    assert not five_seeds(line("moco", 40.0))
