"""The common part of evaluation and prediction: find and load a trained model, and detect in one image at a
time."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.detection import model
from triplet import records
from triplet.errors import KitError
from triplet.signals import Stop
from triplet.weights import torch_file

from detectron2.config import CfgNode
from detectron2.modeling import GeneralizedRCNN, detector_postprocess
from detectron2.structures import Instances

PASTED = 256 << 20
"""Most bytes of masks at a time, one per pixel: 100 masks of an image of 24 megapixels have 2.4 GB."""


@dataclass(frozen=True)
class TrainedModel:
    """A detector's files, and what is known of them."""

    weights: Path
    config: Path
    record: records.Record | None
    """Record of the finetuning, if the config is its own."""
    classes: list[str]
    """Names of the classes in the order of the model's indices; empty if they are unknown."""
    category_ids: list[Any]
    """Ids of the classes in the data of the finetuning."""


def find_model(run: str, weights: Path | None = None, config: Path | None = None) -> TrainedModel:
    """Find the model of a run's finetuning, or describe any model file.

    The classes of a file are those in the record of a finetuning beside it, else those that the finetuning
    has written into the file itself.

    Args:
        run: a run whose finetune stage is done, unless there are weights.
        weights: any model file of Detectron2's.
        config: config of those weights; by default that of a finetuning whose record lies beside them.

    Raises:
        KitError: the run has no model, or the weights no config.
    """
    if weights is None and config is None:
        record = records.require(run, "finetune")
        weights, config = records.output(record, "model"), records.output(record, "config")
        return TrainedModel(
            weights, config, record, record.results["classes"], record.results["category_ids"]
        )
    beside = _record_beside(weights) if weights else None
    own = weights.parent / Path(beside.outputs["config"].path).name if weights and beside else None
    chosen = config or own
    if weights is None or chosen is None:
        raise KitError("--model needs --config, which says what it is")
    named = beside.results if beside else _named(weights)
    classes, ids = (list(named.get(key, ())) for key in ("classes", "category_ids"))
    return TrainedModel(weights, chosen, None if config else beside, classes, ids)


def _record_beside(weights: Path) -> records.Record | None:
    """Return the record of the finetuning that made a file, if it lies in the same folder."""
    with contextlib.suppress(KitError):  # a record of something else, or a damaged one
        record = records.read(weights.parent)
        if (
            record
            and record.stage == "finetune"
            and Path(record.outputs["model"].path).name == weights.name
        ):
            return record
    return None


def _named(weights: Path) -> dict[str, list[Any]]:
    """Return the classes and their ids that a finetuning has written into a file; {} if there are none."""
    with contextlib.suppress(KitError, OSError):  # what loads the file says what is wrong with it
        state = torch_file.read(weights, checksums=False, mapped=True)
        found = state if type(state) is dict else {}
        names, ids = (found.get(key) for key in ("classes", "category_ids"))
        if type(names) is type(ids) is list and len(names) == len(ids) and {*map(type, names)} == {str}:
            return {"classes": names, "category_ids": ids}
    return {}


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
