"""Every known way in which weights silently fail to arrive in Detectron2: what Detectron2 alone loads and
says, and what the kit does.

A right file fills 318 of the model's 337 keys, at an eighth of the width as at the whole one. What a user
of the released code would hand to Detectron2 is made by the key map of its converter.
"""

import pickle
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks.detection import log_capture
from benchmarks.detection import model as detection
from tests.conftest import KIT
from triplet import cli, paths, records
from triplet.models.resnet import ResNet
from triplet.weights.detectron2_format import detectron2_name

from detectron2.checkpoint import DetectionCheckpointer

DEMO = KIT / "configs" / "detection" / "demo.yaml"


def pretrained(seed):
    """A backbone of which no tensor is what Detectron2 initialises."""
    torch.manual_seed(seed)
    state = ResNet(50, 8).state_dict()
    for name, value in state.items():
        if name.endswith("running_mean"):
            value.normal_()
        elif value.is_floating_point() and value.ndim == 1:
            value.uniform_(0.5, 1.5)
        elif not value.is_floating_point():
            value.fill_(7)
    return state


@pytest.fixture(scope="module")
def state():
    return pretrained(0)


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def raw(state):
    other = {key: value + 1 for key, value in state.items()}
    copies = ((state, "online_net.0."), (other, "target_net.0."), (state, "backbone."))
    return {key: value for part, prefix in copies for key, value in prefixed(part, prefix).items()}


def half_width(state):
    """As torchvision's `width_per_group=32`: half the channels inside each block."""

    def cut(name, value):
        if "layer" not in name or "downsample" in name or value.ndim == 0:
            return value
        if "conv3" in name:
            return value[:, : value.shape[1] // 2]
        if "bn3" in name:
            return value
        value = value[: value.shape[0] // 2]
        return value[:, : value.shape[1] // 2] if "conv2" in name else value

    return {name: cut(name, value) for name, value in state.items()}


def with_nan(state):
    damaged = state["layer2.1.conv2.weight"].clone()
    damaged[0, 0, 0, 0] = float("nan")
    return state | {"layer2.1.conv2.weight": damaged}


def fp16(state):
    return {key: value.half() if value.is_floating_point() else value for key, value in state.items()}


def converted(state, suffix=".pkl", **flags):
    """What the released converter writes, as a path -> file function."""

    def write(folder):
        path = folder / f"for_detectron2{suffix}"
        arrays = {detectron2_name(key): value.numpy() for key, value in state.items()}
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps({"model": arrays, "__author__": "OpenSelfSup", **flags}))
        else:
            torch.save({key: torch.from_numpy(value) for key, value in arrays.items()}, path)
        return path

    return write


def extracted(state):
    """What a user has before the conversion."""

    def write(folder):
        torch.save({"state_dict": state}, folder / "weights.pth")
        return folder / "weights.pth"

    return write


@dataclass(frozen=True)
class Row:
    loaded: int
    """Tensors of 318 that arrive in Detectron2."""
    change: Callable = lambda state: state
    """What is wrong with the file before its conversion."""
    flags: dict = field(default_factory=lambda: {"matching_heuristics": True})
    suffix: str = ".pkl"
    given: str = "extracted"
    """What the kit is given: what was there before or after the conversion."""
    config: str = ""
    """Wrong settings of the detector."""
    silent: bool = False
    """Detectron2 says no more than of a right file."""
    stops: str | None = None
    """What the kit says; None: it loads all 318."""


PIXELS = {"loaded": 318, "silent": True, "stops": r"features differ by [\d.]+ \(tolerance .*; check INPUT"}
TABLE = {
    "right": Row(318, silent=True),
    "raw epoch file, not extracted": Row(252, raw),
    "module. prefix": Row(0, lambda s: prefixed(s, "module.")),
    "online_net.0. prefix": Row(0, lambda s: prefixed(s, "online_net.0.")),
    "without matching_heuristics": Row(0, flags={}, given="converted", stops="is converted for Detectron2"),
    "converted keys in a .pth": Row(0, suffix=".pth", given="converted", stops="begin with stem.conv1"),
    "half width": Row(142, half_width, stops=r"conv1\.weight has shape \(4, 8, 1, 1\), expected \(8, "),
    "NaN weights": Row(318, with_nan, silent=True, stops=r"layer2\.1\.conv2\.weight holds NaN"),
    "fp16": Row(318, fp16, silent=True),
    "STRIDE_IN_1X1 wrong": Row(config="MODEL: {RESNETS: {STRIDE_IN_1X1: True}}", **PIXELS),
    "BGR": Row(config="INPUT: {FORMAT: BGR}", **PIXELS),
    "wrong mean": Row(config="MODEL: {PIXEL_MEAN: [103.53, 116.28, 123.675]}", **PIXELS),
    "wrong std": Row(config="MODEL: {PIXEL_STD: [1.0, 1.0, 1.0]}", **PIXELS),
}


def arrived(model, state):
    """How many of the model's tensors equal the file's of the same place."""
    wanted = {detectron2_name(key): value for key, value in state.items()}
    count = 0
    for key, value in model.state_dict().items():
        want = wanted.get(key.removeprefix("backbone.").removeprefix("roi_heads."))
        if want is not None and want.shape == value.shape:
            count += torch.equal(value.nan_to_num(), want.to(value.dtype).nan_to_num())
    return count


def load_as_detectron2_does(cfg, path, log):
    """The model, and the lines of warnings."""
    model = detection.build(cfg)
    with log_capture.log_to(log):
        DetectionCheckpointer(model).load(str(path))
    warnings, inside = [], False
    for line in log.read_text().splitlines():
        inside = " WARNING: " in line or (inside and " INFO: " not in line)
        warnings += [line.partition(" WARNING: ")[2] or line] if inside else []
    return model, warnings


def config_of(row, folder):
    path = folder / "config.yaml"
    path.write_text(f"_BASE_: {DEMO}\n{row.config}\n")
    return path


@pytest.mark.parametrize("name", TABLE)
def test_detectron2_alone(name, state, tmp_path):
    row = TABLE[name]
    cfg = detection.load_config(config_of(row, tmp_path))
    theirs = row.change(state)
    file = converted(theirs, row.suffix, **row.flags)(tmp_path)
    model, warnings = load_as_detectron2_does(cfg, file, tmp_path / "log.txt")
    backbone = {key: value for key, value in theirs.items() if key in state} or state
    assert arrived(model, backbone) == row.loaded
    right = converted(state, matching_heuristics=True)(tmp_path)
    _, usual = load_as_detectron2_does(cfg, right, tmp_path / "right.txt")
    assert usual  # of the heads, which are new
    assert (warnings == usual) == row.silent


@pytest.mark.parametrize("name", TABLE)
def test_the_kit_stops_or_gets_it_right(name, state, places, tmp_path, capsys):
    row = TABLE[name]
    theirs = row.change(state)
    writes = {"extracted": extracted(theirs), "converted": converted(theirs, row.suffix, **row.flags)}
    file = writes[row.given](tmp_path)
    command = [
        "convert",
        "--run",
        "method",
        "--config",
        str(config_of(row, tmp_path)),
        "--weights",
        str(file),
    ]
    code = cli.main(command)
    out, error = capsys.readouterr()
    if row.stops:
        assert code == 2
        assert re.search(row.stops, error), error
        for left in ("record.json", "detectron2.pkl"):
            assert not (paths.stage_folder("method", "convert") / left).exists()
        return
    assert code == 0, error
    path = records.output(records.require("method", "convert"), "weights")
    model, _ = load_as_detectron2_does(detection.load_config(DEMO), path, tmp_path / "log.txt")
    expected = {k: v.half().to(v.dtype) if name == "fp16" else v for k, v in state.items()}
    assert arrived(model, expected) == 318
    assert ("were half precision and are float32 now" in out) == (name == "fp16")


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.config])
def test_finetuning_under_another_config_stops(name, state, places, tmp_path, drawn, capsys):
    """Weights that were proved under one config load whole under the other, too."""
    convert = ["convert", "--run", "method", "--config", str(DEMO), "--weights"]
    assert cli.main([*convert, str(extracted(state)(tmp_path))]) == 0
    wrong = str(config_of(TABLE[name], tmp_path))
    assert cli.main(["finetune", "--run", "method", "--config", wrong, "--data", str(drawn)]) == 2
    assert "the weights were proved with " in capsys.readouterr().err
    assert not (paths.stage_folder("method", "finetune") / "metrics.json").exists()


