"""Read the backbone out of any checkpoint that the table's rows come in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triplet import files
from triplet.errors import KitError
from triplet.models.resnet import BLOCKS
from triplet.models.resnet import ResNet as Network
from triplet.training import checkpoint
from triplet.weights.caffe2 import read_caffe2

# OpenSelfSup saves the backbone of every method under this name, whatever else holds a copy.
OPENSELFSUP = "backbone."
IGNORED = ("fc.weight", "fc.bias")


@dataclass(frozen=True)
class Backbone:
    """A ResNet's tensors under torchvision's names, complete and checked."""

    state: dict[str, Tensor]
    """float32 (``num_batches_tracked``: int64), in the order of torchvision's ``state_dict``."""
    depth: int
    width: int
    format: str
    """What kind of file it was."""
    ignored: list[str]
    """Tensors of the file that are no part of the backbone."""
    untrained: bool
    """The file itself says that it holds initial weights."""
    widened: int
    """How many tensors came in half precision."""
    caffe2: bool
    """For BGR images and strides in the 1x1 convolutions: see ``triplet.weights.caffe2``."""

    @property
    def default_statistics(self) -> bool:
        """Whether BN has seen no image: every mean 0, every variance 1."""
        return all(
            bool((value == (1.0 if name.endswith("var") else 0.0)).all())
            for name, value in self.state.items()
            if name.endswith(("running_mean", "running_var"))
        )


def read_backbone(path: Path) -> Backbone:
    """Read one of: the authors' raw epoch file, their extracted release, a file of OpenSelfSup's zoo,
    torchvision's ResNet, MSRA's for Detectron2 (.pkl), our own checkpoint.

    The file is unpickled as tensors and plain values only. Exactly one backbone must be in it (or
    equal copies), whole, of the right shapes, finite, with positive BN variances.

    Raises:
        KitError: what was found instead.
    """
    caffe2 = path.suffix == ".pkl"  # as Detectron2 tells them apart
    state, untrained = (read_caffe2(_there(path)), False) if caffe2 else read_state(path)
    prefix, kind = _prefix(state, path)
    inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    depth, width = _architecture(inside, path)
    expected = Network(depth, width).state_dict()
    backbone = {}
    for key, reference in expected.items():
        if key not in inside and key.endswith("num_batches_tracked"):
            backbone[key] = reference
            continue
        backbone[key] = _checked(key, inside.get(key), reference, path)
    unknown = sorted(inside.keys() - expected.keys() - set(IGNORED))
    if unknown:
        raise KitError(
            f"{path}: found {len(unknown)} tensors that a ResNet-{depth} does not have, "
            f"{prefix}{unknown[0]} first; expected torchvision's names"
        )
    return Backbone(
        state=backbone,
        depth=depth,
        width=width,
        format="caffe2" if caffe2 else kind,
        ignored=sorted(state.keys() - {prefix + key for key in expected}),
        untrained=untrained,
        widened=sum(
            inside[key].dtype in (torch.float16, torch.bfloat16) for key in expected.keys() & inside.keys()
        ),
        caffe2=caffe2,
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of a checkpoint of any format by name, and whether it says that they are initial weights.

    Raises:
        KitError: no such file, not one of tensors, or none in it.
    """
    content = _load(path)
    untrained = False
    if isinstance(content, dict) and content.get("format") == checkpoint.FORMAT:
        untrained = content.get("step") == 0
        content = content.get("networks")
    elif isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise KitError(f"{path}: expected a state dict, found a {type(content).__name__}")
    state = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise KitError(f"{path}: holds no tensors; its keys: {list(content)[:5]}")
    return state, untrained


def _there(path: Path) -> Path:
    """The path of a file that is no web page."""
    if not path.is_file():
        raise KitError(f"no weights at {path}")
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if head.startswith((b"<!doctype", b"<html")):
        raise KitError(f"{path} is a web page, not weights: the download was refused; fetch it again")
    return path


def _load(path: Path) -> Any:
    if damage := files.damage(_there(path)):
        raise KitError(f"{path} is damaged ({damage}); fetch it again")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a damaged file makes it
        reason = " ".join(str(error).split())[:160]
        raise KitError(f"{path} is no PyTorch file of tensors, or damaged: {reason}") from None


def _prefix(state: dict[str, Tensor], path: Path) -> tuple[str, str]:
    """What stands before the backbone's names, and the kind of file that this tells."""
    stem = "conv1.weight"
    found = sorted(k[: -len(stem)] for k in state if k == stem or k.endswith("." + stem))
    # A block's own conv1 is no stem.
    found = [p for p in found if f"{p}layer1.0.conv1.weight" in state]
    if not found:
        raise KitError(f"{path}: no ResNet in it; its tensors begin with {', '.join(list(state)[:3])}")
    if "online.backbone." in found:  # ours: the target network holds the other one
        return "online.backbone.", "kit"
    base = [p for p in found if p.endswith(OPENSELFSUP)]
    if len(base) == 1:
        online = base[0].removesuffix(OPENSELFSUP) + "online_net.0."
        copies = [{k[len(p) :]: v for k, v in state.items() if k.startswith(p)} for p in (base[0], online)]
        if online in found and (
            copies[0].keys() != copies[1].keys()
            or not all(torch.equal(v, copies[1][k]) for k, v in copies[0].items())
        ):
            raise KitError(f"{path}: {base[0]}* and {online}* should be copies and differ")
        return base[0], "openselfsup raw"
    if len(found) > 1:
        raise KitError(
            f"{path}: holds {len(found)} ResNets ({', '.join(repr(p) for p in found)}) and does not "
            "say which is the backbone; extract one first"
        )
    kind = "torchvision" if "fc.weight" in state else "extracted"
    return found[0], kind if found[0] == "" else f"prefixed with {found[0]!r}"


def _architecture(state: dict[str, Tensor], path: Path) -> tuple[int, int]:
    if state["conv1.weight"].ndim != 4:
        raise KitError(f"{path}: conv1.weight has shape {tuple(state['conv1.weight'].shape)}")
    width = state["conv1.weight"].shape[0]
    blocks = {
        depth: all(f"layer{i}.{n - 1}.conv1.weight" in state for i, n in enumerate(counts, 1))
        and ("layer1.0.conv3.weight" in state) == (depth >= 50)
        for depth, (_, counts) in BLOCKS.items()
    }
    for depth in sorted(blocks, reverse=True):
        if blocks[depth]:
            return depth, width
    raise KitError(f"{path}: neither a ResNet-18 nor a whole ResNet-50; fetch the file again")


def _checked(key: str, value: Tensor | None, reference: Tensor, path: Path) -> Tensor:
    if value is None:
        raise KitError(f"{path}: {key} is missing")
    if value.layout != torch.strided or value.shape != reference.shape:
        raise KitError(f"{path}: {key} has shape {tuple(value.shape)}, expected {tuple(reference.shape)}")
    if reference.is_floating_point() and not value.is_floating_point():
        raise KitError(f"{path}: {key} is {value.dtype}, expected {reference.dtype}")
    value = value.to(reference.dtype).contiguous()
    if not torch.isfinite(value).all():
        raise KitError(f"{path}: {key} holds NaN or infinite values")
    if key.endswith("running_var") and not (value > 0).all():
        raise KitError(f"{path}: {key} must be positive")
    return value
