"""The benchmark of the report: drawn records of many runs, the page's size and the time that it takes."""

import json

import pytest

from benchmarks.speed import report
from triplet.published.methods import load_methods
from triplet.report.page import LARGEST


@pytest.mark.slow
def test_every_method_and_recipe_is_drawn_and_the_cost_said(places, monkeypatch, tmp_path, capsys):
    for name in ("DATASETS", "CHECKPOINTS", "REPORTS"):
        monkeypatch.setenv(f"TRIPLET_{name}", "set by the benchmark")
    assert report.main(["--seeds", "1", "--output", str(tmp_path / "found.json")]) in (0, 1)  # the clock
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["runs"] == len(report.RECIPES) * len(load_methods())
    assert 0 < found["bytes"] <= LARGEST
    assert found["seconds"] > 0
    assert f"{found['runs']} runs: " in capsys.readouterr().out
