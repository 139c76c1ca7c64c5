"""Each format that a row of the table comes in, and each way in which a file can be wrong."""

import bz2
import fractions
import gzip
import pickle
import zipfile

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.backbones import same
from triplet.errors import KitError
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.training import checkpoint
from triplet.weights import read_backbone
from triplet.weights.read import FORMAT


@pytest.fixture
def file(tmp_path):
    def write(content, **options):
        path = tmp_path / "weights.pth"
        torch.save(content, path, **options)
        return path

    return write


def prefixed(state, *prefixes):
    return {p + k: v.clone() for p in prefixes for k, v in state.items()}


def raw(state):
    """What the authors' run saves: see section 2 of the recipe."""
    other = {k: v + 1 for k, v in state.items()}
    return {
        "meta": {"epoch": 940, "iter": 192000, "mmcv_version": "0.3"},
        "state_dict": {
            **prefixed(state, "online_net.0.", "backbone."),
            **prefixed(other, "target_net.0."),
            "online_net.1.fc0.weight": torch.ones(4, 4),
            "target_net.1.fc0.weight": torch.ones(4, 4),
            "head.predictor.fc0.weight": torch.ones(4, 4),
        },
        "optimizer": {"state": {}, "param_groups": []},
    }


def test_authors_raw_epoch_file(file, state):
    found = read_backbone(file(raw(state)))
    assert same(found, state)
    assert (found.format, found.depth, found.width) == ("openselfsup raw", 50, 8)
    assert "head.predictor.fc0.weight" in found.ignored
    assert found.choice == "'backbone' is taken, not 'online_net.0', 'target_net.0'"


def test_raw_file_saved_under_ddp(file, state):
    content = raw(state)
    content["state_dict"] = prefixed(content["state_dict"], "module.")
    assert same(read_backbone(file(content)), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_extracted_release_and_zoo_file(file, state, zipped):
    content = {"state_dict": state, "author": "OpenSelfSup"}
    found = read_backbone(file(content, _use_new_zipfile_serialization=zipped))
    assert same(found, state)
    assert found.format == "extracted"


def test_zoo_file_without_batch_counters(file, state):
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    found = read_backbone(file({"state_dict": old}))
    assert found.state.keys() == state.keys()
    assert not any(v for k, v in found.state.items() if k.endswith("num_batches_tracked"))


def test_torchvision(file):
    theirs = torchvision.models.resnet50().state_dict()
    found = read_backbone(file(theirs))
    assert (found.format, found.width, found.ignored) == ("torchvision", 64, ["fc.bias", "fc.weight"])
    assert len(found.state) == 318


@pytest.mark.parametrize("iteration", [0, 7])
def test_own_checkpoint(tmp_path, iteration):
    networks = Networks(50, 8, 16, 8)
    torch.nn.init.constant_(networks.target.backbone.conv1.weight, 3)
    checkpoint.save(tmp_path / "c.pth", networks, None, iteration, 1)
    found = read_backbone(tmp_path / "c.pth")
    assert same(found, networks.online.backbone.state_dict())
    assert (found.format, found.untrained) == ("kit", iteration == 0)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened_and_counted(file, state, half):
    narrow = {k: v.to(half) if v.is_floating_point() else v for k, v in state.items()}
    found = read_backbone(file({**narrow, "fc.weight": torch.ones(2, 2, dtype=half)}))
    assert found.widened == sum(v.is_floating_point() for v in state.values())
    for name, value in state.items():
        assert torch.equal(found.state[name], narrow[name].to(value.dtype)), name


def test_any_layout_of_memory_is_read_as_the_usual_one(file, state):
    last = {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in state.items()}
    found = read_backbone(file(last))
    assert same(found, state)
    assert all(value.is_contiguous() for value in found.state.values())


def test_statistics_are_the_default_until_one_of_them_moves(file):
    state = ResNet(18, 8).state_dict()
    assert read_backbone(file(state)).default_statistics
    for name in ("bn1.running_mean", "layer4.1.bn2.running_mean", "layer2.0.downsample.1.running_var"):
        assert not read_backbone(file(damaged(state, name, 0.75))).default_statistics


def without(state, name):
    return {k: v for k, v in state.items() if k != name}


def damaged(state, name, value):
    copy = {k: v.clone() for k, v in state.items()}
    copy[name].view(-1)[0] = value
    return copy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "layer3.4.bn2.bias"), r"layer3\.4\.bn2\.bias is missing"),
        (lambda s: damaged(s, "layer1.0.conv1.weight", float("nan")), "holds NaN or infinite"),
        (lambda s: damaged(s, "layer1.0.conv1.weight", -1e37), r"conv1.weight has a value of 1e\+37"),
        (lambda s: damaged(s, "layer4.2.conv3.weight", float("inf")), "holds NaN or infinite"),
        (
            lambda s: {**s, "bn1.weight": torch.ones(2, 4)},
            r"bn1\.weight has shape \(2, 4\), expected \(8,\)",
        ),
        (
            lambda s: prefixed(s, "module.") | {"module.bn1.bias": torch.empty(8, device="meta")},
            r"module\.bn1\.bias is on the meta device",
        ),
        (lambda s: damaged(s, "bn1.running_var", 0.0), r"bn1\.running_var must be positive"),
        (lambda s: {**s, "layer2.0.conv2.weight": torch.ones(2, 2)}, r"has shape \(2, 2\), expected"),
        (lambda s: {**s, "bn1.weight": torch.ones(8, dtype=torch.int8)}, r"is torch\.int8, expected"),
        (lambda s: {**s, "layer5.0.conv1.weight": torch.ones(1)}, "a ResNet-50 does not have"),
        (lambda s: {k: v for k, v in s.items() if "layer4" not in k}, "nor a whole ResNet-50"),
        (lambda s: prefixed(s, "q.", "k."), r"holds 2 ResNets \('k\.', 'q\.'\)"),
        (lambda s: {"a.weight": torch.ones(1)}, "no ResNet in it; its tensors begin with a.weight"),
        (
            lambda s: {"epoch": 1, "state_dict": {"b.weight": torch.ones(1)}},
            "its tensors begin with b.weight",
        ),
        (lambda s: {"state_dict": {}}, "holds no tensors"),
        (lambda s: [1, 2], "expected a state dict, found a list"),
    ],
)
def test_what_is_wrong_is_said(file, state, change, message):
    with pytest.raises(KitError, match=message):
        read_backbone(file(change(state)))


