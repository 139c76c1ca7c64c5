"""The plan command: cards and hosts that are not here, output for people and for programs."""

import json
import math

import pytest

from benchmarks.detection import calibration
from benchmarks.detection.budget import Memory
from triplet import cli
from triplet.published import curves, gpus

RETINANET = "configs/detection/coco_r50_retinanet_1x_authors.yaml"


@pytest.fixture
def counted(places, monkeypatch):
    """Memory without the seconds of counting: 4 GB and 3 GB for each further image."""
    monkeypatch.setattr(calibration, "count_memory", lambda cfg, precision: Memory(4e9, 3e9))


def planned(capsys, *options):
    """What `triplet plan --json` prints, which is all that it prints."""
    assert cli.main(["plan", "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


def test_people_get_the_answer_first_and_the_next_command_last(places, capsys):
    assert cli.main(["plan", "--gpus", "8", "--seconds", "0.4", "--schedule", "1/4x"]) == 0
    first, *facts, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "plan: 22500 iterations in 2.6 h on 8 GPUs; expected AP of triplet: box 33.0 (30.7 "
    )
    assert last.split(maxsplit=1) == ["next", "make finetune METHOD=triplet SCHEDULE=1/4x GPUS=8"]
    assert len({len(line) - len(line[2:].split(" ", 1)[1].lstrip()) for line in [*facts, last]}) == 1


def test_a_card_gives_speed_memory_and_precision(counted, capsys):
    found = planned(capsys, "--gpu", "tesla t4", "--gpus", "2", "--hours", "30")
    timing = gpus.timing("T4", "c4", "float16").on(2)
    assert found["seconds_per_iteration"] == pytest.approx(timing.mid)
    assert found["published_seconds"]["high"] == pytest.approx(timing.high)
    assert (found["gpu"], found["precision"], found["images_per_gpu"]) == ("T4", "float16", 4)
    assert found["peak_bytes"] == 13e9
    assert "BN over 8 images" in found["expected"]["unlike"]
    assert found["hours"] == pytest.approx(30, abs=0.1)
    assert found["next"] == "make finetune METHOD=triplet HOURS=30 GPUS=2"


def test_a_host_counts_its_sessions(counted, capsys):
    found = planned(capsys, "--preset", "kaggle", "--schedule", "1/4x")
    assert (found["gpu"], found["gpus"]) == ("T4", 2)
    assert found["sessions"] == math.ceil(found["hours"] / 11.5) > 1
    assert "resumes from the last checkpoint" in found["facts"]["sessions"]
    assert found["facts"]["next"].endswith("(again in each session: it continues where it stopped)")
    short = planned(capsys, "--preset", "kaggle", "--hours", "11")
    assert short["sessions"] == 1
    assert "week" in planned(capsys, "--preset", "kaggle", "--schedule", "1x")["facts"]["sessions"]


def test_what_the_user_knows_counts_more_than_what_was_published(counted, capsys):
    found = planned(capsys, "--gpu", "T4", "--seconds", "2", "--memory", "8")
    assert (found["seconds_per_iteration"], found["images_per_gpu"]) == (2, 2)
    assert found["published_seconds"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "T5"], "did you mean 'T4'? known here: V100, "),
        (["--preset", "azure"], "known here: kaggle, kaggle-p100, colab"),
        (
            ["--gpu", "L4", "--hours", "3", "--config", RETINANET],
            "--hours needs the seconds of an iteration, and none are published for this detector",
        ),
    ],
)
def test_what_is_not_known_is_one_line(counted, capsys, options, message):
    assert cli.main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_detector_without_a_published_speed_says_so(counted, capsys):
    found = planned(capsys, "--gpu", "L4", "--config", RETINANET)
    assert found["seconds_per_iteration"] is found["hours"] is None
    assert "none is published for this detector" in found["facts"]["speed"]


def test_a_card_of_derived_speed_has_the_same_ap_to_expect(counted, capsys):
    found = planned(capsys, "--gpu", "L4", "--schedule", "1x")
    assert found["published_seconds"]["low"] < found["seconds_per_iteration"]
    assert found["expected"]["box"]["mid"] == pytest.approx(
        curves.expected("triplet", "c4", 90_000).box.mid
    )
