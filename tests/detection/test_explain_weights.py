"""What explain reads in the file that a Detectron2 run begins with."""

import pickle

import pytest
import torch

from benchmarks.detection.explain.command import ExplainOptions, explanation
from tests.conftest import KIT
from triplet.models.resnet import ResNet
from triplet.published.causes import SEEN
from triplet.weights import detectron2_format
from triplet.weights.detectron2_format import detectron2_name

CONFIG = KIT / "configs/detection/coco_r50_c4_2x_moco.yaml"


@pytest.fixture(scope="module")
def state():
    """A narrow ResNet-50 whose BN has seen images and whose scales were trained."""
    torch.manual_seed(0)
    values = ResNet(50, 4).state_dict()
    return {
        name: value + torch.arange(len(value)) / 10 if value.ndim == 1 else value
        for name, value in values.items()
    }


def causes(path):
    found = explanation(ExplainOptions((35.0, 31.0), "moco", config=CONFIG, weights=path))
    return {cause.name: cause for cause in found.causes}


def written(path, names, **more):
    content = {"model": {name: value.numpy() for name, value in names.items()}, **more}
    path.write_bytes(pickle.dumps(content))
    return path


def converted(state):
    return {detectron2_name(name): value for name, value in state.items()}


AUTHOR = {"__author__": "MOCO"}
RIGHT = AUTHOR | {"matching_heuristics": True}


def test_a_converted_file_excludes_nothing_but_folded_bn(tmp_path, state):
    """It is what users of MoCo's and SoCo's code have; the kit's own is alike."""
    detectron2_format.write(tmp_path / "kit.pkl", state)
    for path in (written(tmp_path / "moco.pkl", converted(state), **RIGHT), tmp_path / "kit.pkl"):
        found = causes(path)
        assert found["BN folded into the weights"].verdict == "excluded"
        assert found["weights not loaded"].verdict == found["other weights"].verdict == "possible"


@pytest.mark.parametrize(
    ("rename", "more", "said"),
    [
        (detectron2_name, AUTHOR, "lacks matching_heuristics, without which Detectron2 loads none"),
        (str, RIGHT, "lacks 159 of Detectron2's names, stem.conv1.weight first"),
        (lambda name: f"module.{detectron2_name(name)}", RIGHT, "its own begin with module.stem.conv1"),
        (detectron2_name, {"matching_heuristics": True}, "names no __author__"),
    ],
)
def test_a_file_of_which_detectron2_loads_nothing_is_seen(tmp_path, state, rename, more, said):
    path = written(tmp_path / "w.pkl", {rename(name): value for name, value in state.items()}, **more)
    found = causes(path)["weights not loaded"]
    assert found.verdict == SEEN
    assert said in found.text


def test_names_of_the_whole_model_need_no_matching(tmp_path, state):
    names = {f"backbone.{name}": value for name, value in converted(state).items()}
    assert causes(written(tmp_path / "w.pkl", names, **AUTHOR))["weights not loaded"].verdict == "possible"


def test_bn_of_a_converted_file_tells_what_it_is(tmp_path, state):
    initial = converted(ResNet(50, 4).state_dict())
    assert causes(written(tmp_path / "w.pkl", initial, **RIGHT))["other weights"].verdict == SEEN
    bare = {name: value for name, value in converted(state).items() if "running" not in name}
    assert causes(written(tmp_path / "w.pkl", bare, **RIGHT))["BN folded into the weights"].verdict == SEEN


def test_a_log_that_loaded_every_tensor_counts_for_more(tmp_path, state):
    log = KIT / "tests/detection/cases/logs/detectron2_log.txt"
    path = written(tmp_path / "w.pkl", state, **RIGHT)
    found = explanation(ExplainOptions((35.0, 31.0), "moco", log=log, weights=path))
    assert {c.name: c.verdict for c in found.causes}["weights not loaded"] == "excluded"
