"""Read configs of any version of Detectron2, of maskrcnn-benchmark and Detectron, and mmdetection's .py.

No config is executed, and unknown keys may have any value.
"""

import ast
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from benchmarks.detection.explain import dialects, lazy, mmdetection
from benchmarks.detection.explain.lazy import Values
from benchmarks.detection.explain.text import Line, read_text
from triplet.errors import KitError, message_of
from triplet.published.configs import FOLDER, flat, released
from triplet.published.configs import OWNERS as RELEASED_BY
from triplet.published.facts import Facts, of_config

LIMIT = 64 << 10
"""Most bytes of a config; a complete one of Detectron2's has 10 kB."""
KEYS, DEPTH, BASES = 5000, 20, 10
"""Limits on the number of settings, their nesting, and the chain of ``_BASE_``."""
BLOCK = 3000
"""Most lines of a config in a log."""
SECTIONS = ("SOLVER", "MODEL", "INPUT", "TEST", "TRAIN", "DATASETS")
"""Sections of a detector's config."""
OWNERS = {"authors": "the authors' file", "moco": "OpenSelfSup's"}
"""Recipe of the kit -> whose released configs have it."""
_BRACKETS = {"[": 1, "{": 1, "]": -1, "}": -1}


class _Loader(yaml.SafeLoader):
    """Safe loader that reads tuples as lists, ignores other Python objects, and does not merge mappings.

    Mappings that are merged into each other could grow without bound.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Treat ``<<`` as a key like any other."""


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    """Construct a Python tuple as a list."""
    return loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _sequence)
_Loader.add_constructor("tag:yaml.org,2002:merge", lambda loader, node: "<<")
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def of_file(facts: Facts, path: Path, recipe: str) -> str:
    """Fill in the facts from a config file; return its name and its bases', which may say 1x or 2x.

    Args:
        facts: the facts to fill in.
        path: the config.
        recipe: the kit's name for the recipe that a missing base is taken from.

    Raises:
        KitError: the file does not exist, cannot be read, or has no setting of a detector.
    """
    if not path.is_file():
        raise KitError(f"no detection config at {path}; see configs/detection/")
    if path.suffix == ".py":
        _of_python(facts, _whole(path), str(path))
        return path.name
    names: list[str] = []
    values = _chain(path, names, facts, recipe)
    if "MODEL.META_ARCHITECTURE" in values and not dialects.name_of(values):
        values = flat(json.loads((FOLDER / "detectron2_defaults.json").read_text())) | values
    if not _knows_detectors(values):  # within another program's config, such as Hydra's
        inner = re.compile(rf"^[\w.]{{1,200}}?\.(?=(?:{'|'.join(SECTIONS)})\.)")
        values = {inner.sub("", name): value for name, value in values.items()}
    if not _knows_detectors(values):
        raise KitError(
            f"{path}: no setting of a detector in it; expected Detectron2's YAML (SOLVER, MODEL, ...) "
            "or LazyConfig, or mmdetection's .py"
        )
    _note_recipe(facts, path, values)
    _fill(facts, values)
    return " ".join(names)


def _of_python(facts: Facts, text: str, source: str) -> None:
    """Fill in the facts from a Python config of Detectron2 or mmdetection; KitError for anything else."""
    if lazy.is_lazy(text):
        _fill(facts, lazy.of_text(text, source))
    else:
        mmdetection.of_config(facts, text, source)


def of_lines(facts: Facts, found: Sequence[Line], path: Path) -> bool:
    """Fill in the facts from the last config in a log; return whether there was one.

    Raises:
        KitError: the log has a config that cannot be read.
    """
    start, kind = None, ""
    for number, line in enumerate(found):
        if "Running with full config:" in line.text or "Running with config:" in line.text:
            start, kind = number, "detectron2"  # keep the latest session's
        elif line.text.rstrip() == "Training with config:":
            start, kind = number, "detectron"
        elif line.text.rstrip() == "Config:" and re.match(r"\w+ ?= ?", _block(found, number)):
            start, kind = number, "mmdetection"
    arguments = _arguments(found)
    if start is None:
        return _of_arguments(facts, found, arguments)
    text = _block(found, start)
    if kind == "mmdetection":
        mmdetection.of_config(facts, text, str(path))
        return True
    if kind == "detectron":  # a message of its own
        text = f"{found[start + 1].text if found[start + 1 :] else ''}\n{_block(found, start + 1)}"
    parse = dialects.printed if kind == "detectron" else _parse
    try:
        values = _flat(parse(text[:LIMIT], str(path)), str(path))
    except KitError:
        values = {}
    if not _knows_detectors(values):
        raise KitError(f"{path}: its copy of the config cannot be read; add --config FILE")
    _fill(facts, values)
    return True


