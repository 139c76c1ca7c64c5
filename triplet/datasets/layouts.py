"""The known layouts: one table of names, signs, and functions that find and read them."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triplet.annotations import coco
from triplet.annotations.coco import bad_name
from triplet.annotations.image_files import upright_size
from triplet.annotations.text import read_json, without_collection
from triplet.datasets import yolo
from triplet.datasets.parts import NAMES, AnnotatedPart, PartFiles, name_below, split_path
from triplet.errors import KitError
from triplet.images import ARCHIVES
from triplet.progress import is_local_main, say

STANDARD = ("train2017", "val2017", "VOCdevkit")
ROBOFLOW = "_annotations.coco.json"
LABEL_STUDIO = ("result.json", "result_coco.json")
"""Names of its exports "COCO" and "Brush labels to COCO"."""
CVATS_OTHERS = {"annotations.xml": "CVAT's own format", "obj.data": "CVAT's YOLO 1.1"}
"""Files of CVAT's exports that are not read."""
QUERY = r"\?(?!d=).*"
"""The query of an address; Label Studio's own, ``?d=``, has the path."""
BESIDE = re.compile(r"test.*|unlabell?ed.*", re.IGNORECASE)
"""Names of parts that are used neither for training nor for validation."""


class DataLayout(NamedTuple):
    """A tool's layout of a data set."""

    name: str
    signs: str
    """Content of a folder of this layout, for messages."""
    find: Callable[[Path], dict[str, PartFiles]]
    """Return the parts by name: ``train`` and ``val``, or ``all`` for a single one; {} for another
    layout."""
    read: Callable[[PartFiles], AnnotatedPart]


def find(folder: Path) -> tuple[DataLayout, dict[str, PartFiles]]:
    """Recognise the layout of a folder.

    Args:
        folder: folder of the data set, or the YAML file of a YOLO data set.

    Returns:
        The layout, and the files of its parts: ``train`` and ``val``, or ``all`` if there is only one.

    Raises:
        KitError: there is no folder, or it has none of the LAYOUTS; the message says what it holds.
    """
    if not folder.exists():
        raise KitError(f"nothing at {folder}, expected a folder of annotated images")
    for layout in LAYOUTS:
        if found := layout.find(folder):
            return layout, found
    known = "; ".join(f"{layout.name} ({layout.signs})" for layout in LAYOUTS)
    raise KitError(
        f"{folder} is in no layout that is known: {_listing(folder)}; known are {known}; a COCO "
        "JSON anywhere else is named by --train FILE --train-images FOLDER"
    )


def _listing(folder: Path) -> str:
    """Say what a folder holds instead of a layout, and what to do if that is clear."""
    if folder.is_file():
        return "it is an archive: unpack it first" if folder.suffix in ARCHIVES else "it is one file"
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    names = [path.name + "/" * path.is_dir() for path in paths]
    more = f" and {len(names) - 6} more" if names[6:] else ""
    return f"it holds {', '.join(names[:6]) or 'nothing'}{more}{_advice(paths)}"


def _advice(paths: Sequence[Path]) -> str:
    """Say what to do with the content of a folder in no known layout, if that is clear."""
    if inside := [path for path in paths if path.is_dir() and any(layout.find(path) for layout in LAYOUTS)]:
        return f": name {inside[0]}, which is in one"
    if packed := [path.name for path in paths if path.suffix in ARCHIVES]:
        return f": unpack {packed[0]} first"
    if foreign := [path.name for path in paths if path.name in CVATS_OTHERS]:
        return f": {foreign[0]} is of {CVATS_OTHERS[foreign[0]]}; export the task again, as COCO 1.0"
    if any(path.name == "labels" for path in paths):
        return ": labels/ without a data.yaml or a classes.txt, which names the classes"
    if described := [path for path in paths if path.suffix in (".yaml", ".yml")]:
        return f": if {described[0].name} describes a YOLO data set, name {described[0]} itself"
    return ""


def is_standard(folder: Path) -> bool:
    """Return whether a folder is missing, or has or is meant to have COCO 2017's or PASCAL VOC's layout.

    CVAT and Ultralytics put COCO's images into ``images/``, which is another one.
    """
    if not folder.exists() or any((folder / name).exists() for name in STANDARD):
        return True
    return any(folder.glob("annotations/*_*2017.json")) and not (folder / "images").is_dir()


def read_coco(files: PartFiles) -> AnnotatedPart:
    """Read a JSON in COCO's format as tools write it.

    File names may be those of a tool, see ``name_below``; a size that is missing is that of the file; a
    mask painted in CVAT is an object although CVAT marks it as a crowd; Roboflow's parent class is left
    out.

    Raises:
        KitError: ``triplet.annotations.coco`` refuses the file.
    """
    with without_collection():
        content, _ = read_json(files.annotations)
        images, annotations, categories = (_objects(content, name) for name in coco.TABLES)
        if images:
            content["images"] = _with_files(files, images, annotations)
        for each in annotations:
            if type(each.get("segmentation")) is dict and "'occluded'" in str(each.get("attributes")):
                each["iscrowd"] = 0
        if categories:
            content["categories"] = _without_parent(categories, annotations)
        checked = coco.check_content(files.annotations, content)
    return AnnotatedPart(checked.content, files.images, files.annotations)


