"""The small chain from pull to report, as its user runs it: `triplet demo`, with a tiny budget."""

import json
import re
import shutil
import signal

import pytest

from tests.conftest import KIT
from tests.support.processes import group_is_gone, start, wait_until
from tests.support.processes import run as kit
from triplet.runs import collect

pytestmark = pytest.mark.slow

TINY = """
data: {unlabelled: 26, train: 8, val: 4, radii: [18, 30], large: [28, 50], objects: [1, 2]}
subset: {train: 6, val: 3}
pretrain: PRETRAIN
detection: DETECTION
methods:
  random: [schedule.epochs=0]
  triplet: []
seeds: [0]
"""
DETECTION = f"""
_BASE_: {KIT}/configs/detection/demo.yaml
SOLVER: {{MAX_ITER: 60, STEPS: [50], IMS_PER_BATCH: 2, BASE_LR: 0.02}}
TEST: {{PRECISE_BN: {{NUM_ITER: 2}}}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Places, configs, and what the first run of the demo printed."""
    folder = tmp_path_factory.mktemp("world")
    pretrain = (KIT / "configs/pretrain/demo.yaml").read_text()
    pretrain = re.sub(r"group: \d+", "group: 13", pretrain)
    (folder / "pretrain.yaml").write_text(re.sub(r"epochs: \d+, w", "epochs: 2, w", pretrain))
    (folder / "detection.yaml").write_text(DETECTION)
    tiny = TINY.replace("PRETRAIN", str(folder / "pretrain.yaml"))
    (folder / "demo.yaml").write_text(tiny.replace("DETECTION", str(folder / "detection.yaml")))

    def run(*arguments):
        places = {f"TRIPLET_{n.upper()}": folder / n for n in ("datasets", "checkpoints", "reports")}
        return kit("demo", "--config", folder / "demo.yaml", *arguments, **places)

    return folder, run, run()


def stages(folder):
    return {
        str(path.parent.relative_to(folder / "checkpoints")): json.loads(path.read_text())
        for path in (folder / "checkpoints").rglob("record.json")
    }


def test_the_demo_runs_every_stage_of_both_methods(world):
    folder, _, first = world
    assert first.returncode == 0, first.stderr
    assert set(stages(folder)) == {
        f"demo/seed0/{method}/{stage}"
        for method in ("random", "triplet")
        for stage in ("pretrain", "convert", "finetune", "eval")
    }
    for stage in ("pull demo", "pretrain", "convert", "finetune", "eval", "report"):
        assert f"$ triplet {stage}" in first.stdout
    assert first.stderr == ""


def test_each_stage_reads_what_the_one_before_wrote(world):
    folder, _, _ = world
    records = stages(folder)
    for method in ("random", "triplet"):
        pretrain, convert, finetune, evaluated = (
            records[f"demo/seed0/{method}/{stage}"] for stage in ("pretrain", "convert", "finetune", "eval")
        )
        assert convert["inputs"]["weights"] == pretrain["outputs"]["checkpoint"]
        assert finetune["inputs"]["weights"] == convert["outputs"]["weights"]
        assert evaluated["inputs"]["model"] == finetune["outputs"]["model"]
        assert finetune["results"]["loaded_tensors"] == 318
    assert finetune["command"].startswith("triplet finetune --run demo/seed0/triplet --config ")
    random, triplet = (records[f"demo/seed0/{method}/finetune"] for method in ("random", "triplet"))
    assert random["config"] == triplet["config"]  # the same budget
    assert random["inputs"]["images"] == triplet["inputs"]["images"]
    assert random["inputs"]["weights"]["sha256"] != triplet["inputs"]["weights"]["sha256"]


def test_the_report_shows_the_evaluated_numbers(world):
    folder, _, _ = world
    page = (folder / "reports" / "index.html").read_text()
    results = json.loads((folder / "reports" / "results.json").read_text())
    assert {r["method"] for r in results} == {"random", "triplet"}
    for record_name, record in stages(folder).items():
        if record_name.endswith("eval"):
            box = record["results"]["bbox"]["AP"]
            method = record_name.split("/")[2]
            assert any(
                r["method"] == method and r["task"] == "box" and r["metric"] == "AP" and r["value"] == box
                for r in results
            )
            assert f">{box:.1f}</a>" in page
    assert len(collect(folder / "checkpoints")) == 2


def test_running_again_does_nothing_that_is_done(world):
    folder, run, _ = world
    before = stages(folder)
    again = run()
    assert again.returncode == 0
    assert again.stdout.count("done already") == 9
    assert stages(folder) == before


def test_another_budget_is_refused_until_forced(world):
    folder, run, _ = world
    before = stages(folder)
    config = folder / "detection.yaml"
    config.write_text(DETECTION.replace("0.02", "0.01"))
    refused = run()
    config.write_text(DETECTION)
    assert refused.returncode == 2
    assert "BASE_LR 0.02 -> 0.01); add --force" in refused.stderr
    assert stages(folder) == before


def test_real_data_by_path(world, drawn):
    folder, run, _ = world
    done = run("--data", str(drawn), "--images", str(drawn / "unlabelled"))
    assert done.returncode == 0, done.stderr
    records = stages(folder)
    record = records["demo-tiny/seed0/triplet/finetune"]
    assert record["inputs"]["images"]["path"] == "datasets/demo-tiny/train2017"
    assert record["inputs"]["images"]["files"] == 6
    assert records["demo-tiny/seed0/triplet/pretrain"]["inputs"]["images"]["files"] == 48


def test_a_stopped_demo_stops_both_methods_which_save(world, tmp_path):
    folder, *_ = world
    shutil.copytree(folder / "datasets", tmp_path / "datasets")
    places = {f"TRIPLET_{n.upper()}": tmp_path / n for n in ("datasets", "checkpoints", "reports")}
    running = start("demo", "--config", folder / "demo.yaml", session=True, **places)
    begun = tmp_path / "checkpoints/demo/seed0/random/finetune/started.json"
    wait_until(begun.exists, running)
    running.send_signal(signal.SIGTERM)
    out, error = running.communicate(timeout=60)
    assert running.returncode == 143, error
    assert "triplet finetune: stopped by SIGTERM" in error
    assert "triplet report" not in out
    assert group_is_gone(running)
