"""The configs of maskrcnn-benchmark and of Detectron (Caffe2), under Detectron2's names."""

import ast
import itertools
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.detection.explain.lazy import Values
from triplet.errors import KitError


def name_of(values: Values) -> str:
    """Return the code base of a config if it is not Detectron2."""
    if "MODEL.WEIGHT" in values or "MODEL.BACKBONE.CONV_BODY" in values or "INPUT.TO_BGR255" in values:
        return "maskrcnn-benchmark"
    caffe2 = "TRAIN.WEIGHTS" in values or "TRAIN.IMS_PER_BATCH" in values or "MODEL.CONV_BODY" in values
    return "Detectron" if caffe2 else ""


def printed(text: str, source: str) -> Values:
    """Parse the printed Python dict of Detectron's log, which may hold arrays of numpy's and be followed by
    other lines.

    Raises:
        KitError: it is not a dict.
    """
    text = re.sub(r"\barray\((\[[^()]{0,1000}\])[^()]{0,40}\)", r"\1", text)
    depths = itertools.accumulate((each in "{[(") - (each in ")]}") for each in text)
    end = next((place for place, depth in enumerate(depths) if text[place] == "}" and not depth), 0)
    try:
        content = ast.literal_eval(text[: end + 1].strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        content = None
    if not isinstance(content, Mapping):
        raise KitError(f"{source}: expected a dict of settings, found {text.strip()[:40]!r}")
    return dict(content)


def of_maskrcnn_benchmark(values: Values) -> Values:
    """Return maskrcnn-benchmark's settings under Detectron2's names, with its own defaults."""
    body = str(values.get("MODEL.BACKBONE.CONV_BODY", ""))
    mean, deviation = (values.get(f"INPUT.PIXEL_{name}") for name in ("MEAN", "STD"))
    bgr = values.get("INPUT.TO_BGR255", True)
    by = 1.0 if bgr else 255.0
    norm = re.search(r"(?:FPN|C4|C5)-(\w*(?:BN|GN))$", body)  # R-50-FPN-MABN
    found = {
        "MODEL.META_ARCHITECTURE": "RetinaNet" if values.get("MODEL.RETINANET_ON") else "GeneralizedRCNN",
        "MODEL.RESNETS.NORM": norm[1] if norm else "FrozenBN",
        "MODEL.BACKBONE.FREEZE_AT": values.get("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 2),
        "MODEL.RESNETS.STRIDE_IN_1X1": values.get("MODEL.RESNETS.STRIDE_IN_1X1", True),
        "MODEL.WEIGHTS": values.get("MODEL.WEIGHT"),
        "MODEL.PIXEL_MEAN": _scaled(mean, by) or [102.9801],
        "MODEL.PIXEL_STD": _scaled(deviation, by) or [1.0],
        "INPUT.FORMAT": "BGR" if bgr else "RGB",
        "SOLVER.IMS_PER_BATCH": 16,
        "INPUT.MIN_SIZE_TRAIN": [800],
        "INPUT.MIN_SIZE_TEST": 800,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": values.get("MODEL.ROI_HEADS.SCORE_THRESH", 0.05),
        "MODEL.BACKBONE.NAME": "fpn" if "FPN" in body else "",
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads" if "C4" in body else "",
        "DATASETS.TRAIN": values.get("DATASETS.TRAIN"),
    }
    own = ("SOLVER.", "MODEL.MASK_ON", "INPUT.MIN_SIZE", "NUM_GPUS")
    return found | {name: value for name, value in values.items() if name.startswith(own)}


def _scaled(values: Any, by: float) -> list[float]:
    if not isinstance(values, list | tuple):
        return []
    return [each * by for each in values if isinstance(each, int | float) and abs(each) < 1e6]


def of_detectron(values: Values) -> Values:
    """Return Caffe2 Detectron's settings under Detectron2's names; its batch is per GPU."""
    body = str(values.get("MODEL.CONV_BODY", ""))
    each, gpus = values.get("TRAIN.IMS_PER_BATCH", 2), values.get("NUM_GPUS", 1)
    known = all(isinstance(value, int) and 0 < value < 10**5 for value in (each, gpus))
    found = {
        "MODEL.META_ARCHITECTURE": "RetinaNet"
        if values.get("RETINANET.RETINANET_ON")
        else "GeneralizedRCNN",
        "MODEL.RESNETS.NORM": "FrozenBN",
        "MODEL.BACKBONE.NAME": "fpn" if "fpn" in body.lower() else "",
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeads" if "conv4" in body.lower() else "",
        "MODEL.MASK_ON": values.get("MODEL.MASK_ON", False),
        "MODEL.WEIGHTS": values.get("TRAIN.WEIGHTS"),
        "DATASETS.TRAIN": values.get("TRAIN.DATASETS"),
        "INPUT.MIN_SIZE_TRAIN": values.get("TRAIN.SCALES"),
        "SOLVER.IMS_PER_BATCH": each * gpus if known else None,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    }
    own = ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "NUM_GPUS")
    return found | {name: value for name, value in values.items() if name in own}
