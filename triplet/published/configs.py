"""The released configs, resolved (configs/released/), and the settings in which another config differs.

configs/released/ holds detection.json (the differences from Detectron2's defaults, which lie beside it),
pretrain.json (the settings of the authors' configs) and stated.yaml (the claims of README and file names).
"""

import functools
import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import RootModel

from triplet.config import Settings
from triplet.config import parse as parse_settings
from triplet.paths import CONFIGS

FOLDER = CONFIGS / "released"
OWNERS = {"authors": "authors", "moco": "openselfsup"}
"""The table's two recipes -> the folder of ``released`` whose configs have it."""


# The kind of a Detectron2 setting by the prefix of its key; the first match counts.
KINDS = {
    "SOLVER.MAX_ITER": "schedule",
    "SOLVER.STEPS": "schedule",
    "SOLVER.WARMUP": "schedule",
    "SOLVER.LR_SCHEDULER": "learning rate",
    "SOLVER.BASE_LR": "learning rate",
    "SOLVER.IMS_PER_BATCH": "batch",
    "SOLVER.": "optimiser",
    "MODEL.RESNETS.NORM": "BN statistics",
    "TEST.PRECISE_BN": "PreciseBN",
    "INPUT.FORMAT": "input",
    "MODEL.PIXEL": "input",
    "MODEL.RESNETS.STRIDE_IN_1X1": "input",
    "INPUT.": "augmentation",
    "DATASETS.": "data",
    "TEST.": "evaluation",
    "MODEL.": "model",
}


# Keys of paths and of the machine, on which no result depends.
NEUTRAL = (
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "OUTPUT_DIR",
    "DATALOADER.NUM_WORKERS",
    "VERSION",
    "VIS_PERIOD",
    "CUDNN_BENCHMARK",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.AMP",
    "SEED",
    "TEST.EVAL_PERIOD",
    "SOLVER.REFERENCE",
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = json.loads(json.dumps(value))
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Invert ``flat``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        here = found
        for part in path:
            here = here.setdefault(part, {})
        here[last] = value
    return found


@functools.cache
def released() -> dict[str, dict[str, Any]]:
    """Return the released detection configs, resolved and flat, by ``<authors or openselfsup>/<file>``."""
    defaults = flat(json.loads((FOLDER / "detectron2_defaults.json").read_text()))
    found = json.loads((FOLDER / "detection.json").read_text())
    return {name: defaults | values for name, values in found.items()}


@functools.cache
def pretrainings() -> dict[str, dict[str, Any]]:
    """Return the released pretraining configs by file; ``batch`` is the images in an optimiser step."""
    found: dict[str, dict[str, Any]] = json.loads((FOLDER / "pretrain.json").read_text())
    for values in found.values():
        values["batch"] = values["loss.group"] * values["optimizer.groups"] * values["optimizer.accumulate"]
    return found


class Statement(Settings):
    source: str
    quote: str
    config: str
    """Name of the file in pretrain.json."""
    key: str
    low: float
    high: float


def nearest(settings: Mapping[str, Any], detector: str, recipe: str = "") -> tuple[str, list[str]]:
    """Find the released 2x config nearest to a resolved one, and the differences: ``key theirs -> ours``.

    The length of the schedule does not count as a difference, nor does a learning rate scaled with the
    batch.

    Args:
        settings: resolved settings of Detectron2.
        detector: c4 or fpn.
        recipe: the recipe whose config it must be, authors or moco; by default either.
    """
    ours = flat(settings)
    ours["SOLVER.BASE_LR"] = round(ours["SOLVER.BASE_LR"] * 16 / ours["SOLVER.IMS_PER_BATCH"], 6)
    ours["SOLVER.IMS_PER_BATCH"] = 16

    def differ(name: str) -> list[str]:
        return [
            key for key in differing(ours, released()[name]) if kind_of(key) not in ("schedule", "data")
        ]

    start = f"{OWNERS[recipe]}/" if recipe else ""
    names = [
        name for name in released() if name.startswith(start) and f"coco_R_50_{detector.upper()}_2x" in name
    ]
    name = min(names, key=lambda name: len(differ(name)))
    theirs = released()[name]
    return name, [f"{key} {shown(theirs[key])} -> {shown(ours[key])}" for key in differ(name)]


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return the keys that both have with different values; a key that only one version of Detectron2
    knows is skipped."""
    cosine = "WarmupCosineLR"  # has no steps
    both = ours["SOLVER.LR_SCHEDULER_NAME"] == theirs["SOLVER.LR_SCHEDULER_NAME"] == cosine
    neutral = (*NEUTRAL, "SOLVER.STEPS") if both else NEUTRAL
    return [
        key for key in theirs if key in ours and ours[key] != theirs[key] and not key.startswith(neutral)
    ]


def kind_of(key: str) -> str:
    return next((kind for start, kind in KINDS.items() if key.startswith(start)), "other")


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@functools.cache
def recipes() -> dict[str, tuple[str, float]]:
    """Return the table's two COCO recipes by scheduler: name, and learning rate for 16 images."""
    found = {}
    for name, who in OWNERS.items():
        settings = released()[f"{who}/coco_R_50_C4_2x_moco"]
        rate = settings["SOLVER.BASE_LR"] * 16 / settings["SOLVER.IMS_PER_BATCH"]
        found[settings["SOLVER.LR_SCHEDULER_NAME"]] = name, rate
    return found


def recipe_of(settings: Mapping[str, Any]) -> str:
    """Return ``authors`` (cosine) or ``moco`` (steps) of a resolved config at their learning rates, else
    ``own``; '' if it has no solver."""
    solver = settings.get("SOLVER", {})
    if not solver:
        return ""
    peak = solver.get("BASE_LR", 0) * 16 / solver.get("IMS_PER_BATCH", 16)
    name, rate = recipes().get(solver.get("LR_SCHEDULER_NAME", ""), ("own", 0.0))
    return name if round(peak, 6) == rate else "own"


def statements() -> list[Statement]:
    """Return the claims of the README and of file names about settings of released pretraining configs."""
    text = yaml.safe_load((FOLDER / "stated.yaml").read_text())
    return parse_settings(text, RootModel[list[Statement]], "stated.yaml").root
