"""Ultralytics' YOLO data sets: a YAML, and a text file per image with a polygon or a box in each row."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from triplet import files as kit_files
from triplet import untrusted
from triplet.annotations import coco
from triplet.annotations.findings import Findings, show
from triplet.annotations.image_files import is_file, upright_size
from triplet.datasets.parts import NAMES, AnnotatedPart, PartFiles, name_below, split_path
from triplet.errors import KitError
from triplet.images import SUFFIXES
from triplet.progress import Bar, is_local_main

YAML = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = "classes.txt"
"""Label Studio's file of class names, one per line, beside images/ and labels/."""
MOST = 10_000
"""Most classes without names."""
DEEPEST = 8
"""Most parts of a path to look for below the YAML's folder."""
SLACK = 0.01
"""Share of an image's side by which a coordinate may lie outside, as tools round."""


def find(folder: Path) -> dict[str, PartFiles]:
    """Find the parts that a YAML names; {} if there is no YAML.

    Raises:
        KitError: data.yaml is unreadable, or a file or folder that it names is missing.
    """
    path = _yaml_in(folder)
    if path is None:
        return {}
    values = _load(path)
    found = {}
    for part, names in NAMES.items():
        told = [value for key, value in values.items() if names.fullmatch(str(key)) and value]
        if entries := next(iter(told), None):
            listed = tuple(_locate(path, values, entry) for entry in _texts(path, part, entries))
            found[part] = PartFiles(path, _common(listed), listed)
    if "train" not in found:
        raise KitError(
            f"{path} names no images to train on: expected a key 'train' with a folder or a list"
        )
    return found if "val" in found else {"all": found["train"]}


def read(files: PartFiles) -> AnnotatedPart:
    """Read a part; every row of a label file becomes an annotation, with its polygon unchanged.

    Raises:
        KitError: no images or labels, an unreadable image, or a row that is neither a box nor a polygon of
            a known class.
    """
    classes = _classes(files.annotations, _load(files.annotations))
    paths = [path for place in files.listed for path in _images_at(place)]
    if not paths:
        raise KitError(f"{files.listed[0]} holds no image ({', '.join(sorted(SUFFIXES))})")
    problems = Findings()
    images, annotations = list[dict[str, Any]](), list[dict[str, Any]]()
    with Bar(f"data: reading {files.listed[0].name}", len(paths), quiet=not is_local_main()) as bar:
        for number, path in enumerate(paths, 1):
            width, height = upright_size(path)
            name = os.path.relpath(path, files.images)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for each in _objects(path, (width, height), classes, problems):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **each})
            bar.step()
    problems.refuse()
    if not annotations:
        raise KitError(
            f"{files.listed[0]}: none of its {len(paths)} images has a label; expected "
            f"{_label_of(paths[0])} for {paths[0].name}"
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": id, "name": name} for id, name in classes.items()],
    }
    return AnnotatedPart(
        coco.check_content(files.annotations, content).content, files.images, files.annotations
    )


def _yaml_in(folder: Path) -> Path | None:
    if folder.is_file():
        return folder if folder.suffix in (".yaml", ".yml") else None
    named = [folder / name for name in YAML if (folder / name).is_file()]
    others = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    if not named and any(each.is_dir() for each in (folder / "labels", *folder.glob("*/labels"))):
        named = others if len(others) == 1 else [each for each in [folder / CLASSES] if each.is_file()]
    return named[0] if named else None


def _load(path: Path) -> Mapping[str, Any]:
    if path.name == CLASSES:
        lines = untrusted.read_text(path, untrusted.CONFIG, "list of classes").splitlines()
        return {"names": [line.strip() for line in lines if line.strip()], "train": "images"}
    values = untrusted.load_yaml(untrusted.read_text(path, untrusted.CONFIG, "data.yaml"), str(path))
    values = values if type(values) is dict else {}
    count = values.get("nc")
    if values.get("names") is None and type(count) is int and 0 < count <= MOST:
        values = {**values, "names": [f"class_{number}" for number in range(count)]}  # as Ultralytics
    if "names" not in values:
        raise KitError(f"{path} describes no YOLO data set: it has no 'names' of classes")
    if "kpt_shape" in values:
        raise KitError(f"{path} is of poses (kpt_shape); what is read are polygons and boxes")
    return values


def _classes(path: Path, values: Mapping[str, Any]) -> dict[int, str]:
    """Return the class names by index, from a list or a mapping."""
    names = values["names"]
    table = dict(enumerate(names)) if type(names) is list else names
    if type(table) is dict:
        table = {int(id) if str(id).isdecimal() else id: name for id, name in table.items()}
    if (
        type(table) is not dict
        or not table
        or any(type(id) is not int or id < 0 or type(name) not in (str, int) for id, name in table.items())
    ):
        raise KitError(
            f"{path}: names is {show(names)}, expected a list of names, or a name for each index"
        )
    return {id: str(name) for id, name in sorted(table.items())}


