"""Proof that a Detectron2 model holds the backbone that it was given.

Detectron2 only warns if weights do not match; these checks stop instead.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

from benchmarks.detection import compat  # noqa: F401
from triplet import records
from triplet.errors import KitError
from triplet.models.resnet import ResNet as Network
from triplet.pretrain.views import normalize
from triplet.weights import Backbone, caffe2, detectron2_format

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode


def pixel_path(cfg: CfgNode) -> dict[str, Any]:
    """Return the settings that decide whether the same tensors give the same features."""
    return {
        "width": cfg.MODEL.RESNETS.STEM_OUT_CHANNELS,
        "stride_in_1x1": cfg.MODEL.RESNETS.STRIDE_IN_1X1,
        "format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
    }


def check_pixel_path(cfg: CfgNode, converted: records.Record) -> None:
    """Stop if a config treats images differently from the config with which the weights were proved.

    All tensors would load with either config, so without this check the difference would go unnoticed.

    Raises:
        KitError: a setting differs; the message names the first one.
    """
    for key, value in pixel_path(cfg).items():
        if converted.config[key] != value:
            raise KitError(
                f"the weights were proved with {key} {converted.config[key]}, the config has {value}; "
                "use the config that they were converted under, or convert them under this one"
            )


def load_and_check(model: Any, path: Path) -> int:
    """Load a converted .pkl as Detectron2 does it and compare every tensor bit for bit.

    Args:
        model: a Detectron2 model with a ResNet backbone.
        path: the file written by ``triplet convert``.

    Returns:
        The number of tensors that were loaded: 318 for a ResNet-50, or 265 if all of its BN is frozen.

    Raises:
        KitError: a tensor has no place in the model, or differs after loading.
    """
    arrays = detectron2_format.read(path)
    DetectionCheckpointer(model).load(str(path))
    state = model.state_dict()
    # A C4 head has res5 in the RoI head; its extra norm is not part of the backbone, nor is a pyramid.
    homes = ("backbone.bottom_up.", "backbone.", "roi_heads.")
    wanted = {k for k in state if re.match(r"backbone\.(?!fpn_|top_block\.)|roi_heads\.res5\.\d", k)}
    loaded = 0
    for name, array in arrays.items():
        places = [home + name for home in homes if home + name in state]
        sibling = name.replace("num_batches_tracked", "running_mean")
        if not places and sibling != name and any(home + sibling in state for home in homes):
            continue  # frozen BN has statistics but does not count batches
        if len(places) != 1:
            raise KitError(f"{path}: {name} has {len(places)} places in the model, expected 1")
        if not torch.equal(state[places[0]].cpu(), torch.from_numpy(array)):
            raise KitError(f"{path}: {name} was not loaded into {places[0]}: the values differ")
        wanted.discard(places[0])
        loaded += 1
    if wanted:
        raise KitError(f"{path}: {len(wanted)} backbone tensors stay random, {min(wanted)} first")
    return loaded


@torch.no_grad()
def feature_difference(model: Any, weights: Backbone, image_format: str) -> float:
    """Return the relative distance of Detectron2's res4 (and res5 of a C4 head) from the plain backbone's.

    One random image goes through each side's own pixel path: for Detectron2 in the config's channel order
    and normalisation, for the plain backbone as its weights were trained (RGB with ImageNet's mean and
    deviation; Caffe2's: BGR, a mean alone, the strides in the 1x1 convolutions). So a wrong channel order,
    mean, deviation or stride shows as a large difference even if the tensors are right.

    Args:
        model: the Detectron2 model with the weights loaded.
        weights: the plain backbone's tensors, and the input they were trained for.
        image_format: INPUT.FORMAT of the config, RGB or BGR.

    Returns:
        The larger of both stages' max |a - b| / max |b|.
    """
    rgb = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0))
    pixels = rgb.flip(0) if image_format == "BGR" else rgb
    trained = model.training
    model.eval()
    images = model.preprocess_image([{"image": pixels.to(torch.uint8)}])
    features = model.backbone(images.tensor)
    plain = Network(50, weights.width)
    plain.load_state_dict(weights.state)
    plain.eval()
    if weights.caffe2:
        own = rgb.flip(0)[None] - torch.tensor(caffe2.PIXEL_MEAN)[:, None, None]
        for block in plain.modules():
            if isinstance(block, Bottleneck):
                block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    else:
        own = normalize(rgb[None])
    x = plain.maxpool(plain.relu(plain.bn1(plain.conv1(own))))
    res4 = plain.layer3(plain.layer2(plain.layer1(x)))
    pairs = []
    if "res4" in features:
        pairs.append((features["res4"], res4))
        blocks = [block for block in model.roi_heads.res5 if hasattr(block, "conv1")]
        pairs.append((nn.Sequential(*blocks)(features["res4"]), plain.layer4(res4)))
    else:
        bottom_up = model.backbone.bottom_up(images.tensor)
        pairs.append((bottom_up["res5"], plain.layer4(res4)))
    model.train(trained)
    return max(float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in pairs)
