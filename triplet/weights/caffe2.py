"""Read ImageNet's ResNets with Caffe2's names: MSRA's R-50.pkl, from which Detectron2's baselines start.

They were trained on BGR images with only the mean subtracted, and with the stride in a block's first 1x1
convolution; their BN is folded into a scale and an offset (Detectron2's MODEL_ZOO.md, "ImageNet Pretrained
Models").
"""

import pickle
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from triplet.errors import KitError
from triplet.weights import arrays, filetype, wrappers

PIXEL_MEAN = (103.53, 116.28, 123.675)
"""Mean of BGR images from 0 to 255: MODEL.PIXEL_MEAN of Detectron2's defaults."""
EPSILON = 1e-5
"""Epsilon of BN: with the variance 1 - EPSILON it only scales and adds, as in Detectron2's
FrozenBatchNorm2d."""

_PARTS = {"w": "weight", "b": "bias", "bn_s": "weight", "bn_b": "bias"}
_BRANCHES = {"branch2a": "1", "branch2b": "2", "branch2c": "3"}


def read_caffe2(path: Path) -> dict[str, Tensor]:
    """Rename the tensors to torchvision's names and fill in BN's statistics.

    Raises:
        KitError: the file is damaged, has more than arrays and plain values, or has other names.
    """
    if filetype.is_torch(path):
        raise KitError(f"{path} is a file of torch.save, not a pickle of arrays; name it .pth")
    try:
        content = arrays.read(path, encoding="latin1")  # written by Python 2
    except pickle.UnpicklingError as error:
        kind = filetype.describe(path)
        reason = f"it is {kind}" if kind else f"{error!r:.160}"
        raise KitError(f"{path} is not a pickle of arrays, or damaged: {reason}") from None
    if not isinstance(content, dict):
        raise KitError(f"{path}: expected arrays by name, found a {type(content).__name__}")
    if isinstance(content.get("model"), dict):
        raise KitError(f"{path} is converted for Detectron2 already; give the file that it was made from")
    if not isinstance(content := content.get("blobs", content), dict):
        raise KitError(f"{path}: expected arrays by name in 'blobs', found a {type(content).__name__}")
    state: dict[str, Tensor] = {}
    for name, value in content.items():
        key = wrappers.text(name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not key.endswith("_momentum"):
            state[_name(key)] = torch.from_numpy(np.array(value, dtype=np.float32))
    state.pop("conv1.bias", None)  # Detectron2 ignores it too, as BN's offset follows
    for name in [name for name in state if re.search(r"(bn\d|downsample\.1)\.weight$", name)]:
        stem, like = name.removesuffix("weight"), state[name]
        state[f"{stem}running_mean"] = torch.zeros_like(like)
        state[f"{stem}running_var"] = torch.full_like(like, 1 - EPSILON)
    return state


def _name(key: str) -> str:
    """Rename ``res2_0_branch2a_bn_s`` to ``layer1.0.bn1.weight``; other names stay as they are."""
    if key in ("fc1000_w", "fc1000_b"):
        return f"fc.{_PARTS[key[-1]]}"
    if stem := re.fullmatch(r"(?:res_)?conv1_(bn_)?([wbs])", key):
        return f"{'bn1' if stem[1] else 'conv1'}.{_PARTS[(stem[1] or '') + stem[2]]}"
    block = re.fullmatch(r"res(\d)_(\d+)_(branch\w+?)_(bn_)?([wbs])", key)
    if block is None:
        return key
    norm, part = block[4] or "", _PARTS[(block[4] or "") + block[5]]
    if block[3] == "branch1":
        place = f"downsample.{1 if norm else 0}"
    else:
        place = f"{'bn' if norm else 'conv'}{_BRANCHES.get(block[3], block[3])}"
    return f"layer{int(block[1]) - 1}.{block[2]}.{place}.{part}"
