"""Read Detectron2's LazyConfig: Python files, which are parsed and never run, and their copies as YAML."""

import ast
import re
from collections.abc import Iterator
from typing import Any

from triplet.errors import KitError, message_of

Values = dict[str, Any]
KEYS = {
    "train.max_iter": "SOLVER.MAX_ITER",
    "train.init_checkpoint": "MODEL.WEIGHTS",
    "train.amp.enabled": "SOLVER.AMP.ENABLED",
    "dataloader.train.total_batch_size": "SOLVER.IMS_PER_BATCH",
    "dataloader.train.dataset.names": "DATASETS.TRAIN",
    "dataloader.test.dataset.names": "DATASETS.TEST",
    "dataloader.evaluator.max_dets_per_image": "TEST.DETECTIONS_PER_IMAGE",
    "optimizer.lr": "SOLVER.BASE_LR",
    "optimizer.weight_decay": "SOLVER.WEIGHT_DECAY",
    "model.input_format": "INPUT.FORMAT",
    "model.pixel_mean": "MODEL.PIXEL_MEAN",
    "model.pixel_std": "MODEL.PIXEL_STD",
    "model.roi_heads.num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
    "model.num_classes": "MODEL.ROI_HEADS.NUM_CLASSES",
}
"""Settings under their names in YAML; those of the backbone are below."""
_BACKBONE = re.compile(r"model\.backbone(?:\.bottom_up)?\.(freeze_at|(?:stem|stages)(?:\.\w+)*\.?norm)$")
_COMMON: Values = {
    "SOLVER.MAX_ITER": 90_000,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.WEIGHT_DECAY": 1e-4,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "DATASETS.TRAIN": ["coco_2017_train"],
    "DATASETS.TEST": ["coco_2017_val"],
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.STRIDE_IN_1X1": True,
    "MODEL.PIXEL_MEAN": [103.53],
    "MODEL.PIXEL_STD": [1.0],
    "INPUT.FORMAT": "BGR",
}
"""Settings of Detectron2's configs/common, as far as this module reads them (commit 02478d2e)."""
_FPN = {"MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone", "MODEL.ROI_HEADS.NAME": "StandardROIHeads"}
_MODELS: dict[str, Values] = {
    "mask_rcnn_c4": {"MODEL.MASK_ON": True, "MODEL.ROI_HEADS.NAME": "Res5ROIHeads"},
    "mask_rcnn_fpn": {"MODEL.MASK_ON": True, **_FPN},
    "retinanet": {"MODEL.META_ARCHITECTURE": "RetinaNet", **_FPN, "SOLVER.BASE_LR": 0.01},
}


def is_lazy(text: str) -> bool:
    """Return whether Python text is a LazyConfig and not a config of mmdetection's."""
    return bool(
        re.search(r"\bLazyCall\b|\b(?:train\.max_iter|train\.init_checkpoint|optimizer\.lr)\b", text)
    )


def of_text(text: str, source: str) -> Values:
    """Return the settings of a file under their names in YAML; KitError if it is not Python."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise KitError(f"{source}: cannot be read as a LazyConfig: {message_of(error)}") from None
    base: Values = {}
    if re.search(r"\bcommon[./]", text):
        base |= _COMMON
    for name in re.findall(r"\bcommon[./]models[./](\w{1,40})", text):
        base |= {"MODEL.META_ARCHITECTURE": "GeneralizedRCNN"} | _MODELS.get(name, {})
    return base | of_values(dict(_assigned(tree)))


def of_values(values: Values) -> Values:
    """Return settings, flat by dotted name, under their names in YAML."""
    found = {KEYS[name]: value for name, value in values.items() if name in KEYS}
    for name, value in values.items():
        if match := _BACKBONE.fullmatch(name):
            found["MODEL.BACKBONE.FREEZE_AT" if "freeze" in match[1] else "MODEL.RESNETS.NORM"] = value
    if isinstance(target := values.get("model._target_"), str):
        found["MODEL.META_ARCHITECTURE"] = target.rpartition(".")[2]
    if "FPN" in str(values.get("model.backbone._target_", "")):
        found |= _FPN
    elif "Res5ROIHeads" in str(values.get("model.roi_heads._target_", "")):
        found["MODEL.ROI_HEADS.NAME"] = "Res5ROIHeads"
    if found and "model.roi_heads._target_" in values:
        found["MODEL.MASK_ON"] = any(name.startswith("model.roi_heads.mask_head") for name in values)
    return found


def _assigned(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Yield the values assigned to dotted names, or set by ``name.update(key=value)``."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _plain(ast.unparse(target), node.value)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            name, _, called = ast.unparse(node.value.func).rpartition(".")
            if called == "update":
                for each in node.value.keywords:
                    yield from _plain(f"{name}.{each.arg}", each.value)


def _plain(name: str, node: ast.expr) -> Iterator[tuple[str, Any]]:
    try:
        yield name, ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return
