"""Deviations of runs from the released configs, found by comparing resolved configs key by key."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triplet.published import causes
from triplet.published.configs import (
    OWNERS,
    differing,
    flat,
    kind_of,
    pretrainings,
    released,
    shown,
    statements,
)
from triplet.published.methods import Method
from triplet.published.reference import Reference
from triplet.runs import Run, facts_of_run

CAUSES = {
    "schedule": "schedule",
    "learning rate": "learning rate",
    "batch": "learning rate",
    "BN statistics": "BN statistics",
    "PreciseBN": "PreciseBN",
    "input": "colour order, mean, stride",
}
"""Kind of deviation -> the cause in triplet.published.causes that gives its size."""


@dataclass(frozen=True)
class Deviation:
    """One setting that differs from its reference."""

    run: str
    """'' if a released config deviates from a published statement."""
    stage: str
    against: str
    """The reference: a file, or the source of the statement."""
    key: str
    theirs: str
    ours: str
    kind: str
    size: str = ""
    """Cost in box AP, if it was measured or published."""


def stated() -> list[Deviation]:
    """Find the settings in which a released config deviates from README or from its own name."""
    found = []
    for said in statements():
        value = pretrainings()[said.config][said.key]
        if not said.low <= value <= said.high:
            span = f"{said.low:g}" if said.low == said.high else f"{said.low:g} to {said.high:g}"
            theirs = f"{span} ({said.quote})"
            against = f"{said.source}, beside {said.config}.py"
            found.append(Deviation("", "pretrain", against, said.key, theirs, f"{value:g}", "release"))
    return found


def recipes() -> list[tuple[str, str, str]]:
    """Return (key, authors' value, baselines' value) for each difference of the table's two COCO
    recipes."""
    ours, theirs = (released()[f"{who}/coco_R_50_C4_2x_moco"] for who in ("authors", "openselfsup"))
    return [(key, shown(ours[key]), shown(theirs[key])) for key in differing(ours, theirs)]


def run_deviations(run: Run, methods: Mapping[str, Method]) -> list[Deviation]:
    """Return all deviations of a run's pretraining and finetuning."""
    found = []
    pretrain = run.stages.get("pretrain")
    if pretrain:
        found += _pretraining(run.name, flat(pretrain.config))
    if run.detectron2:
        found += _finetuning(run, methods)
    return found


def _pretraining(name: str, ours: dict[str, Any]) -> list[Deviation]:
    """Compare with the nearest released config of the same method; empty if none is released."""
    of_method = [item for item in pretrainings().items() if item[1]["method"] == ours.get("method")]
    if not of_method:
        return []
    against, theirs = min(of_method, key=lambda item: sum(ours.get(k) != v for k, v in item[1].items()))
    return [
        Deviation(
            name, "pretrain", f"{against}.py", key, shown(value), shown(ours[key]), key.partition(".")[0]
        )
        for key, value in theirs.items()
        if key in ours and ours[key] != value
    ]


def reference(run: Run, methods: Mapping[str, Method]) -> str:
    """Return the name of the released config that a run is compared with.

    It is the one behind the method's numbers in the table, or the nearest one for another kind of detector,
    data set or method.
    """
    ours = flat(run.detectron2)
    method = methods.get(run.method)
    if method and run.of_the_table:
        return f"{OWNERS[method.recipe]}/coco_R_50_C4_2x{'' if ours['INPUT.FORMAT'] == 'BGR' else '_moco'}"
    return min(released(), key=lambda name: len(differing(ours, released()[name])))


def _finetuning(run: Run, methods: Mapping[str, Method]) -> list[Deviation]:
    ours, against = flat(run.detectron2), reference(run, methods)
    theirs, sizes = released()[against], _sizes(run, methods)
    differ = {key: (theirs[key], ours[key], kind_of(key)) for key in differing(ours, theirs)}
    config = run.stages["finetune"].config
    # Settings outside Detectron2's config. The released runs used float32, and BN over the whole batch.
    batch = theirs["SOLVER.IMS_PER_BATCH"]
    beside = (("precision", "float32", "precision"), ("bn_images", batch, "BN statistics"))
    for key, expected, kind in beside:
        if config.get(key, expected) != expected:
            differ[key] = (expected, config[key], kind)
    return [
        Deviation(
            run.name,
            "finetune",
            f"{against}.yaml",
            key,
            shown(before),
            shown(now),
            kind,
            sizes.get(CAUSES.get(kind, ""), ""),
        )
        for key, (before, now, kind) in differ.items()
    ]


def _sizes(run: Run, methods: Mapping[str, Method]) -> dict[str, str]:
    """Return the costs of the causes that were seen in a run, by name of the cause."""
    box, mask = run.value("bbox", "AP"), run.value("segm", "AP")
    if not run.of_the_table or run.method not in methods or box is None or mask is None:
        return {}
    return {
        cause.name: f"{cause.box[0]:.1f} to {cause.box[1]:.1f} box AP"
        for cause in causes.find(facts_of_run(run), Reference.of_method(run.method), (box, mask))
        if cause.verdict == causes.SEEN and cause.box
    }