def test_copies_of_which_one_is_not_whole_are_refused(file, state):
    content = raw(state)
    del content["state_dict"]["backbone.layer2.0.conv1.weight"]
    with pytest.raises(KitError, match="should be copies and differ"):
        read_backbone(file(content))


@given(place=st.floats(0, 1), length=st.integers(0, 40), data=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_any_damage_is_one_line_or_harmless(tmp_path_factory, place, length, data):
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    torch.save({"state_dict": {"conv1.weight": torch.ones(4, 3, 7, 7)}}, path)
    content = bytearray(path.read_bytes())
    start = int(place * len(content))
    content[start : start + length] = bytes(data.randrange(256) for _ in range(length // 2))
    path.write_bytes(content)
    with pytest.raises(KitError) as caught:  # it is no ResNet even when unharmed
        read_backbone(path)
    assert "\n" not in str(caught.value)


def test_a_kit_file_without_networks(file):
    with pytest.raises(KitError, match="expected a state dict, found a NoneType"):
        read_backbone(file({"format": FORMAT, "step": 3}))


def test_copies_that_differ_are_refused(file, state):
    content = raw(state)
    content["state_dict"]["backbone.conv1.weight"] += 1
    with pytest.raises(KitError, match="should be copies and differ"):
        read_backbone(file(content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "is a web page"),
        (b"  <html>", "is a web page"),
        (b"", "not a PyTorch file"),
        (b"PK\x03\x04 cut", "not a PyTorch file"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(KitError, match=message):
        read_backbone(tmp_path / "w.pth")


def test_missing_file(tmp_path):
    with pytest.raises(KitError, match="no weights at"):
        read_backbone(tmp_path / "none.pth")


class Evil:
    ran = False

    def __reduce__(self):
        return exec, ("from tests.weights.test_read import Evil; Evil.ran = True",)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))]
)
def test_code_in_a_file_does_not_run(tmp_path, save):
    save({"state_dict": {"conv1.weight": torch.ones(1)}, "meta": Evil()}, tmp_path / "w.pth")
    with pytest.raises(KitError, match="not a PyTorch file of tensors"):
        read_backbone(tmp_path / "w.pth")
    assert not Evil.ran


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_changes_no_weight(flippable, place, bit):
    """It is refused, or lies where nothing is stored."""
    path, content, state = flippable
    spoilt = bytearray(content)
    spoilt[int(place * len(content))] ^= 1 << bit
    path.write_bytes(spoilt)
    try:
        found = read_backbone(path)
    except KitError:
        return
    assert same(found, state)


@pytest.fixture(scope="module")
def flippable(tmp_path_factory):
    """A file of weights, its bytes, and what it holds."""
    torch.manual_seed(0)
    state = ResNet(18, 8).state_dict()
    path = tmp_path_factory.mktemp("flipped") / "weights.pth"
    torch.save({"state_dict": state}, path)
    return path, path.read_bytes(), state


def test_a_file_without_checksums_is_read(file, state):
    torch.serialization.set_crc32_options(False)
    try:
        path = file({"state_dict": state})
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_backbone(path), state)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.empty(8, 3, 7, 7, device="meta"), "is on the meta device and holds no values"),
        (torch.ones(8, 3, 7, 7).to_sparse(), "is sparse or nested"),
        (torch.ones(1).expand(40_000, 40_000), r"_rebuild_tensor_v2 of 1\.6e\+09 elements in a file of"),
        (torch.empty(10**9, 10**9, device="meta"), "elements in a file of"),
        (torch.ones(100_000, 3, 1, 1), "a ResNet of base width 100000; expected at most 256"),
    ],
)
def test_tensors_without_values_of_their_own_are_refused(file, state, value, message):
    with pytest.raises(KitError, match=message):
        read_backbone(file({**state, "conv1.weight": value}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*run there: git lfs pull"),
        (gzip.compress(b"weights", mtime=0), "compressed by gzip; unpack it first: tar xf"),
        (b"", "it is empty; fetch it again"),
        (b'{"error": "no"}', "it is JSON"),
        (bz2.compress(b"weights"), "compressed by bzip2; unpack it first: tar xf /.*/w.p.., or bunzip2"),
        (b"\0" * 257 + b"ustar\x0000" + b"\0" * 247, "a tar archive; unpack it first: tar xf /.*/w.p"),
        (b"PK\x03\x04 cut", "a ZIP, as torch writes, that is cut short"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", "an ONNX model; save the state dict"),
        (b"\x80\x04N\x94r\xff\xff\xff\x1f.", "an object numbered 536870911"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\x01\x00\x00\x00.", "damaged"),
        (b"\x80\x02)" + b"\x85" * 200 + b".", "tuples in tuples, more than 100 deep"),
        (b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.", r"bytearray of 2\.1e\+09 elements"),
    ],
)
def test_what_is_no_weights_is_named(tmp_path, content, message):
    for name in ("w.pth", "w.pkl"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(KitError, match=message if name == "w.pth" else "damaged"):
            read_backbone(tmp_path / name)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torchs_under_another_suffix_is_named(tmp_path, state, zipped):
    torch.save(state, tmp_path / "w.pkl", _use_new_zipfile_serialization=zipped)
    with pytest.raises(KitError, match=r"is a file of torch\.save, not a pickle of arrays; name it \.pth"):
        read_backbone(tmp_path / "w.pkl")


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_of_arrays_under_another_suffix_is_named(tmp_path, state, protocol):
    arrays = {name: value.numpy() for name, value in state.items()}
    (tmp_path / "w.pth").write_bytes(pickle.dumps(arrays, protocol))
    with pytest.raises(KitError, match=r"a pickle of another program.*name it \.pkl if it holds arrays"):
        read_backbone(tmp_path / "w.pth")


def test_a_program_is_named(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "w.pth")
    with pytest.raises(KitError, match=r"is a TorchScript archive, a program; save its state_dict\(\)"):
        read_backbone(tmp_path / "w.pth")


def test_a_zip_of_something_else_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("images/1.jpg", b"")
    with pytest.raises(KitError, match=r"a ZIP that torch\.save did not write \(in it: images/1\.jpg\)"):
        read_backbone(tmp_path / "w.pth")


def test_the_class_that_is_refused_is_named(file, state):
    with pytest.raises(KitError, match=r"it holds fractions\.Fraction, which may not be unpickled"):
        read_backbone(file({"state_dict": state, "lr": fractions.Fraction(1, 3)}))