def _texts(path: Path, key: str, value: Any) -> list[str]:
    texts = value if type(value) is list else [value]
    if any(type(text) is not str or not text or "\0" in text for text in texts):
        raise KitError(
            f"{path}: {key} is {show(value)}, expected a folder, a text file, or a list of these"
        )
    return texts


def _locate(path: Path, values: Mapping[str, Any], entry: str) -> Path:
    """Return the path of an entry of the YAML: below its ``path``, or beside the YAML if ``path`` or the
    beginning of the entry belongs to another machine."""
    root = str(values.get("path") or ".")
    here = path.parent
    # Roboflow writes ../train/images though its YAML lies beside train/, and Ultralytics reads it so.
    places = [base / text for base in (here / root, here) for text in (entry, entry.removeprefix("../"))]
    # Its package writes the path from where it was called, and Windows backslashes. One part alone, such as
    # `images`, would be the same folder for train and for val.
    parts = split_path(entry)[-DEEPEST:]
    places += [here.joinpath(*parts[first:]) for first in range(len(parts) - 1)]
    for place in places:
        if "\0" not in root and place.exists():
            return Path(os.path.abspath(place))  # noqa: PTH100 - resolve would also follow links
    raise KitError(f"{path} names {entry!r} below the path {root!r}: there is nothing at {places[0]}")


def _common(places: Sequence[Path]) -> Path:
    """Return the folder that contains all images."""
    folders = [folder for place in places for folder in ([place] if place.is_dir() else _folders_of(place))]
    return Path(os.path.commonpath(folders)) if folders else places[0]


def _folders_of(listed: Path) -> list[Path]:
    return sorted({path.parent for path in _images_at(listed)})


def _images_at(place: Path) -> list[Path]:
    """Return the images below a folder, or those that a text file lists, sorted."""
    if place.is_dir():
        found = [place / name for name, _ in kit_files.walk(place)]
        return sorted(path for path in found if path.suffix.lower() in SUFFIXES)
    if place.suffix != ".txt" or not place.is_file():  # otherwise messages could reveal any file
        raise KitError(f"{place} is neither a folder of images nor a text file (.txt) that lists them")
    lines = untrusted.read_text(place, untrusted.LISTING, "list of images").split("\n")
    names = [line.strip() for line in lines if line.strip()]
    paths = [_listed(place.parent, name) for name in names]
    if lost := next((name for name, path in zip(names, paths, strict=True) if path is None), None):
        raise KitError(f"{place} lists {lost}, which is not there, nor anything of it below {place.parent}")
    return sorted(path for path in paths if path)


def _listed(folder: Path, name: str) -> Path | None:
    """Return the file for a line of a list: at its path, or below the list's folder if the path belongs to
    another machine."""
    path = Path(os.path.abspath(folder / name))  # noqa: PTH100 - resolve would also follow links
    below = "" if is_file(path) else name_below(folder, name)
    return folder / below if below else path if is_file(path) else None


def _label_of(image: Path) -> Path:
    """Return the label file of an image by Ultralytics' rule: the last ``images`` in the path becomes
    ``labels``."""
    parts = list(image.parts)
    for place in reversed(range(len(parts) - 1)):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _objects(
    image: Path, size: tuple[int, int], classes: Mapping[int, str], problems: Findings
) -> Iterator[dict[str, Any]]:
    """Yield the annotations of an image; a missing label file means that the image has no objects."""
    path = _label_of(image)
    if not path.is_file():
        return
    text = untrusted.read_text(path, untrusted.RECORD, "label file")
    for number, line in enumerate(text.split("\n"), 1):
        if not (words := line.split()):
            continue
        found = _row(words, classes)
        if isinstance(found, str):
            problems.add(found.partition(" ")[0], f"{path}, line {number}: {found}")
        else:
            yield _annotation(*found, size)


def _row(words: Sequence[str], classes: Mapping[int, str]) -> tuple[int, list[float]] | str:
    """Return the class and the normalised numbers of a row, or a text that says what is wrong."""
    try:
        number, values = float(words[0]), [float(word) for word in words[1:]]
    except ValueError:
        return f"words that are not numbers: {show(' '.join(words))}"
    if number not in classes:
        return f"class {words[0]:.20} is none of the {len(classes)} names"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return f"{len(words)} columns, expected a class and a polygon of 3 points or more, or a box"
    if not all(-SLACK <= value <= 1 + SLACK for value in values):  # also true of nan
        return "coordinates that are not normalised: expected shares of the image's sides, from 0 to 1"
    return int(number), values


def _annotation(category: int, values: Sequence[float], size: tuple[int, int]) -> dict[str, Any]:
    width, height = size
    if len(values) == 4:  # a box: centre and size
        x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    points = [
        value * side for value, side in zip(values, [width, height] * (len(values) // 2), strict=True)
    ]
    xs, ys = points[::2], points[1::2]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    area = abs(
        math.fsum(
            x * b - a * y for x, y, a, b in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
        )
    )
    return {
        "category_id": category,
        "segmentation": [points],
        "bbox": box,
        "area": area / 2,
        "iscrowd": 0,
    }
