"""MSRA's R-50.pkl: Caffe2's names, read without running it, and shown to arrive in Detectron2."""

import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.linear.backbone import load_backbone
from tests.conftest import KIT
from tests.support.backbones import caffe2_name
from triplet import cli, records
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.weights import arrays, detectron2_format, read_backbone
from triplet.weights.caffe2 import EPSILON, read_caffe2
from triplet.weights.initial import load_initial

from detectron2.checkpoint.c2_model_loading import convert_basic_c2_names


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    state = ResNet(50, 8).state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.fill_(1 - EPSILON)
        elif value.ndim == 1 and "running" not in name:
            value.uniform_(0.5, 1.0)
    return state


@pytest.fixture
def file(state, tmp_path):
    def write(change=lambda content: content):
        content = {
            caffe2_name(name): value.numpy()
            for name, value in state.items()
            if "running" not in name and "num_batches" not in name
        }
        content |= {
            "fc1000_w": np.ones((10, 256), np.float32),
            "fc1000_b": np.zeros(10, np.float32),
            "conv1_b": np.zeros(8, np.float32),
            "conv1_w_momentum": np.zeros((8, 3, 7, 7), np.float32),
            "iter": np.array([90_000]),
        }
        (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(change(content), protocol=2))
        return tmp_path / "R-50.pkl"

    return write


@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"blobs": content}])
def test_all_tensors_arrive_under_torchvisions_names(file, state, wrap):
    found = read_backbone(file(wrap))
    assert (found.format, found.depth, found.width, found.caffe2) == ("caffe2", 50, 8, True)
    assert found.ignored == ["fc.bias", "fc.weight"]
    for name, value in state.items():
        assert torch.equal(found.state[name], value), name
    assert found.state["layer1.0.bn1.running_var"][0] == torch.tensor(1 - 1e-5)


def test_texts_of_python_2_are_latin_1(tmp_path):
    (tmp_path / "R-50.pkl").write_bytes(b"\x80\x02}U\x04caf\xe9K\x01s.")
    assert read_caffe2(tmp_path / "R-50.pkl") == {}


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol_are_read(tmp_path, protocol):
    content = {"a": np.arange(6.0).reshape(2, 3), "b": [np.array([7, 200], np.uint8), "caf\xe9", None]}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    found = arrays.read(tmp_path / "w.pkl", "latin1")
    assert np.array_equal(found["a"], content["a"])
    assert found["b"][0].tolist() == [7, 200]
    assert found["b"][1:] == ["caf\xe9", None]


def test_a_name_is_allowed_of_its_own_module_alone(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"cos\ndtype\n.")
    with pytest.raises(pickle.UnpicklingError, match=r"os\.dtype is not allowed"):
        arrays.read(tmp_path / "w.pkl")


@pytest.mark.parametrize("model", [{3: np.ones(2)}, {"a": "text"}, {"a": np.array(["x"])}, [np.ones(2)]])
def test_a_file_for_detectron2_has_numbers_by_name(tmp_path, model):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": model}))
    with pytest.raises(pickle.UnpicklingError, match=r"array of numbers by name|no .model. in it"):
        detectron2_format.read(tmp_path / "w.pkl")


def test_a_file_for_detectron2_takes_anothers_place_whole(tmp_path):
    path, before = tmp_path / "w.pkl", tmp_path / "before.pkl"
    for value in (1.0, 2.0):
        detectron2_format.write(path, {"conv1.weight": torch.tensor([value])})
        if not before.exists():
            before.hardlink_to(path)
    assert [detectron2_format.read(each)["stem.conv1.weight"] for each in (before, path)] == [1, 2]


def test_the_names_are_detectron2s(file):
    """Where Detectron2's own conversion of names puts each tensor."""
    from triplet.weights.caffe2 import _name
    from triplet.weights.detectron2_format import detectron2_name

    names = [name for name in pickle.loads(file().read_bytes()) if not name.endswith("momentum")]
    for ours, theirs in zip(map(_name, names), convert_basic_c2_names(names), strict=True):
        assert theirs in (detectron2_name(ours), ours, f"fc1000.{ours[3:]}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c | {"res3_1_branch2b_w": "text"}, r"layer2\.1\.conv2\.weight is missing"),
        (lambda c: c | {"res2_0_branch2a_w": np.full((8, 8, 1, 1), np.nan)}, "NaN or infinite"),
        (lambda c: [1], "expected arrays by name, found a list"),
        (lambda c: {}, "no ResNet"),
    ],
)
def test_what_is_wrong_is_said(file, change, message):
    with pytest.raises(KitError, match=message):
        read_backbone(file(change))


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_code_in_it_does_not_run(file, capsys):
    with pytest.raises(KitError, match=r"__builtin__\.print is not allowed"):
        read_backbone(file(lambda c: c | {"evil": Evil()}))
    assert "ran" not in capsys.readouterr().out


