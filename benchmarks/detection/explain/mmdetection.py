"""Read mmdetection's configs: Python files of ``dict(...)``, which are parsed and never run."""

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from triplet.errors import KitError, message_of
from triplet.published.curves import IMAGES
from triplet.published.facts import Facts

GPUS, EACH = 8, 2
"""GPUs, and images per GPU, for which mmdetection's configs are written."""
EPOCHS = {"1x": 12, "2x": 24, "20e": 20, "3x": 36}
STEPS = {"1x": [8, 11], "2x": [16, 22], "20e": [16, 19], "3x": [24, 33]}
"""Epochs after which the rate falls in mmdetection's schedules."""
DEPTH = 40
"""Deepest nesting that is read."""


def unpacked(text: str) -> str:
    """Unpack the machine and the config from the strings in the first line of mmdetection's .log.json."""
    start = text.find('{"env_info"', 0, 1000)
    if start < 0:
        return text
    try:
        values, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return text
    machine, config = (str(values.get(name, "")) for name in ("env_info", "config"))
    return f"{machine}\nConfig:\n{config}\nINFO:mmdet:\n{text[end:]}" if config else machine + text[end:]


def count_gpus(text: str) -> int | None:
    """Count the GPUs that a log of mmdetection's or mmengine's lists."""
    if number := re.search(r"\bGPU number: (\d{1,4})\b", text):
        return int(number[1]) or None
    listed = re.search(r"^\W{0,20}GPU (\d{1,3}(?:,\d{1,3}){0,63}): ", text, re.M)
    return len(listed[1].split(",")) if listed else None


