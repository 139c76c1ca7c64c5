"""The layouts that are known: one table of names, what is looked for, and the functions that read them."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from triplet.annotations import coco
from triplet.annotations.image_files import is_file
from triplet.annotations.text import read_json, without_collection
from triplet.datasets import yolo
from triplet.datasets.parts import AnnotatedPart, PartFiles
from triplet.errors import KitError

STANDARD = ("train2017", "val2017", "VOCdevkit")
ROBOFLOW = "_annotations.coco.json"
NAMES = {
    "train": re.compile(r"train(ing)?(2017)?", re.IGNORECASE),
    "val": re.compile(r"val(id|idation)?(2017)?", re.IGNORECASE),
}
"""Names that tools give to the two parts."""
BESIDE = re.compile(r"test.*|unlabell?ed.*", re.IGNORECASE)
"""Names of parts that are neither trained nor validated on."""


LONGEST_PATH = 4096
"""Characters of a path, which no system takes more of."""


class DataLayout(NamedTuple):
    """A tool's way to lay out a data set."""

    name: str
    signs: str
    """Content of a folder of this layout, for messages."""
    find: Callable[[Path], dict[str, PartFiles]]
    """The parts by name: ``train`` and ``val``, or ``all`` for a single one; {} for another layout."""
    read: Callable[[PartFiles], AnnotatedPart]


def find(folder: Path) -> tuple[DataLayout, dict[str, PartFiles]]:
    """Recognise the layout of a folder.

    Args:
        folder: of the data set, or the YAML file of a YOLO data set.

    Returns:
        The layout, and the files of its parts: ``train`` and ``val``, or ``all`` where there is only one.

    Raises:
        KitError: no folder, or one in none of the LAYOUTS: it says what the folder holds.
    """
    if not folder.exists():
        raise KitError(f"nothing at {folder}, expected a folder of annotated images")
    for layout in LAYOUTS:
        if found := layout.find(folder):
            return layout, found
    known = "; ".join(f"{layout.name} ({layout.signs})" for layout in LAYOUTS)
    raise KitError(
        f"{folder} is in no layout that is known: it holds {_listing(folder)}; known are {known}; a COCO "
        "JSON anywhere else is named by TRAIN=file TRAIN_IMAGES=folder (--train, --train-images)"
    )


def is_standard(folder: Path) -> bool:
    """Return whether a folder is, or is meant to be, in COCO 2017's or PASCAL VOC's own layout, or is
    missing."""
    if not folder.exists():
        return True
    return any((folder / name).exists() for name in STANDARD) or any(
        folder.glob("annotations/*_*2017.json")
    )


def read_coco(files: PartFiles) -> AnnotatedPart:
    """Read a JSON in COCO's format, whose file names may have a tool's folders or backslashes in them.

    Raises:
        KitError: what ``triplet.annotations.coco`` refuses.
    """
    with without_collection():
        content, _ = read_json(files.annotations)
        images = content.get("images") if type(content) is dict else None
        for image in images if type(images) is list else []:
            if type(image) is dict and type(image.get("file_name")) is str:
                image["file_name"] = _name_below(files.images, image["file_name"])
        checked = coco.check_content(files.annotations, content)
    return AnnotatedPart(checked.content, files.images, files.annotations)


def _name_below(folder: Path, name: str) -> str:
    """The file's name below the folder: some tools write folders of their own before it."""
    if len(name) > LONGEST_PATH:
        return name
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    for first in range(len(parts)):
        below = "/".join(parts[first:])
        if not coco.bad_name(below) and is_file(folder / below):
            return below
    return name


def _listing(folder: Path) -> str:
    """The first names in a folder."""
    if folder.is_file():
        return "no folder but one file"
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir() if path.name[0] != ".")
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if names[6:] else "") or "nothing"


def _coco_2017(folder: Path) -> dict[str, PartFiles]:
    found = {
        part: PartFiles(folder / "annotations" / f"instances_{part}2017.json", folder / f"{part}2017")
        for part in NAMES
    }
    return found if all(each.annotations.is_file() for each in found.values()) else {}


def _roboflow(folder: Path) -> dict[str, PartFiles]:
    files = {
        path.parent.name: PartFiles(path, path.parent) for path in sorted(folder.glob(f"*/{ROBOFLOW}"))
    }
    if not files and (folder / ROBOFLOW).is_file():
        files = {"all": PartFiles(folder / ROBOFLOW, folder)}
    return _by_part(folder, files)


def _cvat(folder: Path) -> dict[str, PartFiles]:
    files = {}
    for path in sorted(folder.glob("annotations/instances_*.json")):
        name = path.stem.removeprefix("instances_")
        inner = folder / "images" / name
        files[name] = PartFiles(path, inner if inner.is_dir() else folder / "images")
    return _by_part(folder, files)


def _label_studio(folder: Path) -> dict[str, PartFiles]:
    path = folder / "result.json"
    return {"all": PartFiles(path, folder)} if path.is_file() else {}


def _by_part(folder: Path, files: Mapping[str, PartFiles]) -> dict[str, PartFiles]:
    """The files of ``train`` and ``val`` by a tool's names for them.

    Raises:
        KitError: several parts, none of which is called as one to train on.
    """
    found: dict[str, PartFiles] = {}
    for part, pattern in NAMES.items():
        if names := [name for name in files if pattern.fullmatch(name)]:
            found[part] = files[names[0]]
    rest = {
        name: each
        for name, each in files.items()
        if each not in found.values() and not (found and BESIDE.fullmatch(name))
    }
    if len(rest) == 1 and not found:
        return {"all": next(iter(rest.values()))}
    if rest or (found and "train" not in found):
        raise KitError(
            f"{folder} has the parts {', '.join(sorted(files))}, expected train and val; name them by "
            "TRAIN=file and VAL=file (--train, --val)"
        )
    return found if "val" in found else dict(zip(["all"], found.values(), strict=False))


LAYOUTS: tuple[DataLayout, ...] = (
    DataLayout("COCO 2017", "annotations/instances_train2017.json, train2017/", _coco_2017, read_coco),
    DataLayout("Roboflow COCO", f"train/{ROBOFLOW}", _roboflow, read_coco),
    DataLayout("CVAT COCO", "annotations/instances_*.json, images/", _cvat, read_coco),
    DataLayout("Label Studio COCO", "result.json, images/", _label_studio, read_coco),
    DataLayout("YOLO segmentation", "data.yaml, images/, labels/", yolo.find, yolo.read),
)


def classes_of(content: Mapping[str, Any]) -> dict[int, str]:
    """The classes of annotations, name by id, in the order of the ids, which is that of the model."""
    return {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
