"""Check before anything begins that the settings of a resolved detection config make sense."""

import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from benchmarks.detection import compat  # noqa: F401
from triplet import untrusted
from triplet.config import did_you_mean
from triplet.errors import KitError

from detectron2.config import CfgNode
from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    RPN_HEAD_REGISTRY,
)

BASES = 50
"""Most files in a config's chain of inheritance, itself included."""
# Integers from 1 up; the next list has those from 0 up.
ONE_OR_MORE = [
    "SOLVER.MAX_ITER",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.CHECKPOINT_PERIOD",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.ROI_HEADS.NUM_CLASSES",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION",
    "MODEL.RETINANET.NUM_CLASSES",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RESNETS.STEM_OUT_CHANNELS",
    "MODEL.RESNETS.WIDTH_PER_GROUP",
    "MODEL.RESNETS.NUM_GROUPS",
    "MODEL.RESNETS.RES2_OUT_CHANNELS",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.PRECISE_BN.NUM_ITER",
    "INPUT.MAX_SIZE_TRAIN",
    "INPUT.MAX_SIZE_TEST",
]
ZERO_OR_MORE = [
    "SOLVER.WARMUP_ITERS",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_BIAS",
    "DATALOADER.NUM_WORKERS",
    "INPUT.MIN_SIZE_TEST",
    "TEST.EVAL_PERIOD",
    "MODEL.RPN.LOSS_WEIGHT",
    "MODEL.RPN.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA",
    "MODEL.ROI_BOX_HEAD.NUM_FC",
    "MODEL.ROI_BOX_HEAD.NUM_CONV",
    "MODEL.ROI_MASK_HEAD.NUM_CONV",
    "MODEL.RETINANET.NUM_CONVS",
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
    "MODEL.BACKBONE.FREEZE_AT",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE",
]
POSITIVE = ("SOLVER.BASE_LR", "SOLVER.GAMMA", "SOLVER.BIAS_LR_FACTOR")
SHARES = [
    "SOLVER.MOMENTUM",
    "SOLVER.WARMUP_FACTOR",
    "MODEL.RPN.NMS_THRESH",
    "MODEL.RPN.POSITIVE_FRACTION",
    "MODEL.RPN.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    "MODEL.ROI_HEADS.IOU_THRESHOLDS",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.RETINANET.IOU_THRESHOLDS",
    "MODEL.RETINANET.PRIOR_PROB",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
]
"""Settings that are numbers from 0 to 1, or lists of them."""
WEIGHTS = (
    "MODEL.RPN.BBOX_REG_WEIGHTS",
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS",
    "MODEL.RETINANET.BBOX_REG_WEIGHTS",
)
"""Settings that weigh a box's four offsets."""
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
CHOICES = {
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": ("PrecomputedProposals", *dict(PROPOSAL_GENERATOR_REGISTRY)),
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.RESNETS.NORM": NORMS,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.FPN.NORM": NORMS,
    "MODEL.ROI_BOX_HEAD.NORM": NORMS,
    "MODEL.ROI_MASK_HEAD.NORM": NORMS,
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.CROP.TYPE": ("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
}


@contextmanager
def local_bases(path: Path) -> Iterator[None]:
    """Restrict a config's ``_BASE_`` to files on this machine that keep the bounds.

    Raises:
        KitError: a base is remote, not a file, part of too long a chain, or beyond a bound of
            ``untrusted.load_yaml``; or it is not a config.
    """
    opened: list[str] = []

    def open_local(cls: type[CfgNode], name: str) -> TextIO:
        opened.append(name)
        if "://" in name:
            raise KitError(f"{path}: _BASE_ names {name!r}, and only files of this machine are read")
        if len(opened) > BASES:
            raise KitError(
                f"{path}: its _BASE_ leads in a circle, or through more than {BASES} files: {name}"
            )
        if not Path(name).is_file():
            raise KitError(f"{path}: _BASE_ names {name!r}, which is not a file")
        text = untrusted.read_text(Path(name), untrusted.CONFIG, "detection config")
        values = untrusted.load_yaml(text, name)
        base = values.get("_BASE_", "") if isinstance(values, dict) else None
        if not all(isinstance(each, str) for each in (base if isinstance(base, list) else [base])):
            raise KitError(f"{name} is not a config: expected settings by name, and _BASE_ as file names")
        return io.StringIO(text)

    before = CfgNode.__dict__["_open_cfg"]
    CfgNode._open_cfg = classmethod(open_local)
    try:
        yield
    finally:
        CfgNode._open_cfg = before


def check(cfg: CfgNode, path: Path) -> None:
    """Check the settings of a config.

    Args:
        cfg: config with everything that it inherits and all overrides.
        path: path of its file, for the message.

    Raises:
        KitError: a setting is senseless; the message has its name, its value, and what was expected.
    """
    for key, found, expected in _problems(cfg):
        raise KitError(f"{path}: {key} is {found!r}, expected {expected}")


