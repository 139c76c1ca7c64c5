"""Read a weights file: whether it holds a trained backbone, with its own BN, and of which method."""

from pathlib import Path
from typing import Any

from triplet.config import read
from triplet.files import sha256
from triplet.paths import CONFIGS
from triplet.published.causes import network
from triplet.published.facts import Facts
from triplet.published.methods import load_methods
from triplet.weights import read_backbone
from triplet.weights.read import Backbone


def of_weights(facts: Facts, path: Path, method: str) -> None:
    """Fill in the facts from a checkpoint in any format that the kit reads.

    Args:
        facts: the facts to fill in.
        path: path of the checkpoint.
        method: method of the table, or empty.

    Raises:
        KitError: the file has no complete backbone; the message says what it has.
    """
    backbone = read_backbone(path)
    facts.folded = backbone.caffe2 or (backbone.default_statistics and _scaled(backbone))
    if backbone.untrained or (backbone.default_statistics and not facts.folded):
        facts.other_weights = f"{path.name} holds initial weights: its BN has seen no image"
        return
    if path.name in network.ANOTHER:
        facts.weights = path.name
        return
    published = _published(method)
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


def _scaled(backbone: Backbone) -> bool:
    """Return whether BN's own scale and shift have been trained."""
    values = [
        value
        for name, value in backbone.state.items()
        if "bn" in name and name.endswith((".weight", ".bias"))
    ]
    return any(bool((value != value.flatten()[0]).any()) for value in values)


def _published(method: str) -> list[dict[str, Any]]:
    """Return the published files of a method from configs/sources.yaml."""
    if not method:
        return []
    weights = read(CONFIGS / "sources.yaml")["weights"]
    return [file for name in load_methods()[method].weights for file in weights[name]["files"]]
