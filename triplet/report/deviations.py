"""Where runs depart from what was released, told from resolved configs key by key.

configs/released/ holds theirs: detection.json (what differs from Detectron2's defaults, which lie beside
it), pretrain.json (what the authors' configs fix) and stated.yaml (what README and file names say).
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import RootModel

from benchmarks.detection import explain
from triplet.config import Settings
from triplet.config import parse as parse_settings
from triplet.methods import Method
from triplet.paths import CONFIGS
from triplet.report.coco import facts
from triplet.report.collect import Run

FOLDER = CONFIGS / "released"
# What a key of Detectron2's decides, by how it begins; the first that fits.
KINDS = {
    "SOLVER.MAX_ITER": "schedule", "SOLVER.STEPS": "schedule", "SOLVER.WARMUP": "schedule",
    "SOLVER.LR_SCHEDULER": "learning rate", "SOLVER.BASE_LR": "learning rate",
    "SOLVER.IMS_PER_BATCH": "batch", "SOLVER.": "optimiser",
    "MODEL.RESNETS.NORM": "BN statistics", "TEST.PRECISE_BN": "PreciseBN",
    "INPUT.FORMAT": "input", "MODEL.PIXEL": "input", "MODEL.RESNETS.STRIDE_IN_1X1": "input",
    "INPUT.": "augmentation", "DATASETS.": "data", "TEST.": "evaluation", "MODEL.": "model",
}  # fmt: skip
# Where files lie and what the machine is; nothing that a result depends on.
NEUTRAL = (
    "MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "VERSION", "VIS_PERIOD",
    "CUDNN_BENCHMARK", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.AMP", "SEED", "TEST.EVAL_PERIOD",
    "SOLVER.REFERENCE",
)  # fmt: skip
CAUSES = {
    "schedule": "schedule", "learning rate": "learning rate", "batch": "learning rate",
    "BN statistics": "BN statistics", "PreciseBN": "PreciseBN", "input": "colour order, mean, stride",
}  # fmt: skip
"""Kind -> the cause in benchmarks.detection.explain that knows its size."""


@dataclass(frozen=True)
class Deviation:
    """One setting that is not what it is compared with."""

    run: str
    """'' where a release departs from what is said of it."""
    stage: str
    against: str
    """The file, or whoever said it."""
    key: str
    theirs: str
    ours: str
    kind: str
    size: str = ""
    """What it costs in box AP, where that was measured or published."""


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = json.loads(json.dumps(value))
    return found


@functools.cache
def released() -> dict[str, dict[str, Any]]:
    """The released detection configs, resolved and flat, by ``<authors or openselfsup>/<file>``."""
    defaults = flat(json.loads((FOLDER / "detectron2_defaults.json").read_text()))
    found = json.loads((FOLDER / "detection.json").read_text())
    return {name: defaults | values for name, values in found.items()}


@functools.cache
def pretrainings() -> dict[str, dict[str, Any]]:
    """The released pretraining configs, by file; ``batch`` is what an optimiser step sees."""
    found = json.loads((FOLDER / "pretrain.json").read_text())
    for values in found.values():
        values["batch"] = values["loss.group"] * values["optimizer.groups"] * values["optimizer.accumulate"]
    return found


class Statement(Settings):
    source: str
    quote: str
    config: str
    """In pretrain.json."""
    key: str
    low: float
    high: float


def stated() -> list[Deviation]:
    """Where a released config departs from what README or its own name says."""
    text = yaml.safe_load((FOLDER / "stated.yaml").read_text())
    found = []
    for said in parse_settings(text, RootModel[list[Statement]], "stated.yaml").root:
        value = pretrainings()[said.config][said.key]
        if not said.low <= value <= said.high:
            span = f"{said.low:g}" if said.low == said.high else f"{said.low:g} to {said.high:g}"
            theirs = f"{span} ({said.quote})"
            against = f"{said.source}, beside {said.config}.py"
            found.append(Deviation("", "pretrain", against, said.key, theirs, f"{value:g}", "release"))
    return found


def recipes() -> list[tuple[str, str, str]]:
    """(key, authors', baselines') wherever the two COCO recipes of the table differ."""
    ours, theirs = (released()[f"{who}/coco_R_50_C4_2x_moco"] for who in ("authors", "openselfsup"))
    return [(key, _shown(ours[key]), _shown(theirs[key])) for key in _differing(ours, theirs)]


def of_run(run: Run, methods: Mapping[str, Method]) -> list[Deviation]:
    """All of a run's, of its pretraining and of its finetuning."""
    found = []
    pretrain = run.stages.get("pretrain")
    if pretrain and pretrain.config.get("method", "triplet") == "triplet":
        found += _pretraining(run.name, flat(pretrain.config))
    if run.detectron2:
        found += _finetuning(run, methods)
    return found