def _problems(cfg: CfgNode) -> Iterator[tuple[str, Any, str]]:
    """Yield the name of each senseless setting, its value, and what was expected."""
    yield from _not_finite(cfg, "")
    rules: tuple[tuple[Any, Callable[[Any], bool], str], ...] = (
        (ONE_OR_MORE, lambda value: value >= 1, "at least 1"),
        (ZERO_OR_MORE, lambda value: value >= 0, "at least 0"),
        (["DATALOADER.NUM_WORKERS"], lambda value: value <= 1024, "at most 1024"),
        (["SOLVER.IMS_PER_BATCH"], lambda value: value <= 1 << 16, "at most 65536"),
        (["MODEL.BACKBONE.FREEZE_AT"], lambda value: value <= 5, "at most 5, all stages of a ResNet"),
        (["SEED"], lambda value: -1 <= value < 1 << 32, "from 0 to 4294967295, or -1 for any"),
        (POSITIVE, lambda value: value > 0, "a number above 0"),
        (SHARES, lambda value: 0 <= value <= 1, "a number from 0 to 1"),
    )
    for keys, holds, expected in rules:
        for key in keys:
            value = _get(cfg, key)
            each = value if isinstance(value, list | tuple) else [value]
            if not all(item is None or (_is_number(item) and holds(item)) for item in each):
                yield key, value, expected
    for key, known in CHOICES.items():
        names = [name for name, _ in known] if not isinstance(known, tuple) else list(known)
        if (value := _get(cfg, key)) not in names and value is not None:
            words = [str(name) for name in names]
            yield key, value, f"one of Detectron2's; {did_you_mean(str(value), words)}"
    yield from _lists(cfg)


def _lists(cfg: CfgNode) -> Iterator[tuple[str, Any, str]]:
    """Yield the same as ``_problems`` for settings that are lists."""
    solver, steps = cfg.SOLVER, list(cfg.SOLVER.STEPS)
    inside = all(type(step) is int and 1 <= step <= solver.MAX_ITER for step in steps)
    if solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and (not inside or steps != sorted(steps)):
        yield (
            "SOLVER.STEPS",
            solver.STEPS,
            f"iterations from 1 to SOLVER.MAX_ITER={solver.MAX_ITER}, ascending",
        )
    for key in (
        "MODEL.RPN.IOU_THRESHOLDS",
        "MODEL.ROI_HEADS.IOU_THRESHOLDS",
        "MODEL.RETINANET.IOU_THRESHOLDS",
    ):
        if (value := list(_get(cfg, key))) != sorted(value) or not value:
            yield key, value, "thresholds in ascending order"
    sides = cfg.INPUT.MIN_SIZE_TRAIN
    each = list(sides) if isinstance(sides, list | tuple) else [sides]
    if not each or not all(type(side) is int and side >= 0 for side in each):
        yield "INPUT.MIN_SIZE_TRAIN", sides, "sides in pixels, 0 for the images' own"
    elif cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and len(each) != 2:
        yield "INPUT.MIN_SIZE_TRAIN", sides, "two sides, of which INPUT.MIN_SIZE_TRAIN_SAMPLING=range draws"
    crop, relative = cfg.INPUT.CROP.SIZE, cfg.INPUT.CROP.TYPE.startswith("relative")
    if not _are_positive(crop) or len(crop) != 2 or (max(crop) > 1 if relative else min(crop) < 1):
        yield "INPUT.CROP.SIZE", crop, f"two {'shares, above 0 up to 1' if relative else 'sides in pixels'}"
    yield from _numbers(cfg)


def _numbers(cfg: CfgNode) -> Iterator[tuple[str, Any, str]]:
    """Yield the same as ``_problems`` for settings that are lists of numbers, nearly all above 0."""
    for key in ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"):
        value = list(_get(cfg, key))
        rows = value if any(isinstance(row, list | tuple) for row in value) else [value]
        if not all(_are_positive(row) for row in rows):
            yield key, value, "numbers above 0, in one list or in one for each feature map"
    for key in WEIGHTS:
        if not _are_positive(value := _get(cfg, key)) or len(value) != 4:
            yield key, value, "four numbers above 0"
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != 3 or not all(map(_is_number, mean)):
        yield "MODEL.PIXEL_MEAN", mean, "three numbers"
    if len(std) != 3 or not _are_positive(std):
        yield "MODEL.PIXEL_STD", std, "three numbers above 0"


def _are_positive(values: Any) -> bool:
    """Return whether this is a list of numbers above 0, at least one."""
    listed = isinstance(values, list | tuple) and len(values) > 0
    return listed and all(_is_number(item) and item > 0 for item in values)


def _not_finite(node: Any, prefix: str) -> Iterator[tuple[str, Any, str]]:
    """Yield the numbers anywhere in the config that are not finite."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        name = f"{prefix}.{key}".removeprefix(".")
        if isinstance(value, dict | list | tuple):
            yield from _not_finite(value, name)
        elif isinstance(value, float) and not math.isfinite(value):
            yield name, value, "a finite number"


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _get(cfg: CfgNode, key: str) -> Any:
    """Return a setting by its name; None if this version of Detectron2 has none of that name."""
    node: Any = cfg
    for part in key.split("."):
        if part not in node:
            return None
        node = node[part]
    return node
