"""A backbone goes out as others read it: each call of docs/export.md is run as it stands there.

Each library computes the features of one photograph, which are compared with the kit's own to 1e-5.
"""

import contextlib
import os
import re
import resource
import signal
import sys

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_sample_image

from tests.conftest import KIT, placed
from tests.support.backbones import see_images
from triplet import cli, files, paths, records
from triplet.export import export
from triplet.models.networks import Networks
from triplet.models.resnet import ResNet
from triplet.pretrain.views import normalize
from triplet.pull.sources import load_sources
from triplet.training import checkpoint
from triplet.weights import read_backbone

PAGE = (KIT / "docs" / "export.md").read_text()
CALLS = dict(re.findall(r"^```python (\w+)\n(.*?)^```$", PAGE, re.M | re.S))
"""The page's calls by the library that they are for."""


def pretrained(run, depth, width):
    """A finished pretraining whose BN has seen something; returns its backbone."""
    torch.manual_seed(0)
    networks = Networks(depth, width, 8, 8)
    see_images(networks.state_dict())
    folder = paths.stage_folder(run, "pretrain")

    def work(job):
        checkpoint.save(folder / "checkpoint.pth", networks, None, 12, 3)
        job.outputs["checkpoint"] = folder / "checkpoint.pth"
        job.results["epochs"] = 3

    records.perform("pretrain", folder, config={"method": "triplet"}, inputs={}, work=work)
    return networks.online.backbone.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The places of a ResNet-50 exported as safetensors and by torch.save, and the network itself."""
    folder = tmp_path_factory.mktemp("exported")
    with placed(folder):
        network = pretrained("triplet", 50, 64)
        for kind in ("safetensors", "pth"):
            assert cli.main(["export", "--format", kind]) == 0
    return folder, network


@pytest.fixture(scope="module")
def images():
    """(1, 3, 96, 128): a photograph, normalised."""
    photograph = Image.fromarray(load_sample_image("china.jpg")).resize((128, 96))
    pixels = torch.frombuffer(bytearray(photograph.tobytes()), dtype=torch.uint8)
    return normalize(pixels.reshape(1, 96, 128, 3).permute(0, 3, 1, 2))


def call(library, folder, **names):
    """Run the page's call below a folder; returns what it has defined."""
    with contextlib.chdir(folder):
        exec(compile(CALLS[library], f"docs/export.md: {library}", "exec"), names)
    return names


def difference(found, expected):
    """Between features, of the largest."""
    found = torch.as_tensor(found)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("library", ["torchvision", "timm", "lightly"])
@torch.no_grad()
def test_a_library_loads_it_by_its_own_call(exported, images, library):
    pytest.importorskip(library, reason=f"{library} is not installed; make test installs it")
    folder, network = exported
    expected = network(images).mean((2, 3))
    assert difference(call(library, folder, images=images)["features"], expected) < 1e-5


@torch.no_grad()
def test_mmdetections_init_cfg_loads_it(exported, images):
    """By mmcv's code behind ``init_cfg``, into mmcv's ResNet, whose names mmdetection's has."""
    from mmcv.cnn import initialize
    from mmcv.cnn import resnet as mmcv_resnet

    folder, network = exported
    config = call("mmdetection", folder)["model"]["backbone"]
    other = mmcv_resnet.ResNet(config["depth"], style=config["style"])
    assert other.state_dict().keys() == network.state_dict().keys()
    given = {**config["init_cfg"], "checkpoint": str(folder / config["init_cfg"]["checkpoint"])}
    initialize(other, given)
    other.eval()
    assert difference(other(images)[-1].mean((2, 3)), network(images).mean((2, 3))) < 1e-5


@pytest.mark.slow
@torch.no_grad()
def test_onnxruntime_computes_the_same_at_any_size(places, images, capsys):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed; make test installs it")
    import onnxruntime

    network = pretrained("triplet", 50, 64)
    assert cli.main(["export", "--format", "onnx"]) == 0
    for each in (images, images[:, :, :64, :96].repeat(3, 1, 1, 1)):
        found = call("onnxruntime", places, images=each)
        assert difference(found["maps"], network(each)) < 1e-5
        assert difference(found["features"], network(each).mean((2, 3))) < 1e-5
    record = records.read(paths.stage_folder("triplet", "export") / "onnx")
    session = onnxruntime.InferenceSession(str(records.output(record, "onnx")))
    metadata = session.get_modelmeta().custom_metadata_map
    assert metadata.items() <= {key: str(value) for key, value in record.results.items()}.items()
    assert metadata["epochs"] == "3"


def test_the_header_says_where_it_comes_from(exported):
    folder, _ = exported
    metadata = call("header", folder)["metadata"]
    source = folder / "checkpoints" / "triplet" / "pretrain"
    assert metadata["weights_sha256"] == files.sha256(source / "checkpoint.pth")
    assert metadata["record_sha256"] == files.sha256(source / "record.json")
    assert (metadata["method"], metadata["epochs"], metadata["run"]) == ("triplet", "3", "triplet")
    assert (metadata["architecture"], metadata["width"], metadata["format"]) == ("ResNet-50", "64", "pt")
    record = records.read(source)
    assert (metadata["stage"], metadata["commit"]) == ("pretrain", record.commit)
    exported_record = records.read(folder / "checkpoints" / "triplet" / "export" / "safetensors")
    assert exported_record.results["tensors"] == 318
    mean, deviation = re.findall(r"(?:mean|deviation) ([\d. ]+)", metadata["images"])
    values = [torch.tensor([*map(float, each.split())])[:, None, None] for each in (mean, deviation)]
    pixels = torch.arange(3 * 4, dtype=torch.uint8).reshape(1, 3, 2, 2) * 20
    torch.testing.assert_close(normalize(pixels), (pixels / 255 - values[0]) / values[1])