def test_resuming_with_the_weights_of_another_method(state, places, tmp_path, drawn, capsys):
    # Detectron2 alone: --resume takes what is in the folder and never opens MODEL.WEIGHTS.
    one, two = state, pretrained(1)
    cfg = detection.load_config(DEMO)
    model = detection.build(cfg)
    checkpointer = DetectionCheckpointer(model, str(tmp_path))
    checkpointer.load(str(converted(one, matching_heuristics=True)(tmp_path)))
    checkpointer.save("model_0000001")
    again = detection.build(cfg)
    other = str(converted(two, matching_heuristics=True)(tmp_path))
    DetectionCheckpointer(again, str(tmp_path)).resume_or_load(other, resume=True)
    assert (arrived(again, two), arrived(again, one)) == (53, 318)  # the counters of BN are alike

    # The kit: a finetuning that was cut short goes on with the weights that it began with, or not at all.
    convert = ["convert", "--run", "method", "--config", str(DEMO), "--weights"]
    finetune = ["finetune", "--run", "method", "--config", str(DEMO), "--data", str(drawn)]
    assert cli.main([*convert, str(extracted(one)(tmp_path))]) == 0
    assert cli.main([*finetune, "SOLVER.BASE_LR=1e9", "SOLVER.WARMUP_ITERS=0"]) == 2
    assert "lower SOLVER.BASE_LR" in capsys.readouterr().err
    assert cli.main([*convert, str(extracted(two)(tmp_path)), "--force"]) == 0
    assert cli.main([*finetune, "SOLVER.BASE_LR=1e9", "SOLVER.WARMUP_ITERS=0"]) == 2
    assert "holds a finetune of something else (input weights" in capsys.readouterr().err
