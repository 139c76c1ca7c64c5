"""How fast a training goes, and how long it will take."""

import pytest

from triplet.training.metrics import ThroughputMeter


def test_pace_counts_only_its_own_session(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = ThroughputMeter(batch=100, steps=1000, start=500)
    told = []
    for done in range(501, 531):
        now[0] += 30 if done < 505 else 2  # compiling at first
        values = pace.step(0.5)
        told.append(pace.forecast(done))
    assert values == {"step_time": 2.0, "data_time": 0.5, "images_per_second": 50.0}
    assert [line for line in told if line] == ["50.0 images/s: about 16 min to go, 33 min in all"]
    assert pace.average() == pytest.approx(100 * 30 / (4 * 30 + 26 * 2), rel=0.01)
