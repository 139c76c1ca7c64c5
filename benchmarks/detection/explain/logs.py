"""Read the logs of Detectron2, the kit, maskrcnn-benchmark, Detectron and mmdetection."""

import contextlib
import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.detection.explain import configs, mmdetection
from benchmarks.detection.explain.scores import of_evaluation
from benchmarks.detection.explain.text import Line, lines, read_text
from triplet.published.curves import IMAGES
from triplet.published.facts import Facts, rescale

NUMBER = r"([-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|nan|inf))"
_ITER = re.compile(r"\biter: (\d{1,12})\b")
_EPOCH = re.compile(r"\bEpoch(:?) ?(?:\(train\))? *\[ *(\d{1,7})\] *\[ *(\d{1,9})/ *(\d{1,9})\]")
"""Words of mmdetection, which counts epochs from 1, and with a colon those of torchvision, from 0."""
_ITER_OF = re.compile(r"\bIter ?(?:\(train\))? *\[ *(\d{1,9})/ *(\d{1,9})\]")
_LR = re.compile(rf"(?<![\w_])(?:lr|learning_rate): {NUMBER}", re.I)
_LOSS = re.compile(rf"(?<![\w_.])(?:total_)?loss: {NUMBER}", re.I)
_DIVERGED = re.compile(
    r"\bloss (?:is|becomes?|became) (?:infinite|inf|nan|not finite)\b[^\n]{0,80}|"
    r"Predicted boxes or scores contain Inf/NaN[^\n]{0,40}|Training has diverged|"
    r"The loss value .{0,40} is not finite",
    re.I,
)
_WORLD = re.compile(
    r"World size: (\d{1,5})\b|\bnum_gpus=(\d{1,5})\b|\bUsing (\d{1,5}) GPUs\b|\bNUM_GPUS: (\d{1,5})\b"
)
_POOL = re.compile(r"BN over (\d{1,7}) images")
_IMAGES = re.compile(r"(\d{1,9}) images left")
_SKIPPED = re.compile(r"(?:Skip loading parameter '|size mismatch for )([\w.]{1,200})")
_SCALED = re.compile(
    rf"Auto-scaling the config to batch_size=(\d{{1,7}}), learning_rate={NUMBER}, max_iter=(\d{{1,9}})"
)
_NAMES = re.compile(
    r"(?:(?:backbone|roi_heads\.res5\.\d|bottom_up)[\w.]*|(?<![\w.])layer[1-4]\.\d[\w.]*)(?:\{[^{}]{0,500}\})?"
)
_LOADED = re.compile(
    r"\b(?:Loading(?: checkpoint)?|load checkpoint|Loads? checkpoint)(?: by \w+ backend)? from", re.I
)
_CHECKPOINT = re.compile(r"\b(?:(model_|epoch_|iter_)(\d{1,9})|model_final|latest|last)\.pth\b")
"""Names of checkpoints that Detectron2 and mmdetection write during a training."""
_ARRIVED = re.compile(
    r"\bbackbone\.[\w.]{1,200} +loaded from \S{1,200} +of shape|loaded from weights file into gpu_0/res\d"
)
"""Words of maskrcnn-benchmark and of Detectron on a tensor of the backbone that was loaded."""
_ABSENT = re.compile(r"((?:res\d|res_conv1|conv1)_\w{1,60}) not found")
"""Words of Detectron on a tensor of the backbone that is not in the weights' file."""
_RANDOM = re.compile(
    r"not (?:found )?in the checkpoint:|missing keys in source state_dict:|missing_keys=\[(?=[^\]])"
)
"""Words of fvcore, mmcv and torch before a list of tensors that were not loaded."""
_MMDETECTION = re.compile(r" - (?:mmdet|mmengine|root) - [A-Z]{4,8} - |\bmmdet\b.{0,20}: \d")
FEW = 10
"""Fewest steps with a loss that show whether it falls."""


@dataclass(frozen=True)
class LoggedStep:
    """One logged step of a training."""

    number: int
    """Iteration as in the log, from 0."""
    rate: float | None
    loss: float | None


