"""Read the backbone from a checkpoint in any format that the table's methods have."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triplet import untrusted
from triplet.errors import KitError
from triplet.models.resnet import BLOCKS
from triplet.models.resnet import ResNet as Network
from triplet.weights import filetype, safetensors, torch_file, wrappers
from triplet.weights.caffe2 import read_caffe2
from triplet.weights.pickles import StandIn

FORMAT = "triplet-kit/1"
"""Value of ``format`` in the kit's own checkpoints."""
# OpenSelfSup saves the backbone of every method under this name, besides any copies.
OPENSELFSUP = "backbone."
OWN = re.compile(r"(conv|bn|layer)\d")
"""Names of a ResNet's own layers; some projects put their heads under the same prefix."""
LARGEST = 1e8
"""Largest value of a backbone's tensors. A flipped bit of an exponent often makes 1e37, and only PyTorch's
zip has checksums that would show it; trained weights and BN's statistics stay far below."""
BACKBONE = re.compile(r"(^|\.)(conv1|bn1|layer[1-4])\.")
"""Pattern in the names of tensors that may belong to the backbone."""


@dataclass(frozen=True)
class Backbone:
    """A ResNet's tensors under torchvision's names, complete and checked."""

    state: dict[str, Tensor]
    """float32 (``num_batches_tracked``: int64), in the order of torchvision's ``state_dict``."""
    depth: int
    width: int
    format: str
    """Kind of file that the backbone comes from."""
    ignored: list[str]
    """Names of the file's tensors that are not part of the backbone."""
    untrained: bool
    """Whether the file itself says that it holds untrained weights."""
    widened: int
    """Number of tensors that were in half precision."""
    caffe2: bool
    """Whether it expects BGR images and strides in the 1x1 convolutions; see ``triplet.weights.caffe2``."""
    choice: str
    """A phrase that says which of the file's networks this is (``'teacher' is taken, not 'student'``); ''
    if there is only one."""

    @property
    def default_statistics(self) -> bool:
        """Whether BN has seen no image: every mean is 0, every variance 1."""
        return all(
            bool((value == (1.0 if name.endswith("var") else 0.0)).all())
            for name, value in self.state.items()
            if name.endswith(("running_mean", "running_var"))
        )


