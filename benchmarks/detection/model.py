"""Build Detectron2 models from configs, such as the Mask R-CNN R50-C4 that the paper and MoCo finetune."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from benchmarks.detection import compat, head, settings  # noqa: F401
from triplet.errors import KitError, message_of
from triplet.weights import detectron2_format, torch_file

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model


def load_config(path: Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Load a yacs YAML on top of Detectron2's defaults, and ``KEY.SUB=value`` overrides on top of that.

    MODEL.DEVICE is this machine's GPU if it has one, else the CPU.

    Raises:
        KitError: no such file, a key or value unknown to Detectron2, or a senseless one (see
            ``settings.check``).
    """
    cfg = get_cfg()
    if not path.is_file():
        raise KitError(f"no detection config at {path}; see configs/detection/")
    pairs = [part for override in overrides for part in override.split("=", 1)]
    if len(pairs) != 2 * len(overrides):
        raise KitError(f"overrides of Detectron2's settings are KEY.SUB=value: found {overrides}")
    try:
        with settings.local_bases(path):
            cfg.merge_from_file(str(path), allow_unsafe=False)
        cfg.merge_from_list(pairs)
    except (
        LookupError,
        ValueError,
        AssertionError,
        AttributeError,
        TypeError,
        yaml.YAMLError,
        RecursionError,
    ) as error:
        reason = message_of(str(error).strip("'\""), 300)
        raise KitError(f"{path}: Detectron2 refuses it: {reason}") from None
    settings.check(cfg, path)
    cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    return cfg


def categories(cfg: CfgNode) -> tuple[str, int]:
    """Return the setting for the number of categories, and its value."""
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{key}.NUM_CLASSES", cfg.MODEL[key].NUM_CLASSES


def with_norm(cfg: CfgNode, norm: str) -> CfgNode:
    """Return a copy of the config with ``norm`` in place of every SyncBN."""
    changed = cfg.clone()
    changed.defrost()

    def visit(node: CfgNode) -> None:
        for key, value in node.items():
            if isinstance(value, CfgNode):
                visit(value)
            elif key == "NORM" and value == "SyncBN":
                node[key] = norm

    visit(changed)
    return changed


def allow_tf32(yes: bool) -> None:
    """Allow or forbid float32 convolutions and matrix products to round to TF32 on GPUs."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = yes


def build(cfg: CfgNode) -> nn.Module:
    """Build a config's model with random weights on the config's device.

    Raises:
        KitError: Detectron2 has no such parts, or they do not fit together.
    """
    try:
        result: nn.Module = build_model(cfg)
    except (LookupError, ValueError, AssertionError, AttributeError, TypeError, ArithmeticError) as error:
        reason = message_of(f"{type(error).__name__}: {error}", 200)
        raise KitError(
            f"Detectron2 cannot build the config's model ({reason}); compare its MODEL with a config "
            "of configs/detection/"
        ) from None
    return result


def plain(cfg: CfgNode) -> dict[str, Any]:
    """Return a config as plain values, without those that change no result (device, loaders,
    checkpoints)."""
    values: dict[str, Any] = json.loads(json.dumps(cfg))
    del (
        values["MODEL"]["DEVICE"],
        values["DATALOADER"]["NUM_WORKERS"],
        values["SOLVER"]["CHECKPOINT_PERIOD"],
    )
    return values


def load_trained(network: nn.Module, path: Path) -> None:
    """Load a model file of Detectron2's or the finetune stage's: .pth, or .pkl of the model zoo.

    Raises:
        KitError: the file is damaged, holds more than tensors and plain values, or belongs to another
            model.
    """
    try:
        if path.suffix == ".pkl":
            found = {k: torch.as_tensor(v) for k, v in detectron2_format.read(path).items()}
        else:
            content = torch_file.read(path)
            found = {str(k): v for k, v in content.get("model", content).items()}
        shapes = {name: tuple(value.shape) for name, value in found.items()}
    except (KitError, OSError):
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = message_of(error)
        raise KitError(f"{path} is not a Detectron2 model file, or damaged: {reason}") from None
    # num_batches_tracked matters to training only; older files hold constants that the config gives.
    free = re.compile(r"num_batches_tracked$|cell_anchors|pixel_(mean|std)$")
    state = network.state_dict()
    odd = sorted(
        name
        for name in state.keys() | shapes.keys()
        if not free.search(name) and (name not in state or shapes.get(name) != tuple(state[name].shape))
    )
    if odd:
        theirs = shapes.get(odd[0], "missing")
        ours = tuple(state[odd[0]].shape) if odd[0] in state else "nothing"
        raise KitError(
            f"{path} is of another model than the config's: {len(odd)} tensors do not fit; {odd[0]} is "
            f"{theirs}, expected {ours}"
        )
    network.load_state_dict({name: found.get(name, value) for name, value in state.items()})
