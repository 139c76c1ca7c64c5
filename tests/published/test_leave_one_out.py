import json

import pytest

from triplet.published import curves, leave_one_out


@pytest.fixture(scope="module")
def summary():
    return leave_one_out.summary()


def test_the_results_are_those_of_the_published_curves(summary):
    recorded = json.loads(leave_one_out.PATH.read_text())
    assert recorded["curves"] == summary["curves"] == len(curves.alike(random=False))
    assert (recorded["command"], recorded["interval"]) == (summary["command"], summary["interval"])
    for task, lengths in summary["left_out"].items():
        assert list(recorded["left_out"][task]) == list(lengths)
        for length, values in lengths.items():
            assert recorded["left_out"][task][length] == pytest.approx(values, abs=0.011)


@pytest.mark.parametrize("task", ["box", "mask"])
def test_the_estimate_is_as_good_as_promised(summary, task):
    found = summary["left_out"][task]
    assert found["90000"]["median_error"] <= 0.5
    assert found["12000"]["median_error"] <= 1.0
    for length in ("12000", "90000", "all"):
        assert 0.7 <= found[length]["coverage"] <= 0.9
