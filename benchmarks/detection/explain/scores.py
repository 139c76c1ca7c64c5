"""Read the box and mask AP at the end of a log or a file of results."""

import re
from collections.abc import Iterator

from benchmarks.detection.explain.text import Line
from triplet.published.facts import Facts
from triplet.scores import TASKS

BRIEF = 50
"""Number of lines of a file of results that are read as one."""
_TASK = {word: task for task, kits in TASKS.items() for word in (task, kits)}
"""Each word for a task in a log -> COCO's."""
_NUMBER = r"(\d[\d.]{0,20})"
_HEAD = re.compile(r"(?:Evaluation results for|copypaste: Task:) (bbox|segm|box|mask)\b")
"""Heading of results: Detectron2 writes percent after ``bbox``, Detectron fractions after ``box``."""
_CELL = re.compile(rf"(?:.{{0,80}}copypaste: )?\|? *{_NUMBER}[|, ]")
_TYPE = re.compile(r"(?:Evaluate annotation type \*|Evaluating )(bbox|segm)\b")
_SUMMARY = re.compile(
    r"Average Precision {1,4}\(AP\) @\[ IoU=0\.50:0\.95 \| area= {0,4}all \| maxDets= {0,4}\d+ \] = "
    + _NUMBER
)
"""Summary of pycocotools, in fractions."""
_PERCENT = re.compile(rf"['\"]?\b(bbox|segm)(?:/AP\"|['\"](?:: |, )\{{ *['\"]AP['\"]): {_NUMBER}")
"""Results in Detectron2's metrics.json, or in the dictionary that it returns."""
_FRACTION = re.compile(rf"\b(bbox|segm)(?:_mAP\"?: |['\"], OrderedDict\(\[\(['\"]AP['\"], ){_NUMBER}")
"""Results of mmdetection, as text and as JSON, and of maskrcnn-benchmark."""


def of_evaluation(facts: Facts, found: list[Line]) -> None:
    """Fill in the box and mask AP at the end of a log, in percent."""
    values = dict(_aps(found))
    if not values:
        values = dict(_aps([Line(" ".join(line.text for line in found[:BRIEF]), begins=False)]))
    if "bbox" in values:
        facts.reached = values["bbox"], values.get("segm")


def _aps(found: list[Line]) -> Iterator[tuple[str, float]]:
    """Yield each AP that a log reports in percent, by COCO's name of the task."""
    head = kind = last = ""
    for line in found:
        text = line.text
        if match := _HEAD.search(text):
            head = match[1]
        elif match := _TYPE.search(text):
            kind = match[1]
        elif match := _SUMMARY.search(text):
            last = kind or ("segm" if last == "bbox" else "bbox")
            kind = ""
            yield from _percent(last, match[1], fraction=True)
        elif head and (match := _CELL.match(text)):
            yield from _percent(_TASK[head], match[1], fraction=head not in TASKS)
            head = ""
        elif "AP" in text:
            for pattern in (_PERCENT, _FRACTION):
                for match in pattern.finditer(text):
                    yield from _percent(match[1], match[2], fraction=pattern is _FRACTION)


def _percent(task: str, text: str, *, fraction: bool) -> Iterator[tuple[str, float]]:
    """Yield a number as percent; nothing for one that is not an AP."""
    try:
        value = float(text)
    except ValueError:
        return
    if 0 <= value <= 100:
        yield task, 100 * value if fraction and value <= 1 else value