def _read_as_is(files: PartFiles) -> AnnotatedPart:
    """Read COCO 2017's own layout, whose files finetuning reads where they are: no name is changed."""
    return AnnotatedPart(coco.check(files.annotations).content, files.images, files.annotations)


def _objects(content: Any, name: str) -> list[dict[str, Any]]:
    """Return a table of unchecked content; empty if it is not a list of objects."""
    table = content.get(name) if type(content) is dict else None
    return table if type(table) is list and {*map(type, table)} <= {dict} else []


def _with_files(
    files: PartFiles, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the images with the names of their files, and with the files' sizes where theirs are missing.

    Label Studio exports null as the size of an image that it could not open and nobody has annotated.
    Without a file these are left out.
    """
    used, kept = {str(each.get("image_id")) for each in annotations}, list[dict[str, Any]]()
    for image in images:
        name = image.get("file_name")
        if below := name_below(files.images, name) if type(name) is str else "":
            image["file_name"] = below
        elif type(name) is str and bad_name(name) and (parts := split_path(re.sub(QUERY, "", name))):
            image["file_name"] = parts[-1]  # it is missing, and so is the tool's own folder
        if image.get("width") is None or image.get("height") is None:
            if below:
                image["width"], image["height"] = upright_size(files.images / below)
            elif str(image.get("id")) not in used:
                continue
        kept.append(image)
    if (lost := len(images) - len(kept)) and is_local_main():
        which = f"{lost} of {len(images)} images"
        say(f"data: {files.annotations.name}: {which} have no size, file or annotation and are left out")
    return kept


def _without_parent(
    categories: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Drop Roboflow's class 0: it is the parent of all others, has the same name as an only one, and has no
    annotations."""
    above = {str(each.get("supercategory")) for each in categories}
    used = {str(each.get("category_id")) for each in annotations}

    def stays(each: dict[str, Any]) -> bool:
        below = each.get("supercategory") != "none" or str(each.get("name")) not in above
        return below or str(each.get("id")) in used

    return [each for each in categories if stays(each)]


def _coco_2017(folder: Path) -> dict[str, PartFiles]:
    found = {
        part: PartFiles(folder / "annotations" / f"instances_{part}2017.json", folder / f"{part}2017")
        for part in NAMES
    }
    whole = is_standard(folder) and all(each.annotations.is_file() for each in found.values())
    return found if whole else {}


def _roboflow(folder: Path) -> dict[str, PartFiles]:
    files = {
        path.parent.name: PartFiles(path, path.parent) for path in sorted(folder.glob(f"*/{ROBOFLOW}"))
    }
    if not files and (folder / ROBOFLOW).is_file():
        files = {"all": PartFiles(folder / ROBOFLOW, folder)}
    return _by_part(folder, files)


def _cvat(folder: Path) -> dict[str, PartFiles]:
    files = {}
    for path in (*sorted(folder.glob("annotations/*.json")), *sorted(folder.glob("*.json"))):
        name = path.stem.removeprefix("instances_")
        if name == path.stem and not any(part.fullmatch(name) for part in NAMES.values()):
            continue  # captions, keypoints; people's own scripts write train.json and val.json
        places = [folder / "images" / name, folder / name, folder / "images"]
        files[name] = PartFiles(path, next((each for each in places if each.is_dir()), folder))
    return _by_part(folder, files)


def _label_studio(folder: Path) -> dict[str, PartFiles]:
    named = [folder / name for name in LABEL_STUDIO if (folder / name).is_file()]
    return {"all": PartFiles(named[0], folder)} if named else {}


def _by_part(folder: Path, files: Mapping[str, PartFiles]) -> dict[str, PartFiles]:
    """Find the files of ``train`` and ``val`` by a tool's names for them.

    Raises:
        KitError: there are several parts, and none has a name for training data.
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
            "--train FILE and --val FILE"
        )
    return found if "val" in found else dict(zip(["all"], found.values(), strict=False))


LAYOUTS: tuple[DataLayout, ...] = (
    DataLayout("COCO 2017", "annotations/instances_train2017.json, train2017/", _coco_2017, _read_as_is),
    DataLayout("Roboflow COCO", f"train/{ROBOFLOW}", _roboflow, read_coco),
    DataLayout("CVAT COCO", "annotations/instances_*.json, images/", _cvat, read_coco),
    DataLayout("Label Studio COCO", "result.json or result_coco.json, images/", _label_studio, read_coco),
    DataLayout("YOLO segmentation", "data.yaml or classes.txt, images/, labels/", yolo.find, yolo.read),
)


def classes_of(content: Mapping[str, Any]) -> dict[int, str]:
    """Return the classes of annotations, name by id, in the order of the ids, which is the model's."""
    return {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
