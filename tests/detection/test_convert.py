"""Conversion into a real Detectron2 model, and every way in which weights silently fail to arrive."""

import pickle
import re

import numpy as np
import pytest
import torch

from benchmarks.detection import model as detection
from benchmarks.detection import proof
from tests.conftest import KIT
from triplet import cli, records
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.training import checkpoint
from triplet.weights import detectron2_format, read_backbone

DEMO = KIT / "configs" / "detection" / "demo.yaml"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint whose BN statistics are not the default."""
    torch.manual_seed(0)
    networks = Networks(50, 8, 8, 8).train()
    with torch.no_grad():
        networks.online(torch.randn(2, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    checkpoint.save(path, networks, None, 1, 1)
    return path


def convert(weights, *extra, config=DEMO):
    return cli.main(
        ["convert", "--run", "method", "--config", str(config), "--weights", str(weights), *extra]
    )


@pytest.fixture
def pkl(tmp_path, weights):
    path = tmp_path / "w.pkl"
    detectron2_format.write(path, read_backbone(weights).state)
    return path


def changed(path, change):
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content))
    return path


def test_convert_leaves_a_record_with_the_proof(places, weights, capsys):
    assert convert(weights) == 0
    record = records.require("method", "convert")
    assert record.results["tensors"] == 318
    assert record.results["feature_difference"] < 1e-4
    said = capsys.readouterr().out
    assert "318 tensors, all equal" in said
    assert f"for {DEMO}" not in said  # of what is chosen alone
    arrays = detectron2_format.read(records.output(record, "weights"))
    state = torch.load(weights, weights_only=True)["networks"]
    assert record.results["ignored"] == len(state) - 318
    assert (record.results["untrained"], record.results["format"]) == (False, "kit")
    assert record.config == {
        "model": "GeneralizedRCNN",
        "backbone": "build_resnet_backbone",
        **proof.pixel_path(detection.load_config(DEMO)),
    }
    for name, key in [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer1.0.downsample.1.bias", "res2.0.shortcut.norm.bias"),
        ("layer4.2.bn3.running_mean", "res5.2.conv3.norm.running_mean"),
    ]:
        assert np.array_equal(arrays[key], state[f"online.backbone.{name}"].numpy())


NARROW = "STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, RES2_OUT_CHANNELS: 32"


@pytest.mark.parametrize(
    "kind",
    ["coco_r50_c4_1x", "coco_r50_fpn_1x", "coco_r50_retinanet_1x", "keypoint_r50_fpn_2x", "voc_r50_c4_24k"],
)
def test_the_weights_arrive_in_every_kind_of_detector(places, weights, kind):
    """The kit's configs as they are, but narrow."""
    config = places / "narrow.yaml"
    config.write_text(
        f"_BASE_: {KIT}/configs/detection/{kind}_moco.yaml\n"
        f"MODEL: {{RESNETS: {{{NARROW}}}, FPN: {{OUT_CHANNELS: 32}}}}\n"
    )
    assert convert(weights, config=config) == 0
    results = records.require("method", "convert").results
    assert results["tensors"] == 318
    assert results["feature_difference"] < 1e-4
    wrong = places / "wrong.yaml"
    wrong.write_text(f"_BASE_: {config}\nINPUT: {{FORMAT: BGR}}\n")
    assert convert(weights, "--force", config=wrong) == 2


def test_pretrained_weights_are_refused_as_initial_ones(places, weights, capsys):
    command = ["convert", "--run", "seed1/random", "--config", str(DEMO), "--weights", str(weights)]
    assert cli.main(command) == 2
    assert (
        "BN has seen images, but the method seed1/random is of initial weights" in capsys.readouterr().err
    )


def test_another_width_is_refused(places, tmp_path, capsys):
    checkpoint.save(tmp_path / "c.pth", Networks(50, 16, 8, 8), None, 1, 1)
    assert convert(tmp_path / "c.pth") == 2
    assert re.search(r"base width 16, but .* builds 8", capsys.readouterr().err)


def test_another_depth_is_refused(places, tmp_path, capsys):
    checkpoint.save(tmp_path / "c.pth", Networks(18, 16, 8, 8), None, 1, 1)
    assert convert(tmp_path / "c.pth") == 2
    assert "a ResNet-18" in capsys.readouterr().err


def test_default_statistics_are_refused_in_trained_weights(places, tmp_path, capsys):
    checkpoint.save(tmp_path / "c.pth", Networks(50, 8, 8, 8), None, 5, 1)
    assert convert(tmp_path / "c.pth") == 2
    assert "every BN statistic is still its default" in capsys.readouterr().err
    checkpoint.save(tmp_path / "c.pth", Networks(50, 8, 8, 8), None, 0, 0)
    assert convert(tmp_path / "c.pth", "--force") == 0
    assert records.require("method", "convert").results["untrained"]
    state = ResNet(50, 8).state_dict()
    torch.save({"student": state, "teacher": state}, tmp_path / "w.pth")
    given = [
        "convert",
        "--run",
        "seed1/random",
        "--config",
        str(DEMO),
        "--weights",
        str(tmp_path / "w.pth"),
    ]
    assert cli.main(given) == 0, "the method says that they are untrained, the file does not"
    assert records.require("seed1/random", "convert").results["untrained"]
    assert "convert: w.pth: 'teacher' is taken, not 'student'" in capsys.readouterr().out
    assert cli.main([*given[:-1], str(tmp_path / "c.pth")]) == 2
    assert "input weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("matching_heuristics"),
        lambda c: c.update(model={f"module.{k}": v for k, v in c["model"].items()}),
        lambda c: c.update(model={f"online_net.0.{k}": v for k, v in c["model"].items()}),
        lambda c: c["model"].pop("res5.0.conv1.weight"),
        lambda c: c["model"].pop("stem.conv1.norm.bias"),
        lambda c: c["model"].update({"res3.0.conv1.weight": np.zeros((8, 64, 1, 1), np.float32)}),
    ],
    ids=["no heuristics", "module.", "online_net.0.", "no res5 tensor", "no stem tensor", "half width"],
)
def test_what_detectron2_only_warns_of_stops(pkl, change):
    model = detection.build(detection.load_config(DEMO))
    with pytest.raises(KitError):
        proof.load_and_check(model, changed(pkl, change))


def test_a_right_file_passes_and_fills_all(pkl):
    assert proof.load_and_check(detection.build(detection.load_config(DEMO)), pkl) == 318


def test_code_in_a_pkl_does_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("ran",)

    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(pickle.UnpicklingError, match="print is not allowed"):
        detectron2_format.read(tmp_path / "w.pkl")