def read_backbone(path: Path) -> Backbone:
    """Read the backbone from a checkpoint of any known format.

    These are the authors' raw epoch file, their extracted release, a file of OpenSelfSup's zoo,
    torchvision's ResNet, MSRA's for Detectron2 (.pkl), the kit's own checkpoint and safetensors, each also
    inside other projects' wrappers.

    The file is unpickled as tensors and plain values only. It must have exactly one backbone (or equal
    copies), complete, of the right shapes, finite, with positive BN variances.

    Raises:
        KitError: the file has something else; the message says what.
    """
    caffe2 = path.suffix == ".pkl"  # Detectron2 recognises them the same way
    state, untrained, choice = (read_caffe2(_there(path)), False, "") if caffe2 else _read_state(path)
    prefix, kind, among = _prefix(state, path)
    inside = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    depth, width = _architecture(inside, path)
    expected = Network(depth, width).state_dict()
    backbone = {}
    for key, reference in expected.items():
        if key not in inside and key.endswith("num_batches_tracked"):
            backbone[key] = reference
            continue
        backbone[key] = _checked(key, inside.get(key), reference, path)
    unknown = sorted(name for name in inside.keys() - expected.keys() if OWN.match(name))
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
        choice="; ".join(filter(None, (choice, among))),
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Read the tensors of a checkpoint of any format by name, and whether it says that they are untrained.

    Other projects' wrappers around a state dict are opened: see ``triplet.weights.wrappers``.

    Raises:
        KitError: the file does not exist, has no tensors, or has backbone tensors without values.
    """
    state, untrained, _ = _read_state(path)
    return state, untrained


def _read_state(path: Path) -> tuple[dict[str, Tensor], bool, str]:
    """Read the same as ``read_state``, and also return which of several dicts was taken."""
    content, choice = _load(path), ""
    untrained = False
    if isinstance(content, dict) and content.get("format") == FORMAT:
        untrained = content.get("step") == 0
        content = content.get("networks")
    else:
        content, choice = wrappers.unwrap(content, path)
    if not isinstance(content, dict):
        raise KitError(f"{path}: expected a state dict, found a {type(content).__name__}")
    state = {wrappers.text(k): v.detach() for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        if any(isinstance(value, StandIn) for value in content.values()):
            raise KitError(f"{path}: holds arrays of NumPy, not tensors; save them by torch.from_numpy")
        raise KitError(
            f"{path}: holds no tensors; its keys: {[wrappers.text(k)[:40] for k in content][:5]}"
        )
    odd = {name: why for name, value in state.items() if (why := _odd(value))}
    for name, why in odd.items():
        if BACKBONE.search(name):
            raise KitError(
                f"{path}: {name} {why}; save the state dict of the model on its device, by torch.save"
            )
    return wrappers.rename({k: v for k, v in state.items() if k not in odd}), untrained, choice


def _odd(value: Tensor) -> str:
    """Say why a tensor cannot be used; '' if it can."""
    if value.is_meta:
        return "is on the meta device and holds no values"
    if value.is_nested or value.layout != torch.strided:
        return "is sparse or nested, not a plain tensor"
    return "is quantized, not a plain tensor" if value.is_quantized else ""


def _there(path: Path) -> Path:
    """Return the path of a file; KitError if there is none, or it is a web page."""
    if not path.is_file():
        raise KitError(f"no weights at {path}")
    if filetype.is_page(path):
        raise KitError(f"{path} is a web page, not weights: the download was refused; fetch it again")
    return path


def _load(path: Path) -> Any:
    return safetensors.read(path) if safetensors.looks_like(_there(path)) else torch_file.read(path)


def _prefix(state: dict[str, Tensor], path: Path) -> tuple[str, str, str]:
    """Return the prefix of the backbone's names, the kind of file that it shows, and which of several
    networks it is."""
    stem = "conv1.weight"
    found = sorted(k[: -len(stem)] for k in state if k == stem or k.endswith("." + stem))
    # Ignore the conv1 of a block, which is not a stem.
    every = [p for p in found if f"{p}layer1.0.conv1.weight" in state]
    found = wrappers.without_copies(every)
    if not found:
        raise KitError(f"{path}: no ResNet in it; its tensors begin with {', '.join(list(state)[:3])}")
    if "online.backbone." in found:  # the kit's: the target network has the other backbone
        return "online.backbone.", "kit", ""
    base = [p for p in found if f".{p}".endswith(f".{OPENSELFSUP}")]
    if len(base) == 1:
        online = base[0].removesuffix(OPENSELFSUP) + "online_net.0."
        copies = [{k[len(p) :]: v for k, v in state.items() if k.startswith(p)} for p in (base[0], online)]
        if online in found and (
            copies[0].keys() != copies[1].keys()
            or not all(torch.equal(v, copies[1][k]) for k, v in copies[0].items())
        ):
            raise KitError(f"{path}: {base[0]}* and {online}* should be copies and differ")
        return base[0], "openselfsup raw", wrappers.describe_choice(base[0], every)
    if len(found) > 1:
        raise KitError(
            f"{path}: holds {len(found)} ResNets ({', '.join(repr(p) for p in found)}) and does not "
            "say which is the backbone; extract one first"
        )
    kind = "torchvision" if "fc.weight" in state else "extracted"
    choice = wrappers.describe_choice(found[0], every)
    return found[0], kind if found[0] == "" else f"prefixed with {found[0]!r}", choice


def _architecture(state: dict[str, Tensor], path: Path) -> tuple[int, int]:
    if state["conv1.weight"].ndim != 4:
        raise KitError(f"{path}: conv1.weight has shape {tuple(state['conv1.weight'].shape)}")
    width = state["conv1.weight"].shape[0]
    if not 1 <= width <= untrusted.WIDTH:
        raise KitError(f"{path}: a ResNet of base width {width}; expected at most {untrusted.WIDTH}")
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
    try:
        value = value.to(reference.dtype).contiguous()
    except RuntimeError:  # dtypes of few bits have no conversion
        raise KitError(f"{path}: {key} is {value.dtype}, expected {reference.dtype}") from None
    if not torch.isfinite(value).all():
        raise KitError(f"{path}: {key} holds NaN or infinite values")
    if reference.is_floating_point() and (value.abs() > LARGEST).any():
        raise KitError(
            f"{path} is damaged: {key} has a value of {float(value.abs().max()):.0e}, and trained weights "
            f"are below {LARGEST:.0e}; fetch it again"
        )
    if key.endswith("running_var") and not (value > 0).all():
        raise KitError(f"{path}: {key} must be positive")
    return value