def _block(found: Sequence[Line], start: int) -> str:
    """Return the lines of a log between one and the next with which a message begins."""
    lines = found[start + 1 : start + 1 + BLOCK]
    return "\n".join(line.text for line in itertools.takewhile(lambda line: not line.begins, lines))


def _arguments(found: Sequence[Line]) -> Values:
    """Return the command line's overrides that a log of Detectron2 shows: ``opts=['KEY', 'value',
    ...]``."""
    for line in found[:2000]:
        if match := re.search(r"opts=(\[[^\[\]]{0,4000}\])", line.text):
            words = _literal(match[1])
            if isinstance(words, list) and all(isinstance(word, str) for word in words):
                if any("=" in word for word in words):  # a LazyConfig's overrides
                    pairs = (word.partition("=") for word in words)
                    return lazy.of_values({key: _literal(value) for key, _, value in pairs})
                return dict(zip(words[::2], map(_literal, words[1::2]), strict=False))
    return {}


def _of_arguments(facts: Facts, found: Sequence[Line], arguments: Values) -> bool:
    """Fill in the facts from the config file and overrides named in a log without a complete config."""
    start = next((n for n, line in enumerate(found) if "Contents of args.config_file=" in line.text), None)
    values: Values = {}
    if start is not None:
        text = _block(found, start)
        try:
            values = lazy.of_text(text, "log") if lazy.is_lazy(text) else _flat(_parse(text, "log"), "log")
        except KitError:
            values = {}
    values |= {key: value for key, value in arguments.items() if key.isupper() or "." in key}
    if not _knows_detectors(values):
        return False
    _fill(facts, values)
    return True


def _chain(path: Path, names: list[str], facts: Facts, recipe: str) -> Values:
    """Return the settings of a config and its bases, by dotted name."""
    if len(names) >= BASES:
        raise KitError(f"{path}: more than {BASES} configs in a chain of _BASE_")
    names.append(path.name)
    content = _parse(_whole(path), str(path))
    bases = content.pop("_BASE_", None)
    values: Values = {}
    for base in bases if isinstance(bases, list) else [bases] if bases else []:
        values |= _base(path, str(base), names, facts, recipe)
    found = _flat(content, str(path))
    return values | (lazy.of_values(found) if "train.max_iter" in found else found)


def _whole(path: Path) -> str:
    """Read the text of a config; KitError if it is longer than any real config."""
    text, whole = read_text(path, LIMIT)
    if not whole:
        raise KitError(f"{path}: has more than {LIMIT >> 10} kB; expected a config")
    return text


def _base(path: Path, base: str, names: list[str], facts: Facts, recipe: str) -> Values:
    """Return the settings of a base: the file beside its config, or the released base of that name."""
    beside = path.parent / base
    if "\0" not in base and "://" not in base and beside.is_file():
        return _chain(beside, names, facts, recipe)
    name = PurePosixPath(base).stem
    names.append(name)
    if both := _namesakes(name):
        if unlike := _unlike(both):
            other = next(each for each in OWNERS if each != recipe)
            facts.notes.append(
                f"{path}: its base {name}.yaml is not there and was taken for {OWNERS[recipe]}; "
                f"{OWNERS[other]} of that name differs in {', '.join(unlike)}: put the right one beside it"
            )
        return both[recipe]
    if known := _GENERAL.get(name):
        return dict(known)
    facts.notes.append(f"{path}: its base {base[:100]} is not there, so its settings are unknown")
    return {}


def _namesakes(name: str) -> dict[str, Values]:
    """Return the released configs of a name, by the recipe that the kit's config of this name has."""
    known = {recipe: released().get(f"{who}/{name}") for recipe, who in RELEASED_BY.items()}
    return {recipe: dict(values) for recipe, values in known.items() if values}


def _unlike(both: Mapping[str, Values]) -> list[str]:
    """Return the settings in which configs of the same name differ."""
    first, *others = both.values()
    return [key for key in first if any(other[key] != first[key] for other in others)]


