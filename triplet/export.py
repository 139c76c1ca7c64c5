"""The export stage: write a backbone as one file that other libraries can load."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

import triplet
from triplet import files, paths, records
from triplet.defaults import weights_of
from triplet.errors import KitError
from triplet.models.resnet import ResNet
from triplet.progress import say
from triplet.published.methods import load_methods
from triplet.weights.read import Backbone, read_backbone

NAMES = {"safetensors": "backbone.safetensors", "pth": "backbone.pth", "onnx": "backbone.onnx"}
"""File name for each format."""
NORMALISATION = "RGB scaled to 0..1, mean 0.485 0.456 0.406, deviation 0.229 0.224 0.225"
SIDE = 224
"""Side in pixels of the image with which the network is traced; the exported one accepts any size."""


def export(
    run: str, weights: Path | None = None, kind: str = "safetensors", *, force: bool = False
) -> Path:
    """Export the run's pretrained backbone, or any weights that ``triplet.weights`` reads.

    Args:
        run: run for the result; also the run of the pretraining, unless weights are given.
        weights: file to export; by default the run's own pretraining, or the method's pulled weights.
        kind: one of ``NAMES``: tensors under torchvision's names, or for ``onnx`` the network itself.
        force: whether to start over.

    Returns:
        The path of the file.

    Raises:
        KitError: nothing to export, weights that fit no torchvision network, or a missing package.
    """
    if kind == "onnx":
        _require_onnx()
    source = weights or weights_of(run)
    path = paths.stage_folder(run, "export") / kind / NAMES[kind]

    def work(job: records.Job) -> None:
        backbone = read_backbone(source)
        if backbone.caffe2:
            raise KitError(
                f"{source} is for BGR images and strides in the 1x1 convolutions, which no network of "
                "torchvision's names has; export weights for RGB images"
            )
        if backbone.choice:
            say(f"export: {source.name}: {backbone.choice}")
        metadata = {**_origin(run, source), **_form(backbone)}
        with files.atomic(path) as temporary:
            _write(kind, temporary, backbone, metadata)
        job.outputs[kind] = path
        job.results.update(metadata, tensors=len(backbone.state))

    records.perform(
        "export",
        path.parent,
        config={"format": kind},
        inputs={"weights": source},
        work=work,
        force=force,
        derived=True,
    )
    say(f"export: {paths.portable(path)}; how others load it: docs/export.md")
    return path


def _origin(run: str, source: Path) -> dict[str, str]:
    """Return the origin of the weights: hashes, and for a pretraining its method and settings."""
    found = {
        "kit": triplet.__version__,
        "run": run,
        "weights": paths.portable(source),
        "weights_sha256": files.sha256(source),
    }
    record = records.read(source.parent)
    if record and source.name in [Path(each.path).name for each in record.outputs.values()]:
        found["record_sha256"] = files.sha256(source.parent / "record.json")
        found["stage"] = record.stage
        found["commit"] = record.commit
        # A pull's folder has the name of the weights. The pretrainings of the kit and of OpenSelfSup name
        # the method and the epochs at different places.
        known = {name: method for method, each in load_methods().items() for name in each.weights}
        own = known.get(source.parent.name, Path(run).name) if record.stage == "pull" else Path(run).name
        found["method"] = str(record.config.get("method", own))
        epochs = record.results.get("epochs", record.config.get("schedule", {}).get("epochs"))
        found["epochs"] = "unknown" if epochs is None else str(epochs)
    return found


def _form(backbone: Backbone) -> dict[str, str]:
    """Describe the tensors."""
    return {
        "architecture": f"ResNet-{backbone.depth}",
        "width": str(backbone.width),
        "names": "torchvision",
        "images": NORMALISATION,
    }


def _write(kind: str, path: Path, backbone: Backbone, metadata: Mapping[str, str]) -> None:
    if kind == "safetensors":
        # The library's own writer raises other errors if the disk is full.
        path.write_bytes(save(backbone.state, metadata={"format": "pt", **metadata}))
    elif kind == "pth":
        # So does torch's, and it would put the temporary file's name into the archive.
        content = io.BytesIO()
        torch.save(backbone.state, content)  # tensors alone, so that any reader of state dicts can load it
        path.write_bytes(content.getbuffer())
    else:
        _write_onnx(path, backbone, metadata)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise KitError(
            f"FORMAT=onnx needs the packages onnx and onnxscript (no module {error.name}), which are "
            "installed by: make export FORMAT=onnx"
        ) from None


class _Features(nn.Module):
    """The last feature map, and its mean over the image."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = ResNet(backbone.depth, backbone.width)
        self.backbone.load_state_dict(backbone.state)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, 3, h, w) images to (n, channels, h / 32, w / 32) and (n, channels)."""
        maps = self.backbone(images)
        return maps, maps.mean((2, 3))


def _write_onnx(path: Path, backbone: Backbone, metadata: Mapping[str, str]) -> None:
    """Trace the network at one size, for any number and size of images."""
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of names that it renames
        program = torch.onnx.export(
            _Features(backbone).eval(),
            (torch.zeros(2, 3, SIDE, SIDE),),
            input_names=["images"],
            output_names=["maps", "features"],
            dynamic_shapes=(sizes,),
            dynamo=True,
            verbose=False,
        )
    assert program
    program.model.metadata_props.update(metadata)
    program.save(str(path))
