"""The lines of a log over sessions, and the numbers that tell how fast a training goes."""

import json
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triplet.training.metrics import MetricLogger, ThroughputMeter, memory


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_goes_on_after_the_checkpoints_step(tmp_path):
    """Four iterations in a step; the steps after the checkpoint are taken again, with other numbers."""
    with MetricLogger(tmp_path, 0, 4, is_main_process=True) as log:
        assert log.last == {}
        for step in range(1, 6):
            log.write(step, {"iteration": 4 * step, "loss": 10.0 - step})
            assert lines(tmp_path)[-1] == {"iteration": 4 * step, "loss": 10.0 - step}, "at once"
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 24, "lo')
    with MetricLogger(tmp_path, 3, 4, is_main_process=True) as log:
        assert log.last == {"iteration": 12, "loss": 7.0}
        for step in (4, 5):
            log.write(step, {"iteration": 4 * step, "loss": 20.0 + step})
        assert log.last == {"iteration": 20, "loss": 25.0}
    assert [(line["iteration"], line["loss"]) for line in lines(tmp_path)] == [
        (4, 9.0),
        (8, 8.0),
        (12, 7.0),
        (16, 24.0),
        (20, 25.0),
    ]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (1, 9.0),
        (2, 8.0),
        (3, 7.0),
        (4, 24.0),
        (5, 25.0),
    ]


def test_one_process_alone_writes(tmp_path):
    with MetricLogger(tmp_path, 0, 1, is_main_process=False) as log:
        log.write(1, {"iteration": 1})
        assert log.last == {"iteration": 1}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_pause_is_no_part_of_a_step_but_of_the_average(clock):
    pace = ThroughputMeter(batch=30, steps=90, start=7)
    assert pace.average() is None
    clock[0] += 4.0
    assert pace.step(0.25) == {"step_time": 4.0, "data_time": 0.25, "images_per_second": 7.5}
    clock[0] += 50.0
    pace.pause()
    clock[0] += 3.0
    assert pace.step(1.0)["step_time"] == 3.0
    assert pace.average() == pytest.approx(2 * 30 / 57, abs=0.01)


def test_the_forecast_leaves_out_the_first_steps_and_comes_once(clock):
    pace = ThroughputMeter(batch=60, steps=400, start=0)
    told = {}
    for done in range(1, 41):
        clock[0] += 100 if done <= 10 else 6
        pace.step(0.0)
        if line := pace.forecast(done):
            told[done] = line
    # 380 steps of 6 s are left of 400.
    assert told == {20: "10.0 images/s: about 38 min to go, 40 min in all"}
    pace = ThroughputMeter(batch=60, steps=20, start=0)
    for done in range(1, 21):
        pace.step(0.0)
        assert pace.forecast(done) is None, "there is nothing to go"


def test_memory_is_the_most_that_was_resident_in_bytes():
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert memory(torch.device("cpu")) == pytest.approx(1024 * int(peak[1]), rel=0.1)
