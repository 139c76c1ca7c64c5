"""The benchmark of both engines: settings that fit, sums that are right. No time is asserted."""

import json

import pytest

from benchmarks.speed import engines
from triplet.config import load
from triplet.defaults import recipe
from triplet.openselfsup.settings import resolve
from triplet.pretrain.config import Pretrain


def test_both_train_the_same_batch_at_the_same_sides(openselfsup):
    ours = load(recipe("triplet", "pretrain"), Pretrain, engines.settings("kit", 24, 3, 1, True))
    theirs = resolve(
        recipe("triplet", "openselfsup"), openselfsup, engines.settings("openselfsup", 24, 3, 1, True)
    )
    assert ours.batch == theirs.data.imgs_per_gpu * theirs.gpus == 24
    assert ours.schedule.epochs == theirs.total_epochs == 3
    assert ours.views.size == theirs.data.train.pipeline1[0].size == 96
    for name in ("online", "target"):
        sides = getattr(ours.views, name)
        assert [sides.smallest, sides.largest, sides.step] == theirs.model[name]
    assert ours.model.hidden == theirs.model.neck.hid_channels == theirs.model.head.predictor.hid_channels
    assert ours.model.outputs == theirs.model.neck.out_channels


def test_what_the_log_says_is_summed_up():
    steps = [dict(step_time=2.0, data_time=0.5, memory=m) for m in (1, 3, 2)]
    found = engines.summary(steps, 24)
    assert found["images_per_second"] == 12
    assert found["computing"]["median"] == 1.5
    assert found["waiting_for_data"]["median"] == 0.5
    assert found["memory_bytes"] == 3


def test_without_openselfsup_it_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENSELFSUP", str(tmp_path))
    assert engines.main(["--output", str(tmp_path / "x.json")]) == 2
    assert "is not a checkout of OpenSelfSup" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_measures_both(openselfsup, places):
    output = places / "engines.json"
    assert engines.main(["--rounds", "1", "--steps", "4", "--batch", "12", "--output", str(output)]) == 0
    content = json.loads(output.read_text())
    assert content["engines"].keys() == {"kit", "openselfsup"}
    assert all(each["images_per_second"] > 0 for each in content["engines"].values())