def _pretraining(name: str, ours: dict[str, Any]) -> list[Deviation]:
    against, theirs = min(
        pretrainings().items(), key=lambda item: sum(ours.get(k) != v for k, v in item[1].items())
    )
    return [
        Deviation(
            name, "pretrain", f"{against}.py", key, _shown(value), _shown(ours[key]), key.partition(".")[0]
        )
        for key, value in theirs.items()
        if key in ours and ours[key] != value
    ]  # fmt: skip


def reference(run: Run, methods: Mapping[str, Method]) -> str:
    """The released config that a run is compared with.

    The one that its row's numbers in the table were reached with, or the nearest one for another kind of
    detector, data set or row.
    """
    ours = flat(run.detectron2)
    method = methods.get(run.row)
    if method and run.of_the_table:
        who = "authors" if method.detection.endswith("authors") else "openselfsup"
        return f"{who}/coco_R_50_C4_2x{'' if ours['INPUT.FORMAT'] == 'BGR' else '_moco'}"
    return min(released(), key=lambda name: len(_differing(ours, released()[name])))


def nearest(settings: Mapping[str, Any], detector: str) -> tuple[str, list[str]]:
    """The released 2x config that is nearest to a resolved one, and what differs: ``key theirs -> ours``.

    The length of the schedule does not count, nor a learning rate that is scaled with the batch.

    Args:
        settings: of Detectron2.
        detector: c4 or fpn.
    """
    ours = flat(settings)
    ours["SOLVER.BASE_LR"] = round(ours["SOLVER.BASE_LR"] * 16 / ours["SOLVER.IMS_PER_BATCH"], 6)
    ours["SOLVER.IMS_PER_BATCH"] = 16

    def differ(name: str) -> list[str]:
        return [key for key in _differing(ours, released()[name]) if _kind(key) not in ("schedule", "data")]

    names = [name for name in released() if f"coco_R_50_{detector.upper()}_2x" in name]
    name = min(names, key=lambda name: len(differ(name)))
    theirs = released()[name]
    return name, [f"{key} {_shown(theirs[key])} -> {_shown(ours[key])}" for key in differ(name)]


def _differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Keys of both whose values differ; a key that only one version of Detectron2 knows is none."""
    cosine = "WarmupCosineLR"  # which has no steps
    both = ours["SOLVER.LR_SCHEDULER_NAME"] == theirs["SOLVER.LR_SCHEDULER_NAME"] == cosine
    neutral = (*NEUTRAL, "SOLVER.STEPS") if both else NEUTRAL
    return [
        key for key in theirs if key in ours and ours[key] != theirs[key] and not key.startswith(neutral)
    ]


def _finetuning(run: Run, methods: Mapping[str, Method]) -> list[Deviation]:
    ours, against = flat(run.detectron2), reference(run, methods)
    theirs, sizes = released()[against], _sizes(run, methods)
    differ = {key: (theirs[key], ours[key], _kind(key)) for key in _differing(ours, theirs)}
    config = run.stages["finetune"].config
    # What a run chooses beside Detectron2's config; theirs ran in float32, their BN over the whole batch.
    batch = theirs["SOLVER.IMS_PER_BATCH"]
    beside = (("precision", "float32", "precision"), ("bn_images", batch, "BN statistics"))
    for key, expected, kind in beside:
        if config.get(key, expected) != expected:
            differ[key] = (expected, config[key], kind)
    return [
        Deviation(
            run.name, "finetune", f"{against}.yaml", key, _shown(before), _shown(now), kind,
            sizes.get(CAUSES.get(kind, ""), ""),
        )
        for key, (before, now, kind) in differ.items()
    ]  # fmt: skip


def _kind(key: str) -> str:
    return next((kind for start, kind in KINDS.items() if key.startswith(start)), "other")


def _sizes(run: Run, methods: Mapping[str, Method]) -> dict[str, str]:
    """What the causes that were seen in a run cost, by their name."""
    box, mask = run.value("bbox", "AP"), run.value("segm", "AP")
    if not run.of_the_table or run.row not in methods or box is None or mask is None:
        return {}
    return {
        cause.name: f"{cause.box[0]:.1f} to {cause.box[1]:.1f} box AP"
        for cause in explain.find(facts(run), run.row, (box, mask))
        if cause.verdict == explain.SEEN and cause.box
    }


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