@given(place=st.floats(0, 1), data=st.binary(min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_one_line(tmp_path_factory, place, data):
    path = tmp_path_factory.mktemp("damaged") / "R-50.pkl"
    content = bytearray(pickle.dumps({"conv1_w": np.ones((4, 3, 7, 7), np.float32)}, protocol=2))
    start = int(place * len(content))
    content[start : start + len(data)] = data
    path.write_bytes(content)
    with pytest.raises(KitError) as caught:
        read_backbone(path)
    assert "\n" not in str(caught.value)


def test_no_pretraining_and_no_linear_benchmark_starts_from_it(file):
    with pytest.raises(KitError, match="is for BGR images"):
        load_initial(file(), Networks(50, 8, 16, 8))
    with pytest.raises(KitError, match=r"is for BGR images.*supervised-torchvision"):
        load_backbone(file())


def config(tmp_path, **changes):
    """Detectron2's own C4 for MSRA's weights, a quarter of a quarter wide."""
    settings = {
        "STRIDE": "True",
        "FORMAT": "BGR",
        "MEAN": "[103.53, 116.28, 123.675]",
        "STD": "[1., 1., 1.]",
        **changes,
    }
    path = tmp_path / "msra.yaml"
    path.write_text(
        "MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n  MASK_ON: True\n  BACKBONE: {FREEZE_AT: 0}\n"
        f"  PIXEL_MEAN: {settings['MEAN']}\n  PIXEL_STD: {settings['STD']}\n"
        "  RESNETS: {NORM: BN, STRIDE_IN_1X1: %s, STEM_OUT_CHANNELS: 8, WIDTH_PER_GROUP: 8, "
        "RES2_OUT_CHANNELS: 32}\n"
        "  ROI_HEADS: {NAME: Res5ROIHeadsExtraNorm}\n"
        "  ROI_MASK_HEAD: {NAME: MaskRCNNConvUpsampleHead, NUM_CONV: 0, CONV_DIM: 32}\n"
        "  RPN: {PRE_NMS_TOPK_TEST: 60, POST_NMS_TOPK_TEST: 10}\n"
        "INPUT: {FORMAT: %s}\n" % (settings["STRIDE"], settings["FORMAT"])
    )
    return path


def test_weights_convert_where_detectron2_treats_images_alike(places, file, tmp_path):
    command = [
        "convert",
        "--run",
        "supervised",
        "--weights",
        str(file()),
        "--config",
        str(config(tmp_path)),
    ]
    assert cli.main(command) == 0
    record = records.require("supervised", "convert")
    assert record.results["format"] == "caffe2"
    assert record.results["tensors"] == 318
    assert record.results["feature_difference"] < 1e-4


@pytest.mark.parametrize("changes", [{"FORMAT": "RGB"}, {"STRIDE": "False"}, {"STD": "[58.4, 57.1, 57.4]"}])
def test_under_another_config_it_is_refused(places, file, tmp_path, capsys, changes):
    path = config(tmp_path, **changes)
    assert cli.main(["convert", "--run", "s", "--weights", str(file()), "--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert "features differ by" in error
    assert "check INPUT.FORMAT" in error  # it is the right sibling already, and wrong


def test_the_config_for_the_other_colour_order_is_named(places, file, state, tmp_path, capsys):
    """c4_msra.yaml and c4.yaml, as the kit's own are named."""
    msra = config(tmp_path).rename(tmp_path / "c4_msra.yaml")
    rgb = tmp_path / "c4.yaml"
    rgb.write_text(f"_BASE_: [{msra}, {KIT}/configs/detection/images_rgb.yaml]\n")
    torch.save(state, tmp_path / "rgb.pth")
    for weights, wrong, right in ((file(), rgb, msra), (tmp_path / "rgb.pth", msra, rgb)):
        command = ["convert", "--run", "s", "--weights", str(weights), "--config"]
        assert cli.main([*command, str(wrong), "--force"]) == 2
        assert f"use --config {right} --force" in capsys.readouterr().err
        assert cli.main([*command, str(right), "--force"]) == 0


def test_the_weights_choose_the_colour_order_of_the_config(places, file, capsys):
    """Of a method that is of RGB images otherwise; this file is too narrow for its config."""
    assert cli.main(["convert", "--run", "triplet", "--weights", str(file())]) == 2
    assert re.search(r"R-50\.pkl for \S+_msra\.yaml\n", capsys.readouterr().out)


def test_a_file_that_is_converted_already_is_named(state, tmp_path):
    detectron2_format.write(tmp_path / "converted.pkl", state)
    with pytest.raises(KitError, match="is converted for Detectron2 already"):
        read_backbone(tmp_path / "converted.pkl")