def test_it_is_read_back_as_it_was(exported):
    folder, network = exported
    for path in (folder / "checkpoints" / "triplet" / "export").glob("*/backbone.*"):
        state = read_backbone(path).state
        assert list(state) == list(network.state_dict())
        assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    path = folder / "checkpoints" / "triplet" / "export" / "pth" / "backbone.pth"
    assert torch.load(path, weights_only=True).keys() == network.state_dict().keys()


def written(stage, folder, config):
    """A small backbone as the output of a stage, and beside it one that is no output."""

    def work(job):
        torch.save(ResNet(18, 8).state_dict(), folder / "w.pth")
        torch.save(ResNet(18, 16).state_dict(), folder / "other.pth")
        job.outputs["weights"] = folder / "w.pth"

    records.perform(stage, folder, config=config, inputs={}, work=work)


@pytest.mark.parametrize(
    ("stage", "config", "expected"),
    [
        ("pull", {"hub": "x"}, {"stage": "pull", "method": "moco", "epochs": "unknown"}),
        (
            "pretrain",
            {"schedule": {"epochs": 200}},
            {"stage": "pretrain", "method": "moco", "epochs": "200"},
        ),
        ("pretrain", {"method": "byol"}, {"stage": "pretrain", "method": "byol", "epochs": "unknown"}),
    ],
)
def test_each_origin_is_told_as_far_as_its_record_goes(places, stage, config, expected):
    """Other weights replace what was exported before; one that is no output has no record."""
    folder = places / "checkpoints" / "given"
    written(stage, folder, config)
    for name, width, known in (("w.pth", "8", expected), ("other.pth", "16", {})):
        export("seed1/moco", folder / name)
        results = records.read(paths.stage_folder("seed1/moco", "export") / "safetensors").results
        told = {key: results[key] for key in ("stage", "method", "epochs") if key in results}
        assert (told, results["width"]) == (known, width)
        assert ("record_sha256" in results) == bool(known)


def test_pulled_weights_keep_their_method_and_epochs(places):
    """Whatever the run is called; initial weights have none."""
    for name, source in load_sources().weights.items():
        folder = places / "checkpoints" / "weights" / name

        def work(job, folder=folder, epochs=source.epochs):
            torch.save(ResNet(18, 8).state_dict(), folder / "w.pth")
            job.outputs["w.pth"] = folder / "w.pth"
            job.results.update({"w.pth": {}} | ({} if epochs is None else {"epochs": epochs}))

        records.perform("pull", folder, config={}, inputs={}, work=work)
        export(f"{name}/mine", folder / "w.pth")
        results = records.read(paths.stage_folder(f"{name}/mine", "export") / "safetensors").results
        method = {"supervised-torchvision": "supervised", "triplet-200e": "triplet"}.get(name, name)
        said = re.search(r"(\d+) epochs", source.about)
        own = {"supervised-torchvision": "90", "random": "0", "triplet": "940"}.get(name, "unknown")
        assert (results["method"], results["epochs"]) == (method, said[1] if said else own)


def test_any_weights_are_exported_again_without_their_head(places, tmp_path, capsys):
    state = ResNet(18, 8).state_dict()
    wrapped = {
        "teacher": {f"backbone.{k}": v for k, v in state.items()},
        "student": {f"backbone.{k}": v for k, v in state.items()},
    }
    torch.save(wrapped, tmp_path / "dino.pth")
    given = ["export", "--run", "own", "--weights", str(tmp_path / "dino.pth")]
    assert cli.main(given) == 0
    assert "'teacher' is taken, not 'student'" in capsys.readouterr().out
    path = paths.stage_folder("own", "export") / "safetensors" / "backbone.safetensors"
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == set(state)
        assert "record_sha256" not in file.metadata()
    assert cli.main(given) == 0
    assert "done already" in capsys.readouterr().out


def test_weights_for_other_images_are_refused(places, tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    torch.save(ResNet(18, 8).state_dict(), tmp_path / "w.pth")
    found = read_backbone(tmp_path / "w.pth")
    monkeypatch.setattr("triplet.export.read_backbone", lambda path: replace(found, caffe2=True))
    assert cli.main(["export", "--run", "own", "--weights", str(tmp_path / "w.pth")]) == 2
    assert "is for BGR images and strides in the 1x1 convolutions" in capsys.readouterr().err
    assert not list(places.rglob("backbone.*"))


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
def test_a_full_disk_is_one_line(places, tmp_path, capfd, kind):
    checkpoint.save(tmp_path / "c.pth", Networks(18, 16, 8, 8), None, 0, 0)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        os._exit(cli.main(["export", "--run", "r", "--weights", str(tmp_path / "c.pth"), "--format", kind]))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    assert capfd.readouterr().err == "triplet export: File too large\n"
    folder = paths.stage_folder("r", "export") / kind
    assert sorted(each.name for each in folder.iterdir()) == [".lock", "started.json"]


def test_a_missing_package_is_named(places, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert cli.main(["export", "--format", "onnx"]) == 2
    assert "by: make export FORMAT=onnx" in capsys.readouterr().err


def test_nothing_to_export_is_one_line(places, capsys):
    assert cli.main(["export"]) == 2
    assert "run first: triplet pretrain --run triplet, or: triplet pull" in capsys.readouterr().err


def test_the_pages_calls_are_all_run():
    assert CALLS.keys() == {"header", "torchvision", "timm", "lightly", "mmdetection", "onnxruntime"}
