"""The backbone comes out of what each project saves, with its names as that project's code gives them.

Where a file holds several networks, the one that its project evaluates comes out, and that is said.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from tests.support.backbones import same, see_images
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.pull.backbone import describe
from triplet.weights import read_backbone
from triplet.weights.initial import load_initial

ONES = torch.ones(2, 2)
"""A tensor of a head."""


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return see_images(ResNet(18, 8).state_dict())


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "weights.pth"
        torch.save(content, path)
        return path

    return write


def prefixed(prefix, state):
    return {prefix + k: v.clone() for k, v in state.items()}


def other(state):
    return {k: v + 1 for k, v in state.items()}


def children(state):
    """Names in an ``nn.Sequential`` of a ResNet's children, as lightly's examples have."""
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{numbers[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in state.items()}


def two(prefix, state, copy):
    """A network under a prefix, and another one under that of its copy."""
    return {**prefixed(prefix, state), **prefixed(copy, other(state))}


ALONE = {
    "dino, one network": lambda s: {"student": prefixed("module.backbone.", s), "epoch": 3},
    "dino, released backbone": lambda s: s,
    "vissl": lambda s: {
        "phase_idx": 1,
        "classy_state_dict": {
            "base_model": {
                "model": {"trunk": prefixed("_feature_blocks.", s), "heads": {"0.clf.weight": ONES}}
            }
        },
    },
    "barlow twins": lambda s: {
        "epoch": 1000,
        "model": {
            **prefixed("module.backbone.", s),
            "module.projector.0.weight": ONES,
            "module.bn.running_mean": torch.ones(2),
        },
        "optimizer": {"state": {0: {"mu": ONES}}},
    },
    "torchvision": lambda s: {**s, "fc.weight": ONES, "fc.bias": torch.ones(2)},
    "lightly's benchmarks, simclr": lambda s: {
        "state_dict": {
            **prefixed("backbone.", s),
            "projection_head.layers.0.weight": ONES,
            "online_classifier.classification_head.weight": ONES,
        }
    },
    "a head with names like a backbone's": lambda s: {
        **prefixed("module.", s),
        "module.projector.bn1.weight": ONES,
    },
    "swav": lambda s: {**prefixed("module.", s), "module.projection_head.0.weight": ONES},
    "mmpretrain's simsiam": lambda s: {
        "meta": {"mmengine_version": "0.10"},
        "state_dict": {
            **prefixed("backbone.", s),
            "neck.fc0.weight": ONES,
            "head.predictor.fc0.weight": ONES,
            "data_preprocessor.mean": ONES,
        },
    },
    "compiled": lambda s: {"model": prefixed("_orig_mod.module.", s)},
    "parameters": lambda s: {
        k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()
    },
    "shapes by name": lambda s: {"model": s, "shapes": {k: tuple(v.shape) for k, v in s.items()}},
    "six dicts": lambda s: {"a": {"b": {"c": {"d": {"e": {"f": s}}}}}},
    "numbered children, and a numbered head": lambda s: {
        "state_dict": {**prefixed("backbone.", children(s)), "0.weight": ONES, "1.weight": ONES}
    },
    "keys in bytes": lambda s: {k.encode(): v for k, v in s.items()},
    "odd keys": lambda s: {**s, 3: torch.ones(1), b"bytes": torch.ones(1), ("a", None): 1},
}
"""Files with one network."""
SEVERAL = {
    "dino": (
        lambda s: {
            "student": {**prefixed("module.backbone.", other(s)), "module.head.mlp.0.weight": ONES},
            "teacher": {**prefixed("backbone.", s), "head.mlp.0.weight": ONES},
            "args": argparse.Namespace(arch="resnet50", lr=0.03),
        },
        "'teacher' is taken, not 'student'",
    ),
    "torchvision's references with an average": (
        lambda s: {
            "model": {**other(s), "fc.weight": ONES},
            "model_ema": {
                **prefixed("module.", s),
                "module.fc.weight": ONES,
                "n_averaged": torch.tensor(3),
            },
            "args": argparse.Namespace(model="resnet50"),
        },
        "'model_ema' is taken, not 'model'",
    ),
    "timm with an average": (
        lambda s: {"state_dict": other(s), "state_dict_ema": s, "arch": "resnet50"},
        "'state_dict_ema' is taken, not 'state_dict'",
    ),
    "vissl's moco": (
        lambda s: {
            "loss": prefixed("moco_encoder.trunk._feature_blocks.", other(s)),
            "classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", s)}}},
        },
        "'classy_state_dict.base_model.model.trunk' is taken, not 'loss'",
    ),
    "vissl with an average": (
        lambda s: {
            "classy_state_dict": {
                name: {"model": {"trunk": prefixed("_feature_blocks.", each), "heads": {}}}
                for name, each in (("base_model", s), ("ema_model", other(s)))
            }
        },
        "'classy_state_dict.base_model.model.trunk' is taken, "
        "not 'classy_state_dict.ema_model.model.trunk'",
    ),
    "byol with networks of its own": (
        lambda s: {
            "online_network_state_dict": {
                **prefixed("encoder.", children(s)),
                "projetion.net.0.weight": ONES,
            },
            "target_network_state_dict": prefixed("encoder.", children(other(s))),
        },
        "'online_network_state_dict' is taken, not 'target_network_state_dict'",
    ),
    "byol-pytorch": (
        lambda s: two("online_encoder.net.", s, "target_encoder.net."),
        "'online_encoder.net' is taken, not 'target_encoder.net'",
    ),
    "an online and a target network": (
        lambda s: two("module.online_network.", s, "module.target_network."),
        "'module.online_network' is taken, not 'module.target_network'",
    ),
    "lightly's examples, byol": (
        lambda s: {
            "state_dict": {
                **two("backbone.", children(s), "backbone_momentum."),
                "projection_head.layers.0.weight": ONES,
            }
        },
        "'backbone' is taken, not 'backbone_momentum'",
    ),
    "lightly's examples, dino": (
        lambda s: {"state_dict": two("teacher_backbone.", s, "student_backbone.")},
        "'teacher_backbone' is taken, not 'student_backbone'",
    ),
    "lightly's benchmarks, dino": (
        lambda s: {"state_dict": two("backbone.", s, "student_backbone.")},
        "'backbone' is taken, not 'student_backbone'",
    ),
    "lightly's benchmarks, byol": (
        lambda s: {"state_dict": two("backbone.", s, "teacher_backbone.")},
        "'backbone' is taken, not 'teacher_backbone'",
    ),
    "lightly's benchmarks, moco v2": (
        lambda s: {"state_dict": two("backbone.", s, "key_backbone.")},
        "'backbone' is taken, not 'key_backbone'",
    ),
    "lightly's benchmarks, moco with two networks of queries": (
        lambda s: {"state_dict": two("backbone.", s, "query_backbone.")},
        "'backbone' is taken, not 'query_backbone'",
    ),
    "a query and a key": (
        lambda s: {"state_dict": two("query_backbone.", s, "key_backbone.")},
        "'query_backbone' is taken, not 'key_backbone'",
    ),
    "a student and a teacher in one dict": (
        lambda s: {"state_dict": two("teacher.", s, "student.")},
        "'teacher' is taken, not 'student'",
    ),
    "openselfsup without the copy": (
        lambda s: {"state_dict": two("online_net.0.", s, "target_net.0.")},
        "'online_net.0' is taken, not 'target_net.0'",
    ),
    "a state dict and another one": (
        lambda s: {"ema": other(s), "state_dict": s},
        "'state_dict' is taken, not 'ema'",
    ),
    "solo-learn": (
        lambda s: {"state_dict": {**two("backbone.", s, "momentum_backbone."), "classifier.weight": ONES}},
        "'backbone' is taken, not 'momentum_backbone'",
    ),
    "solo-learn before 1.0.6": (
        lambda s: {"state_dict": {**two("encoder.", s, "momentum_encoder."), "projector.0.weight": ONES}},
        "'encoder' is taken, not 'momentum_encoder'",
    ),
    "moco": (
        lambda s: {
            "state_dict": {**two("module.encoder_q.", s, "module.encoder_k."), "module.queue": ONES}
        },
        "'module.encoder_q' is taken, not 'module.encoder_k'",
    ),
    "pixpro": (
        lambda s: {"model": two("module.encoder.", s, "module.encoder_k."), "epoch": 100},
        "'module.encoder' is taken, not 'module.encoder_k'",
    ),
    "mean shift": (
        lambda s: {"state_dict": two("encoder_q.", s, "encoder_t.")},
        "'encoder_q' is taken, not 'encoder_t'",
    ),
    "moco v3": (
        lambda s: {
            "arch": "resnet50",
            "state_dict": {
                **two("module.base_encoder.", s, "module.momentum_encoder."),
                "module.base_encoder.fc.0.weight": ONES,
                "module.predictor.0.weight": ONES,
            },
            "scaler": {"scale": 65536.0},
        },
        "'module.base_encoder' is taken, not 'module.momentum_encoder'",
    ),
    "mmpretrain's byol": (
        lambda s: {
            "state_dict": {
                **two("backbone.", s, "target_net.module.0."),
                "target_net.steps": torch.tensor(1),
            }
        },
        "'backbone' is taken, not 'target_net.module.0'",
    ),
    "mmpretrain's moco": (
        lambda s: {"state_dict": {**two("backbone.", s, "encoder_k.module.0."), "queue": ONES}},
        "'backbone' is taken, not 'encoder_k.module.0'",
    ),
    "mmpretrain's moco v3": (
        lambda s: {"state_dict": two("backbone.", s, "momentum_encoder.module.0.")},
        "'backbone' is taken, not 'momentum_encoder.module.0'",
    ),
}
"""Files with several networks, and what is said of them."""


@pytest.mark.parametrize("wrap", ALONE.values(), ids=ALONE)
def test_what_others_wrap_around_a_backbone_is_looked_into(file, state, wrap):
    found = read_backbone(file(wrap(state)))
    assert same(found, state)
    assert found.choice == ""


@pytest.mark.parametrize(("wrap", "choice"), SEVERAL.values(), ids=SEVERAL)
def test_of_several_networks_the_one_that_is_evaluated_is_taken(file, state, wrap, choice):
    found = read_backbone(file(wrap(state)))
    assert same(found, state)
    assert found.choice == choice


class HistoryBuffer:
    """As mmengine's: its state has arrays of NumPy, and the methods of the class."""

    def __init__(self):
        self.log, self.methods = np.array([0.5, 0.25]), {"min": HistoryBuffer.least}

    def least(self):
        return self.log.min()


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_what_a_training_logs_beside_the_weights_is_skipped(tmp_path, state, monkeypatch, old):
    """A checkpoint of mmengine's as it is, and a number of NumPy's; nothing of it is made."""
    names = ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(HistoryBuffer, "__module__", names[-1])
    monkeypatch.setattr(sys.modules[names[-1]], "HistoryBuffer", HistoryBuffer, raising=False)
    content = {
        "meta": {"mmengine_version": "0.10", "best": np.float64(0.5), "work_dir": Path("runs")},
        "state_dict": prefixed("backbone.", state),
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    for name in names:
        monkeypatch.delitem(sys.modules, name)
    assert same(read_backbone(tmp_path / "w.pth"), state)


def test_arrays_of_numpy_are_no_weights(file, state):
    with pytest.raises(KitError, match="holds arrays of NumPy, not tensors"):
        read_backbone(file({"state_dict": {name: value.numpy() for name, value in state.items()}}))


def test_several_wrapped_backbones_are_named(file, state):
    with pytest.raises(KitError, match=r"holds ResNets in 'a', 'b\.c'; save the one"):
        read_backbone(file({"a": state, "b": {"c": other(state)}}))
    with pytest.raises(KitError, match=r"in 'a\.student', 'b\.teacher'; save"):  # of two trainings
        read_backbone(file({"a": {"student": state}, "b": {"teacher": other(state)}}))


def test_what_lies_beside_numbered_children_is_told(file, state):
    found = read_backbone(
        file({"state_dict": {**prefixed("backbone.", children(state)), "x.weight": ONES}})
    )
    assert found.ignored == ["x.weight"]


def test_the_choice_is_said_where_weights_come_in(file, capsys):
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8)
    backbone = networks.online.backbone.state_dict()
    path = file({"teacher": prefixed("backbone.", backbone), "student": prefixed("backbone.", backbone)})
    assert "('teacher' is taken, not 'student')" in load_initial(path, networks)
    with pytest.raises(KitError, match="expected a ResNet-50"):
        describe(path, untrained=False)
    assert "pull: weights.pth: 'teacher' is taken, not 'student'" in capsys.readouterr().out