def of_log(facts: Facts, path: Path, gpus: int | None = None, *, config_given: bool) -> None:
    """Fill in the facts from a log; its own copy of the config counts if none is given.

    The notes of the facts name what the log lacks.

    Args:
        facts: the facts to fill in.
        path: the log.
        gpus: number of GPUs of the training, if the user knows it.
        config_given: whether the facts have a config.

    Raises:
        KitError: the file cannot be read.
    """
    text, whole = read_text(path)
    if not whole:
        facts.notes.append(f"{path} is long: its beginning and its end were read")
    text = mmdetection.unpacked(text)
    found = lines(text)
    told = []
    if not config_given and configs.of_lines(facts, found, path):
        told.append("config")
    if config_given and "mmdetection" not in facts.other and _MMDETECTION.search(text[:200_000]):
        facts.notes.append(f"{path} is a log of mmdetection's, the config is not: are both of one run?")
    _settings(facts, text)
    if facts.batch is None and (epoch := _EPOCH.search(text)) and int(epoch[4]):
        facts.batch = round(IMAGES / int(epoch[4])) or None
        facts.notes.append(
            f"{path} has epochs of {epoch[4]} iterations: {facts.batch} images in each, if of train2017"
        )
    facts.gpus = gpus or facts.gpus
    rescale(facts)
    steps = _steps(found)
    if steps:
        told.append("iterations")
        _of_steps(facts, steps)
    of_benchmark = "maskrcnn_benchmark" in text
    told += _weights(facts, found, of_benchmark=of_benchmark)
    _evaluated(facts, found, steps)
    _divergence(facts, text, steps)
    of_evaluation(facts, found)
    of_detectron2 = "total_loss: " in text  # no other code base's log has both
    if of_detectron2 and any(step.rate is not None for step in steps):
        facts.precise_ran = "recise-" in text or ("PreciseBN" in text and "update_stats" in text)
    _say_what_was_missing(facts, path, found, steps, told, config_given=config_given)


def _say_what_was_missing(
    facts: Facts,
    path: Path,
    found: list[Line],
    steps: list[LoggedStep],
    told: list[str],
    *,
    config_given: bool,
) -> None:
    """Note what a log lacks, and which program may have written it."""
    if not told and facts.gpus is None and not facts.diverged and facts.reached is None:
        facts.notes.append(
            f"{path} told nothing: no config, iteration, weights or evaluation of Detectron2, "
            "maskrcnn-benchmark or mmdetection in it"
        )
        return
    missing = []
    if not steps:
        missing.append("iterations (so not where it stopped)")
    if not facts.checked and not facts.unloaded:
        missing.append("whether the weights were loaded")
    if not config_given and "config" not in told:
        missing.append("the config")
    if missing:
        facts.notes.append(f"{path} did not tell {', '.join(missing)}")


def _steps(found: list[Line]) -> list[LoggedStep]:
    """Return all training steps of a log, in its order."""
    steps, epochs = [], []
    for line in found:
        text = line.text
        if "{" in text and '"' in text and (step := _of_json(text)):
            if step[0] is not None:
                epochs.append(step)
            else:
                steps.append(step[1])
        elif match := _ITER.search(text):
            steps.append(LoggedStep(int(match[1]), _value(_LR, text), _value(_LOSS, text)))
        elif match := _EPOCH.search(text):
            epoch = int(match[2]) - (0 if match[1] else 1)
            number = epoch * int(match[4]) + int(match[3]) - (0 if match[1] else 1)
            steps.append(LoggedStep(max(number, 0), _value(_LR, text), _value(_LOSS, text)))
        elif match := _ITER_OF.search(text):
            steps.append(LoggedStep(max(int(match[1]) - 1, 0), _value(_LR, text), _value(_LOSS, text)))
    if epochs and not steps:  # mmdetection's JSON counts within an epoch
        size = max(step.number for _, step in epochs)
        steps = [
            LoggedStep(max((epoch - 1) * size + step.number - 1, 0), step.rate, step.loss)
            for epoch, step in epochs
            if epoch
        ]
    return steps


def _of_json(text: str) -> tuple[int | None, LoggedStep] | None:
    """Return a step of metrics.json, Detectron's json_stats or mmdetection's .log.json, with its epoch."""
    start, end = text.find("{"), text.rfind("}")
    try:
        values = json.loads(text[start : end + 1])
        number = values.get("iteration", values.get("iter", values.get("step")))
        loss = values.get("total_loss", values.get("loss"))
        if (
            values.get("mode", "train") != "train"
            or not isinstance(number, int)
            or isinstance(number, bool)
        ):
            return None
        rate = values.get("lr")
        if rate is None and loss is None:  # a line of an evaluation
            return None
        epoch = None if "step" in values else values.get("epoch")  # mmengine's steps count across epochs
        if not 0 <= number < 10**12:
            return None
        return (epoch if isinstance(epoch, int) and 0 < epoch < 10**6 else None), LoggedStep(
            number, _float(rate), _float(loss)
        )
    except (ValueError, RecursionError, AttributeError, TypeError):
        return None


def _float(value: object) -> float | None:
    """Return a number, which may be infinite or NaN; Detectron writes numbers as strings."""
    if isinstance(value, str) and len(value) < 40:
        with contextlib.suppress(ValueError):
            return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if value != value or abs(value) < 1e300 or math.isinf(value) else None


def _value(pattern: re.Pattern[str], text: str) -> float | None:
    match = pattern.search(text)
    try:
        return float(match[1]) if match else None
    except ValueError:
        return None


