"""The next step that explain proposes tells the likeliest causes apart, as a command that can be typed."""

import pytest
import torch

from benchmarks.detection.explain.command import ExplainOptions, explanation
from tests.conftest import KIT
from tests.support import run_records
from triplet.models.resnet import ResNet
from triplet.weights import detectron2_format

CONFIG = KIT / "configs/detection/coco_r50_c4_2x_moco.yaml"
LOG = KIT / "docs/examples/stopped-early.json"


def proposed(result, **options):
    found = explanation(ExplainOptions(result, **options))
    assert found.next
    return found.next


def test_a_log_is_asked_for_where_it_tells_more_than_a_config():
    """The config of a full plan tells a short schedule from a stop as little as nothing does."""
    found = proposed((25.1, 22.3))
    assert found.command == "triplet explain --result 25.1 22.3 --log FILE"
    assert found.tells.endswith("tells schedule from undecayed stop")


def test_causes_that_are_seen_need_no_experiment():
    authors = CONFIG.with_name("coco_r50_c4_2x_authors.yaml")
    found = proposed((25.1, 22.3), config=authors, log=LOG)
    assert found.command == "triplet plan --method triplet --hours 12"
    assert found.tells.startswith("schedule and undecayed stop seen; this says which AP")
    assert found.seconds < 60


def test_the_command_has_the_gpus_that_its_time_is_for(tmp_path):
    (tmp_path / "c.yaml").write_text(f"_BASE_: {CONFIG}\nSOLVER: {{BASE_LR: 0.4}}\n")
    (tmp_path / "log.txt").write_text(
        "".join(f"iter: {n} total_loss: 5.{n % 7} lr: 0.4\n" for n in range(0, 9000, 20))
    )
    found = proposed(
        (1.0, 0.9), method="moco", config=tmp_path / "c.yaml", log=tmp_path / "log.txt", gpus=4
    )
    assert found.machine == "4 V100"
    assert "make finetune RUN=probe/moco" in found.command
    assert "GPUS=4" in found.command


@pytest.mark.parametrize("converted", [False, True])
def test_the_users_own_weights_are_converted(tmp_path, converted):
    state = ResNet(50, 4).state_dict()  # initial: another file than the method's
    path = tmp_path / ("w.pkl" if converted else "w.pth")
    if converted:
        detectron2_format.write(path, state)
    else:
        torch.save(state, path)
    log = KIT / "tests/detection/cases/logs/detectron2_log.txt"
    found = proposed((36.0, 31.9), method="moco", log=log, weights=path)
    file = "FILE" if converted else path
    assert found.command == f"triplet convert --run moco --weights {file}"
    assert ("FILE is what w.pkl was made from" in found.tells) == converted


def test_a_run_is_asked_for_nothing_that_its_records_have(places):
    run_records.run("short/moco-v2", 40.0, 34.7)
    found = proposed(None, run="short/moco-v2")
    assert "--log" not in found.command
    assert "--config" not in found.command


def test_an_open_cause_is_next_where_seen_ones_fall_short(tmp_path):
    log = (KIT / "tests/detection/cases/logs/mmdetection_log.txt").read_text()
    loaded = "\n".join(line for line in log.splitlines() if "missing keys" not in line)
    (tmp_path / "log.txt").write_text(loaded.replace("norm_eval=True", "norm_eval=False"))
    found = proposed((30.0, 27.0), target=(38.0, 34.0), log=tmp_path / "log.txt")
    assert found.command.endswith("--weights FILE")
    assert found.tells == "the weights' file tells BN statistics from other weights"


@pytest.mark.parametrize("result", [(41.7, 2.1), (0.0, 0.0)])
def test_a_cause_that_is_the_whole_answer_is_followed_at_once(result):
    """Masks alone are seen by their ratio; of nothing learned, a log tells most."""
    found = proposed(result)
    assert found.command.startswith("triplet eval" if result[1] else "triplet explain")
    assert ("--log FILE" in found.command) == (not result[1])
