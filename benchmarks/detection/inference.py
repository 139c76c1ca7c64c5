"""The common part of evaluation and prediction: load a trained model, and detect in one image at a time."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection import model
from triplet.errors import KitError
from triplet.signals import Stop

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Instances

PASTED = 256 << 20
"""Most bytes of masks at a time, one per pixel: 100 masks of an image of 24 megapixels have 2.4 GB."""


def load_network(cfg: CfgNode, weights: Path) -> nn.Module:
    """Return a config's model with the weights of a file, ready to detect in float32.

    Raises:
        KitError: the file is damaged, or belongs to another model.
    """
    model.allow_tf32(False)
    network = model.build(cfg)
    model.load_trained(network, weights)
    return network


@torch.no_grad()
def detect(
    network: nn.Module, images: Iterable[dict[str, Any] | KitError], stop: Stop
) -> Iterator[tuple[dict[str, Any] | KitError, Iterable[Instances]]]:
    """Yield each image with its detections, in the given order; end early at a stop.

    The detections come in parts, whose masks are as large as the image and fill at most PASTED bytes.

    All proposals of the config (1000 in the released files) go through the head: any of them may end among
    the 100 detections that are kept, so fewer proposals would change the numbers. The masks are computed
    for those detections alone, as in Detectron2.

    Args:
        network: made by ``load_network``; it is put into evaluation mode.
        images: images from Detectron2's mapper, or the error for an unreadable one, which is passed on.
        stop: polled before each image.
    """
    network.eval()
    for image in images:
        if stop:
            return
        if isinstance(image, KitError):
            yield image, ()
        else:
            yield image, _parts(network, image)


@torch.no_grad()
def _parts(network: nn.Module, image: dict[str, Any]) -> Iterator[Instances]:
    """Yield the detections in one image, as Detectron2's models return them all together."""
    if not isinstance(network, GeneralizedRCNN):  # no other model here has masks
        yield network([image])[0]["instances"].to("cpu")
        return
    (found,) = network.inference([image], do_postprocess=False)
    height, width = image["height"], image["width"]
    count = max(1, PASTED // (height * width))
    for start in range(0, len(found), count):
        yield detector_postprocess(found[start : start + count], height, width).to("cpu")
