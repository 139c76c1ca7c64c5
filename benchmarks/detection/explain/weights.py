"""Read a weights file: whether it holds a trained backbone, with its own BN, and of which method."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from triplet.config import read
from triplet.errors import KitError
from triplet.files import sha256
from triplet.models.resnet import ResNet
from triplet.paths import CONFIGS
from triplet.published.causes import network
from triplet.published.facts import Facts
from triplet.published.methods import load_methods
from triplet.weights import detectron2_format, read_backbone
from triplet.weights.detectron2_format import detectron2_name

STATISTICS = re.compile(r"running_(mean|var)$")
"""Names of BN's statistics, which a file for Detectron2 may lack if BN is folded into the convolutions."""


def of_weights(facts: Facts, path: Path, method: str) -> bool:
    """Fill in the facts from a checkpoint in any format that the kit reads, or from Detectron2's own file.

    Args:
        facts: the facts to fill in.
        path: path of the checkpoint.
        method: method of the table, or empty.

    Returns:
        Whether ``triplet convert`` reads the file.

    Raises:
        KitError: the file has no complete backbone; the message says what it has.
    """
    try:
        backbone = read_backbone(path)
    except KitError:
        if (converted := _converted(path)) is None:
            raise
        arrays, untrained = converted["model"], False
        caffe2 = converted.get("__author__") == "Caffe2"
        if not caffe2 and (unloadable := _unloadable(path, converted)):
            facts.unloadable = unloadable
            return False
        convertible = False
    else:
        convertible = True
        arrays = {detectron2_name(name): value.numpy() for name, value in backbone.state.items()}
        caffe2, untrained = backbone.caffe2, backbone.untrained
    statistics = [(name, value) for name, value in arrays.items() if STATISTICS.search(name)]
    default = all((value == float(name.endswith("var"))).all() for name, value in statistics)
    facts.folded = caffe2 or (default and _scaled(arrays))
    if untrained or (default and not facts.folded):
        facts.other_weights = f"{path.name} holds initial weights: its BN has seen no image"
        return convertible
    if path.name in network.ANOTHER:
        facts.weights = path.name
        return convertible
    published = _published(method)
    _note_which(facts, path, method)
    sums = [
        file["checksum"].removeprefix("sha256:")
        for file in published
        if "sha256:" in file.get("checksum", "")
    ]
    if sums and sha256(path) in sums:
        facts.published_weights = True
    elif method and path.name not in [file["name"] for file in published]:
        names = " or ".join(file["name"] for file in published)
        facts.notes.append(
            f"{path.name} holds a trained backbone; whether it is that of {names}, its name does not say"
        )
    return convertible


def _note_which(facts: Facts, path: Path, method: str) -> None:
    """Note if a file has the name of another one of the method's weights than the kit takes."""
    first, *others = load_methods()[method].weights if method else [""]
    files = {name: [file["name"] for file in _files(name)] for name in (first, *others) if name}
    for other in others:
        if path.name in files[other]:
            facts.notes.append(
                f"{path.name} is by its name {other}, and the kit takes {' or '.join(files[first])} by "
                "default; which of them the published AP belongs to is not said"
            )


def _converted(path: Path) -> dict[str, Any] | None:
    """Return the content of a .pkl that was made for Detectron2; None for any other file."""
    if path.suffix != ".pkl":
        return None
    try:
        return detectron2_format.read_whole(path)
    except (pickle.UnpicklingError, OSError):
        return None


def _unloadable(path: Path, converted: Mapping[str, Any]) -> str:
    """Say why Detectron2 leaves tensors of a ResNet-50 random with a .pkl; empty if it does not."""
    if "__author__" not in converted:
        return f"{path.name} names no __author__, so Detectron2 takes it for Caffe2's and cannot read it"
    names = list(converted["model"])
    if not converted.get("matching_heuristics"):  # its names must then be the model's
        if any(name.startswith("backbone.") for name in names):
            return ""
        return f"{path.name} lacks matching_heuristics, without which Detectron2 loads none of its tensors"
    places = {re.sub(r"^(backbone\.)?(bottom_up\.)?|^roi_heads\.", "", name) for name in names}
    wanted = [detectron2_name(name) for name, value in ResNet(50, 1).state_dict().items() if value.ndim]
    random = [name for name in wanted if name not in places and not STATISTICS.search(name)]
    if not random:
        return ""
    lacks = f"{path.name} lacks {len(random)} of Detectron2's names, {random[0]} first"
    return f"{lacks}, so these tensors stay random; its own begin with {', '.join(names[:1]):.60}"


def _scaled(arrays: Mapping[str, np.ndarray]) -> bool:
    """Return whether BN's own scale and shift have been trained."""
    scales = [value for name, value in arrays.items() if name.endswith(("norm.weight", "norm.bias"))]
    return any(bool((value != value.flat[0]).any()) for value in scales if value.size)


def _published(method: str) -> list[dict[str, Any]]:
    """Return the published files of a method from configs/sources.yaml."""
    if not method:
        return []
    return [file for name in load_methods()[method].weights for file in _files(name)]


def _files(name: str) -> list[dict[str, Any]]:
    """Return the published files of weights in configs/sources.yaml."""
    files: list[dict[str, Any]] = read(CONFIGS / "sources.yaml")["weights"][name]["files"]
    return files