def _of_steps(facts: Facts, steps: list[LoggedStep]) -> None:
    """Fill in the last iteration of the training, and its rate."""
    last = steps[-1]  # a resumed run appends to the same file
    facts.iterations = last.number + 1
    rates = [step.rate for step in steps if step.rate is not None and math.isfinite(step.rate)]
    facts.last_rate = rates[-1] if rates else None
    if facts.rate is None and rates and steps[0].number < 5000:
        facts.rate = max(rates)  # the log includes the warm-up
    if facts.planned and abs(facts.planned - facts.iterations) < max(21, facts.planned // 1000):
        facts.iterations = facts.planned  # a log's lines are 20 to 100 iterations apart


def _settings(facts: Facts, text: str) -> None:
    """Fill in the number of GPUs, BN's images and the size of the training set."""
    if world := _WORLD.search(text):
        facts.gpus = int(next(group for group in world.groups() if group)) or None
    if pools := _POOL.findall(text):
        facts.pool = int(pools[-1])
    if images := _IMAGES.findall(text):
        facts.images = int(images[0])
    if scaled := _SCALED.search(text):
        before, facts.batch, facts.planned = facts.planned, int(scaled[1]) or None, int(scaled[3]) or None
        if facts.steps and facts.planned and before:
            facts.steps = tuple(round(step * facts.planned / before) for step in facts.steps)
        facts.rate, facts.rescaled = _value(_SCALED_RATE, text), True


_SCALED_RATE = re.compile(rf"\blearning_rate={NUMBER}")


def _evaluated(facts: Facts, found: list[Line], steps: list[LoggedStep]) -> None:
    """Note which checkpoint the log evaluates, if it is not the last one of the training."""
    match, last = None, 0
    for number, line in enumerate(found):
        if ".pth" in line.text and _LOADED.search(line.text):
            match, last = _CHECKPOINT.search(line.text), number
    if not match or not match[2] or any(_is_step(line.text) for line in found[last:]):
        return
    number = int(match[2])
    done = {"model_": number + 1, "iter_": number}.get(match[1])
    if done is None and facts.batch:
        done = round(number * IMAGES / facts.batch)
    whole = max(facts.iterations or 0, facts.planned or 0)
    if not done or (whole and done >= 0.99 * whole):
        return
    facts.notes.append(f"the evaluation is of {match[0]}, after {done} of {whole or 'unknown'} iterations")
    facts.iterations = done
    rates = [step.rate for step in steps if step.rate is not None and step.number <= done]
    facts.last_rate = rates[-1] if rates else None


def _is_step(text: str) -> bool:
    return any(pattern.search(text) for pattern in (_ITER, _EPOCH, _ITER_OF)) or text.startswith("{")


def _weights(facts: Facts, found: list[Line], *, of_benchmark: bool) -> list[str]:
    """Fill in the facts on the loading of weights; return what the log told.

    maskrcnn-benchmark does not name what it did not load, but every tensor that it did.
    """
    names: list[str] = []
    listing, told, scratch = False, False, False
    for line in found:
        begins = line.begins
        if listing and not begins:
            names += _NAMES.findall(line.text)
            continue
        listing = False
        if match := _RANDOM.search(line.text):
            listing = told = True
            names += _NAMES.findall(line.text[match.end() :].partition("unexpected_keys")[0])
        elif skipped := _SKIPPED.search(line.text):
            told = True
            names += _NAMES.findall(skipped[1])
        elif _LOADED.search(line.text):  # the training's own checkpoint shows nothing about its start
            told = True
            facts.checked |= not of_benchmark and not _CHECKPOINT.search(line.text)
        elif _ARRIVED.search(line.text):
            facts.checked = told = True
        elif absent := _ABSENT.fullmatch(line.text.strip()):
            told = True
            names.append(absent[1])
        elif "Initializing model from scratch" in line.text:
            scratch = told = True
    facts.unloaded = [name for name in names if "fpn" not in name and "num_batches" not in name][:10_000]
    if scratch and not facts.checked:
        facts.unloaded = ["every tensor"]
    return ["weights"] if told else []


def _divergence(facts: Facts, text: str, steps: list[LoggedStep]) -> None:
    """Fill in whether the loss became infinite or NaN, or never fell."""
    losses = [(step.number, step.loss) for step in steps if step.loss is not None]
    odd = next((step for step in losses if not math.isfinite(step[1])), None)
    if said := _DIVERGED.search(text):
        facts.diverged = f"the log says: {' '.join(said[0].split())}"
    elif odd:
        facts.diverged = f"the loss was {odd[1]:g} at iteration {odd[0]}"
    elif len(losses) >= FEW and losses[0][0] < 1000:
        first = median(loss for _, loss in losses[: max(3, len(losses) // 50)])
        last = median(loss for _, loss in losses[-max(3, len(losses) // 5) :])
        if last > 0.95 * first and losses[-1][0] - losses[0][0] > 1000:
            facts.diverged = f"the loss does not fall: {first:.3g} at first, {last:.3g} in the end"
        elif last <= 0.95 * first:
            facts.converged = True
