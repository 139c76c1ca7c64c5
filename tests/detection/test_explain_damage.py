"""Whatever explain is given: a result, or one line and exit code 2, and soon."""

import json
import time

import pytest

from tests.conftest import KIT
from tests.support.mutations import mutants
from triplet import cli

CONFIG = b"""_BASE_: coco_R_50_C4_2x.yaml
DATASETS:
  TRAIN: ('coco_2017_train',)
INPUT:
  FORMAT: RGB
  MIN_SIZE_TRAIN: (640, 672, 704, 736, 768, 800)
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE:
    FREEZE_AT: 0
    NAME: build_resnet_backbone
  MASK_ON: true
  PIXEL_MEAN: [123.675, 116.28, 103.53]
  PIXEL_STD: [58.395, 57.12, 57.375]
  RESNETS:
    NORM: SyncBN
    STRIDE_IN_1X1: false
  ROI_HEADS:
    NAME: Res5ROIHeadsExtraNorm
    SCORE_THRESH_TEST: 0.05
SOLVER:
  BASE_LR: 0.02
  IMS_PER_BATCH: 16
  MAX_ITER: 180000
  STEPS: [120000, 160000]
  REFERENCE_WORLD_SIZE: 8
TEST:
  PRECISE_BN:
    ENABLED: true
"""
LOGS = {path.name: path.read_bytes() for path in sorted((KIT / "tests/detection/cases/logs").glob("*.*"))}
MMDETECTION = b"""_base_ = ['../_base_/models/faster_rcnn_r50_fpn.py', '../_base_/schedules/schedule_1x.py']
model = dict(type='FasterRCNN', backbone=dict(frozen_stages=1, norm_cfg=dict(type='BN'), norm_eval=True))
data = dict(samples_per_gpu=2)
optimizer = dict(type='SGD', lr=0.02)
"""


def answer(capsys, *arguments):
    """Run explain; the exit code. Fails on a traceback, on several lines of error, and on slowness."""
    before = time.monotonic()
    code = cli.main(
        ["explain", "--result", "25.1", "22.3", "--target", "40.9", "35.5", *map(str, arguments)]
    )
    out, err = capsys.readouterr()
    assert time.monotonic() - before < 5
    assert code in (0, 2)
    if code:
        assert err.startswith("triplet explain: ")
        assert err.count("\n") == 1
        assert len(err) < 2000
    else:
        assert out
    return code


def damaged(name):
    if name == "config.yaml":
        return CONFIG, "--config"
    if name == "config.py":
        return MMDETECTION, "--config"
    return LOGS[name], "--log"


@pytest.mark.parametrize("name", ["config.yaml", "config.py", *LOGS])
def test_every_damaged_file_is_a_result_or_one_line(capsys, tmp_path, name):
    data, option = damaged(name)
    path = tmp_path / name
    codes = []
    for mutant in mutants(data, 50, seed=7):
        path.write_bytes(mutant)
        codes.append(answer(capsys, option, path))
    assert 0 in codes


@pytest.mark.parametrize(
    "line",
    [
        "iter: 1 " * 200_000,
        "backbone{" * 200_000,
        "not found in the checkpoint:" * 60_000,
        "Running with full config:\n" * 60_000,
        "opts=[" * 200_000,
        "[" * 1_000_000,
        '{"iteration": ' * 100_000,
        "copypaste: " * 100_000,
        "x" * 2_000_000,
        "\x1b[" * 500_000,
        "\r" * 1_000_000,
    ],
    ids=lambda line: line[:12].encode("unicode_escape").decode(),
)
def test_long_lines_take_no_quadratic_time(capsys, tmp_path, line):
    path = tmp_path / "log.txt"
    path.write_text(line)
    answer(capsys, "--log", path, "--config", KIT / "configs/detection/coco_r50_c4_2x_moco.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\n"
        + "".join(f"a{n}: &a{n} [*a{n - 1 if n else ''}, *a{n - 1 if n else ''}]\n" for n in range(40)),
        "a: &a {k: v}\n"
        + "".join(
            f"a{n}: &a{n} {{<<: [*a{n - 1 if n else ''}, *a{n - 1 if n else ''}]}}\n" for n in range(40)
        ),
        "_BASE_: config.yaml\n",
        "_BASE_: http://localhost/x.yaml\n",
        "_BASE_: [[1], {2: 3}]\nSOLVER: {}\n",
        "SOLVER: {MAX_ITER: -1, IMS_PER_BATCH: 0, BASE_LR: .nan}\n",
        "SOLVER:\n  BASE_LR: 0\n  IMS_PER_BATCH: 16\n  MAX_ITER: 90000\n",
    ],
    ids=["laughs", "merges", "itself", "network", "lists", "negative", "zero"],
)
def test_configs_that_are_traps(capsys, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    answer(capsys, "--config", path)


@pytest.mark.parametrize(
    "numbers", [("nan", "nan"), ("inf", "1"), ("-1", "2"), ("101", "3"), ("1", "2", "3"), ("0.25", "22")]
)
def test_numbers_that_are_no_ap_are_one_line(capsys, numbers):
    for option in ("--result", "--target"):
        words = ["explain", option, *numbers, *(["--result", "20", "19"] if option == "--target" else [])]
        assert cli.main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_weights_that_are_none_are_one_line(capsys, tmp_path):
    for name, data in (("a.pth", b"version https://git-lfs"), ("b.pkl", b"\x80\x04."), ("c.pth", b"")):
        (tmp_path / name).write_bytes(data)
        assert answer(capsys, "--weights", tmp_path / name) == 2
    assert answer(capsys, "--weights", tmp_path / "none.pth") == 2
    assert answer(capsys, "--log", tmp_path) == 2
    assert answer(capsys, "--config", tmp_path) == 2


def test_json_is_one_object_whatever_the_input(capsys, tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("iter: 5 total_loss: nan lr: inf\n")
    assert cli.main(["explain", "--result", "0", "0", "--log", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["causes"][0]["name"] == "divergence"
