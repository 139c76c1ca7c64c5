"""Detectron2's names for a ResNet's tensors, and its weight file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from triplet import files
from triplet.weights import arrays, wrappers


def detectron2_name(name: str) -> str:
    """Rename ``layer1.0.bn1.weight`` to ``res2.0.conv1.norm.weight``, as the authors' converter does."""
    if "layer" not in name:
        name = "stem." + name
    for stage in (1, 2, 3, 4):
        name = name.replace(f"layer{stage}", f"res{stage + 1}")
    for conv in (1, 2, 3):
        name = name.replace(f"bn{conv}", f"conv{conv}.norm")
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a backbone as the .pkl that Detectron2 loads by matching suffixes of names.

    Detectron2 matches suffixes only with ``matching_heuristics`` and only in a .pkl; without either it
    loads nothing and only warns.
    """
    model = {detectron2_name(name): value.numpy() for name, value in state.items()}
    content = {"model": model, "__author__": "triplet-kit", "matching_heuristics": True}
    with files.atomic(path) as temporary, temporary.open("wb") as file:
        pickle.dump(content, file, protocol=4)


def read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a Detectron2 .pkl by name; raises as ``read_whole``."""
    model: dict[str, np.ndarray] = read_whole(path)["model"]
    return model


def read_whole(path: Path) -> dict[str, Any]:
    """Read a Detectron2 .pkl: arrays by name under ``model``, and what else it says.

    Raises:
        pickle.UnpicklingError: the file is damaged, or has more than arrays by name and plain values.
    """
    content: Any = arrays.read(path, encoding="latin1")  # as Detectron2 does
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise pickle.UnpicklingError("no 'model' in it")
    if odd := [
        name for name, value in model.items() if not isinstance(name, str) or not _is_numeric(value)
    ]:
        raise pickle.UnpicklingError(f"{wrappers.text(odd[0])!r:.60} is not an array of numbers by name")
    return {wrappers.text(key): value for key, value in content.items()}


def _is_numeric(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