def of_config(facts: Facts, text: str, source: str) -> None:
    """Fill in the facts from a config of mmdetection's.

    Args:
        facts: the facts to fill in.
        text: text of the file, or of its copy in a log.
        source: origin of the text, for the message of the KitError.

    Raises:
        KitError: the text is not Python, or sets nothing.
    """
    try:
        tree = ast.parse(text)
        values = {
            target.id: _value(node.value, 0)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise KitError(f"{source}: cannot be read as mmdetection's config: {message_of(error)}") from None
    if not values:
        raise KitError(f"{source}: no setting in it; expected mmdetection's .py or Detectron2's YAML")
    bases = " ".join(map(str, _list(values.get("_base_")))) + " " + source
    _schedule(facts, values, bases)
    _model(facts, values, bases)
    _pipelines(facts, values)


def _schedule(facts: Facts, values: dict[str, Any], bases: str) -> None:
    """Convert epochs to iterations of the batch."""
    loader = values.get("data") or values.get("train_dataloader")
    each = _first(loader, "samples_per_gpu", "imgs_per_gpu", "batch_size")
    each = each if isinstance(each, int) and 0 < each < 10**4 else EACH
    if facts.gpus is None:
        facts.notes.append(f"mmdetection's config does not say on how many GPUs it ran: {GPUS} are assumed")
    facts.batch = each * (facts.gpus or GPUS)
    named = re.search(r"(?:schedule_|_)(1x|2x|20e|3x)(?![a-z0-9])", bases)
    epochs = _first(values.get("runner"), "max_epochs") or values.get("total_epochs")
    epochs = (
        epochs or _first(values.get("train_cfg"), "max_epochs") or (EPOCHS[named[1]] if named else None)
    )
    if isinstance(epochs, int) and 0 < epochs < 10**4:
        facts.planned = max(1, round(epochs * IMAGES / facts.batch))
    schedulers = [values.get("lr_config"), *_list(values.get("param_scheduler"))]
    steps = next((found for each in schedulers if (found := _first(each, "step", "milestones"))), None)
    steps = steps or (STEPS[named[1]] if named else None)
    if isinstance(steps, list) and all(type(step) is int and 0 < step < 10**4 for step in steps):
        facts.steps = tuple(round(step * IMAGES / facts.batch) for step in steps)
    optimizer = values.get("optimizer") or _first(values.get("optim_wrapper"), "optimizer")
    rate = _first(optimizer, "lr")
    if isinstance(rate, int | float) and 0 < rate < 1e6:
        facts.rate = float(rate)
    elif named:
        facts.rate = 0.01 if "retinanet" in bases else 0.02
    facts.scheduler = "WarmupMultiStepLR" if named else facts.scheduler


def _model(facts: Facts, values: dict[str, Any], bases: str) -> None:
    """Fill in detector, normalisation, frozen stages and input."""
    model = values.get("model")
    kind = str(_first(model, "type") or "")
    retina = "RetinaNet" in kind or "retinanet" in bases
    facts.kind = "c4" if re.search(r"_c4(?![a-z])", bases) else "fpn"
    masks = "Mask" in kind or "mask" in bases.lower()
    facts.masks = masks
    facts.other = f"{'RetinaNet' if retina else kind or 'a detector'} of mmdetection"
    backbone = _first(model, "backbone")
    frozen = _first(backbone, "norm_eval")
    norm = str(_first(_first(backbone, "norm_cfg"), "type") or "BN")
    trains = frozen is False or (norm == "SyncBN" and frozen is None)
    facts.norm = norm if trains else "FrozenBN"  # BN does not train by default: norm_eval=True
    stages = _first(backbone, "frozen_stages")
    facts.freeze_at = max(stages + 1, 0) if isinstance(stages, int) and stages < 10 else 2
    weights = _first(model, "pretrained") or _first(_first(backbone, "init_cfg"), "checkpoint")
    facts.weights = weights if isinstance(weights, str) else values.get("load_from") or facts.weights
    if not isinstance(facts.weights, str):
        facts.weights = None
    style = _first(backbone, "style")
    norm = values.get("img_norm_cfg") or values.get("preprocess_cfg") or _first(model, "data_preprocessor")
    mean, deviation = _list(_first(norm, "mean")), _list(_first(norm, "std"))
    rgb = _first(norm, "to_rgb", "bgr_to_rgb")
    if mean or style:
        facts.pixels = (
            None if rgb is None else ("RGB" if rgb else "BGR"),
            float(mean[0]) if mean and isinstance(mean[0], int | float) and abs(mean[0]) < 1e6 else None,
            float(deviation[0])
            if deviation and isinstance(deviation[0], int | float) and abs(deviation[0]) < 1e6
            else None,
            style == "caffe" if isinstance(style, str) else None,
        )
    facts.mixed = "fp16" in values or None


def _pipelines(facts: Facts, values: dict[str, Any]) -> None:
    """Fill in the sizes of training and test images, if the file itself has the pipelines."""
    for part in ("train", "test"):
        data = _first(values.get("data"), part)
        found = [values.get(f"{part}_pipeline"), data, values.get(f"{part}_dataloader")]
        scales = list(_scales(found, 0))
        if not scales:
            continue
        shorter, longer = sorted({min(scale) for scale in scales}), max(max(scale) for scale in scales)
        if part == "train":
            facts.sizes, facts.longest = tuple(shorter), longer
        else:
            facts.test_size, facts.test_longest = shorter[-1], longer


def _scales(values: Any, depth: int) -> Iterator[tuple[int, int]]:
    """Yield both sides of each size that a pipeline resizes to."""
    if depth > DEPTH:
        return
    if isinstance(values, list):
        for value in values:
            yield from _scales(value, depth + 1)
    elif isinstance(values, dict):
        for name, value in values.items():
            if name not in ("img_scale", "scale", "scales"):
                yield from _scales(value, depth + 1)
                continue
            sizes = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
            pairs = [size for size in sizes if isinstance(size, list) and len(size) == 2]
            yield from ((a, b) for a, b in pairs if all(type(n) is int and 0 < n < 10**5 for n in (a, b)))


def _value(node: ast.AST, depth: int) -> Any:
    """Return the plain value of an expression; None for an expression that would have to be run."""
    if depth > DEPTH:
        return None
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Dict):
        keys = [_value(key, depth + 1) if key else None for key in node.keys]
        pairs = zip(keys, node.values, strict=True)
        return {key: _value(value, depth + 1) for key, value in pairs if isinstance(key, str)}
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(each, depth + 1) for each in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
        return {each.arg: _value(each.value, depth + 1) for each in node.keywords if each.arg}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = _value(node.operand, depth + 1)
        return -inner if isinstance(inner, int | float) else None
    return None


def _first(values: Any, *names: str) -> Any:
    """Return the first of the named settings that exists."""
    if not isinstance(values, dict):
        return None
    return next((values[name] for name in names if values.get(name) is not None), None)


def _list(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) else []