def _note_recipe(facts: Facts, path: Path, values: Values) -> None:
    """Note whose file a config is, if the authors and OpenSelfSup both have one of its name."""
    both = _namesakes(path.stem)
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    told = [key for key in _unlike(both) if found.get(key) is not None] if both else []
    for recipe, known in both.items():
        if told and all(found[key] == known[key] for key in told):
            ours = f"{path.stem.lower().replace('r_50', 'r50').removesuffix('_moco')}_{recipe}"
            facts.notes.append(
                f"{path.name}: by its settings it is {OWNERS[recipe]} of that name, and in the kit it is "
                f"configs/detection/{ours.removeprefix('pascal_')}.yaml"
            )


_RCNN: Values = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 90000,
    "INPUT.MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800],
    "DATASETS.TRAIN": ["coco_2017_train"],
}
_FPN = _RCNN | {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
}
_GENERAL: dict[str, Values] = {
    "Base-RCNN-FPN": _FPN,
    "Base-RCNN-C4": _RCNN | {"MODEL.ROI_HEADS.NAME": "Res5ROIHeads"},
    "Base-RetinaNet": _FPN
    | {"MODEL.META_ARCHITECTURE": "RetinaNet", "MODEL.ROI_HEADS.NAME": "", "SOLVER.BASE_LR": 0.01},
    "Base-RCNN-C4-BN": _RCNN
    | {
        "MODEL.ROI_HEADS.NAME": "Res5ROIHeadsExtraNorm",
        "MODEL.RESNETS.NORM": "SyncBN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
        "TEST.PRECISE_BN.ENABLED": True,
        "MODEL.RPN.PRE_NMS_TOPK_TEST": 6000,
    },
}
"""Settings of the bases that Detectron2 and MoCo ship, as far as this module reads them."""


def _parse(text: str, source: str) -> Values:
    """Parse a YAML mapping without anything that could be executed; KitError for anything else."""
    if max(itertools.accumulate(_BRACKETS.get(each, 0) for each in text[:LIMIT]), default=0) > DEPTH:
        raise KitError(f"{source}: Detectron2 refuses it: brackets in more than {DEPTH} brackets")
    try:
        content = yaml.load(text[:LIMIT], Loader=_Loader)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError, LookupError) as error:
        raise KitError(f"{source}: Detectron2 refuses it: {message_of(error, 200)}") from None
    if not isinstance(content, Mapping):
        raise KitError(
            f"{source}: Detectron2 refuses it: expected keys with values, found {text.strip()[:40]!r}"
        )
    return dict(content)


def _flat(content: Mapping[Any, Any], source: str) -> Values:
    """Flatten nested settings to dotted names, decoded as Detectron2 does; KitError if there are too
    many."""
    found: Values = {}
    stack: list[tuple[str, Mapping[Any, Any], int]] = [("", content, 0)]
    while stack:
        prefix, values, depth = stack.pop()
        for key, value in values.items():
            if isinstance(value, Mapping) and "value" in value and value.keys() <= {"desc", "value"}:
                value = value["value"]  # as Weights & Biases writes a config
            name = f"{prefix}{key if isinstance(key, str) else type(key).__name__}"
            if isinstance(value, Mapping) and depth < DEPTH:
                stack.append((f"{name}.", value, depth + 1))
            else:
                found[name] = _literal(value) if isinstance(value, str) else value
            if len(found) + len(stack) > KEYS or len(name) > 2000:
                raise KitError(f"{source}: more than {KEYS} settings, or deeper than any config is")
    return found


def _literal(value: str) -> Any:
    """Return the value of a string as yacs reads it, such as ``(640, 672)`` or ``1e-4``; else the
    string."""
    if len(value) > 1000 or value[:1] not in "([-.'\"0123456789TFN":
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return value


def _knows_detectors(values: Values) -> bool:
    """Return whether any setting belongs to a detector's config."""
    return any(name.partition(".")[0] in SECTIONS and "." in name for name in values)


def _fill(facts: Facts, values: Values) -> None:
    """Fill in the facts from a config of any code base."""
    dialect = dialects.name_of(values)
    if dialect == "maskrcnn-benchmark":
        values = dialects.of_maskrcnn_benchmark(values)
    elif dialect == "Detectron":
        values = dialects.of_detectron(values)
    of_config(facts, values)
    gpus = values.get("NUM_GPUS")
    if facts.gpus is None and isinstance(gpus, int) and not isinstance(gpus, bool) and 0 < gpus < 10**5:
        facts.gpus = gpus
