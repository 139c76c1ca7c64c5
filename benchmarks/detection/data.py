"""Registration of COCO 2017, PASCAL VOC and the user's own data as Detectron2 data sets.

The config's DATASETS selects a folder's data sets by Detectron2's own names; the user chooses the folder.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.detection import model
from triplet import coco
from triplet.annotations import coco as coco_annotations
from triplet.annotations import image_files
from triplet.annotations import voc as voc_annotations
from triplet.annotations.findings import Findings
from triplet.annotations.image_files import AnnotatedImage
from triplet.annotations.shapes import Uses
from triplet.annotations.voc import VocImage
from triplet.commands import typed
from triplet.datasets import source
from triplet.errors import KitError
from triplet.progress import is_local_main, say
from triplet.training.distributed import Processes

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from detectron2.structures import BoxMode

_NAMES = re.compile(
    r"(?P<keypoints>keypoints_)?coco_2017_(?P<split>train|val)"
    r"|voc_(?P<year>2007|2012)_(?P<list>train|val|trainval|test)"
)


@dataclass(frozen=True)
class Part:
    """One of Detectron2's data sets in a folder of the user's."""

    name: str
    """Name in Detectron2's catalogues, made of the folder and Detectron2's own name."""
    declared: str
    """Detectron2's own name."""
    kind: str
    """instances, person_keypoints or voc."""
    images: Path
    """Folder of the images."""
    annotations: Path
    """COCO's annotation file, or VOC's folder of annotations."""
    listed: Path | None = None
    """VOC's list of images."""
    year: int = 0
    """VOC's year."""
    source: Path | None = None
    """The user's file that the kit made ``annotations`` from, if any; messages name it."""

    @property
    def inputs(self) -> dict[str, Path]:
        """Describe the data set for a record."""
        more = {"list": self.listed} if self.listed else {}
        return {"annotations": self.annotations, "images": self.images, **more}


def parts(cfg: CfgNode, folder: Path, *, train: bool) -> list[Part]:
    """Return the data sets in a folder that DATASETS.TRAIN or TEST names; COCO's instances if it names
    none.

    Raises:
        KitError: the layout is another one, or a data set is unknown to the kit.
    """
    declared, default = (
        (cfg.DATASETS.TRAIN, "coco_2017_train") if train else (cfg.DATASETS.TEST, "coco_2017_val")
    )
    return [_find(folder, name) for name in declared or [default]]


def inputs(cfg: CfgNode, folder: Path, *, train: bool) -> dict[str, Path]:
    """Return the data files and folders that a stage reads, by name, for its record; KitError if the folder
    of the images is gone."""
    found = parts(cfg, folder, train=train)
    if gone := [part for part in found if not part.images.exists()]:
        how = (
            "; name the data as for the finetuning, which mounts them: DATA=..., or VAL=... VAL_IMAGES=..."
        )
        in_container = os.environ.get("RUNTIME") == "docker"
        where = f"nothing at {gone[0].images}, where the images of {gone[0].source} are"
        raise KitError(where + (how if in_container else ""))
    if len(found) == 1:
        return found[0].inputs
    return {f"{part.declared} {name}": path for part in found for name, path in part.inputs.items()}


def training(cfg: CfgNode, folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """Register the data sets of DATASETS.TRAIN with Detectron2.

    Returns:
        Their registered names, and the names of the classes in the order of the model's indices.

    Raises:
        KitError: another layout, damaged annotations, or missing images.
    """
    uses = _uses(cfg, train=True)
    found = [(part.name, _register(cfg, part, uses)) for part in parts(cfg, folder, train=True)]
    categories = found[0][1]
    if odd := [name for name, theirs in found if theirs != categories]:
        raise KitError(f"{odd[0]} has other categories than {found[0][0]}")
    return tuple(name for name, _ in found), categories


def testing(cfg: CfgNode, folder: Path) -> tuple[str, list[str]]:
    """Register the single data set of DATASETS.TEST with Detectron2."""
    found = parts(cfg, folder, train=False)
    if len(found) > 1:
        raise KitError(f"DATASETS.TEST names {len(found)} data sets, expected one")
    categories = _register(cfg, found[0], _uses(cfg, train=False))
    _check_count(cfg, folder, categories)
    return found[0].name, categories


def validation(cfg: CfgNode, folder: Path, classes: Sequence[str]) -> tuple[str, ...]:
    """Register what an evaluation of the training on a folder will read, before the training begins.

    Args:
        cfg: config of the training.
        folder: folder of the training's data.
        classes: names of its classes, in the order of the model's indices.

    Returns:
        The registered name of the data set of DATASETS.TEST; () if the folder does not have it.

    Raises:
        KitError: damaged annotations, missing images, or other classes.
    """
    try:
        found = parts(cfg, folder, train=False)
    except KitError:  # an evaluation may be on other data; it says what is missing
        return ()
    for part in found:
        if (theirs := _register(cfg, part, _uses(cfg, train=False))) != classes:
            raise KitError(
                f"{part.source or part.annotations} has other categories ({', '.join(theirs[:3])}, ...) "
                f"than the images to train on ({', '.join(classes[:3])}, ...)"
            )
    return tuple(part.name for part in found)


def category_ids(name: str) -> list[Any]:
    """Return the class ids in a registered data set's file, in the order of the model's indices."""
    ids: list[Any] = MetadataCatalog.get(name).ids_of_classes
    return ids


def check_images(names: Sequence[str], processes: Processes) -> None:
    """Check the headers of all images in registered data sets; each process checks a share.

    Raises:
        KitError: on every process, if an image cannot be decoded or its size differs from the annotation.
    """
    problems, notes = Findings(), Findings()
    for name in names:
        images = _images.pop(name, [])
        found = image_files.check_images(images[processes.rank :: processes.size], len(images))
        for mine, all_of_them in zip(found, (problems, notes), strict=True):
            all_of_them.merge(processes.gather(mine))
    problems.refuse()
    if processes.is_main_process:
        for line in notes.lines():
            say(f"data: {line}")


_images: dict[str, list[AnnotatedImage]] = {}
"""Unchecked images of each registered data set."""
_copies: list[tempfile.TemporaryDirectory[str]] = []
"""Temporary folders of annotations in the form that Detectron2 reads, deleted with the process."""


def _uses(cfg: CfgNode, *, train: bool) -> Uses:
    return Uses(
        masks=cfg.MODEL.MASK_ON,
        keypoints=cfg.MODEL.KEYPOINT_ON,
        train=train,
        evaluate=not train,
        bitmask=cfg.INPUT.MASK_FORMAT == "bitmask",
    )


def _find(folder: Path, declared: str) -> Part:
    known = _NAMES.fullmatch(declared.rpartition("/")[2])  # a resolved config's names include folders
    if known is None:
        raise KitError(
            f"DATASETS names {declared!r}; the kit has coco_2017_*, keypoints_coco_2017_* and voc_2007_*, "
            "voc_2012_*"
        )
    name = f"{folder.absolute()}/{known[0]}"
    if own := source.written(folder):
        if not known["split"] or known["keypoints"]:
            raise KitError(f"own data has instances alone, the config's DATASETS names {known[0]!r}")
        return _find_own(own, name, known[0], known["split"])
    if split := known["split"]:
        kind = "person_keypoints" if known["keypoints"] else "instances"
        truth = coco.annotations(folder, f"{split}2017", kind)
        return Part(name, known[0], kind, folder / f"{split}2017", truth)
    root = folder / "VOCdevkit" / f"VOC{known['year']}"
    part = Part(
        name,
        known[0],
        "voc",
        root / "JPEGImages",
        root / "Annotations",
        root / "ImageSets" / "Main" / f"{known['list']}.txt",
        int(known["year"]),
    )
    for path in part.inputs.values():
        if not path.exists():
            raise KitError(
                f"{folder} is not in PASCAL VOC's layout: {path.relative_to(folder)} is missing; "
                f"run: {typed('pull', 'voc')}"
            )
    return part


def _find_own(own: source.WrittenData, name: str, declared: str, split: str) -> Part:
    if split not in own.parts:
        raise KitError(
            f"{own.folder} has no {split} part, it has {', '.join(own.parts)}; name the files of one by "
            f"--{split} and --{split}-images"
        )
    files = own.parts[split]
    return Part(name, declared, "instances", files.images, files.annotations, source=own.sources[split])


def _register(cfg: CfgNode, part: Part, uses: Uses) -> list[str]:
    """Check and register a data set; return its class names in the order of the model's indices."""
    if part.name in DatasetCatalog:
        DatasetCatalog.remove(part.name)
        MetadataCatalog.remove(part.name)
    if part.listed:
        return _register_voc(part, part.listed)
    checked = coco_annotations.check(part.annotations, uses, part.source)
    images, annotations = checked.content["images"], checked.content["annotations"]
    advice = "; put them there, or into images/ in it" if part.source else ""
    _all_there(part.images, [image["file_name"] for image in images], advice)
    if is_local_main():
        for note in checked.notes:
            say(f"data: {note}")
    used = {each["image_id"] for each in annotations if not each.get("iscrowd")}
    every = uses.evaluate or not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    _images[part.name] = [
        AnnotatedImage(
            str(part.images / image["file_name"]),
            image["width"],
            image["height"],
            every or image["id"] in used,
        )
        for image in images
    ]
    categories = sorted(checked.content["categories"], key=lambda category: category["id"])  # as Detectron2
    more: dict[str, Any] = {
        "image_ids": checked.image_ids,
        "category_ids": checked.category_ids,
        "ids_of_classes": [checked.category_ids.get(each["id"], each["id"]) for each in categories],
    }
    if part.kind == "person_keypoints":
        of_detectron2 = MetadataCatalog.get("keypoints_coco_2017_val")
        keys = ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules")
        more |= {key: of_detectron2.get(key) for key in keys}
    file = part.annotations if checked.as_it_is else _copy(part.annotations.name, checked.content)
    register_coco_instances(part.name, more, str(file), str(part.images))
    return [category["name"] for category in categories]


def _copy(name: str, content: Mapping[str, Any]) -> Path:
    """Write a file for Detectron2 and COCO's evaluation, which accept fewer forms of ids and encodings."""
    _copies.append(tempfile.TemporaryDirectory(prefix="annotations-"))
    path = Path(_copies[-1].name) / name
    path.write_text(json.dumps(content))
    return path


def _register_voc(part: Part, listed: Path) -> list[str]:
    numbers = voc_annotations.read_list(listed)
    _all_there(part.images, [f"{number}.jpg" for number in numbers])
    _all_there(part.annotations, [f"{number}.xml" for number in numbers])
    found = voc_annotations.check(part.annotations, numbers, CLASS_NAMES)
    content = [_voc_image(part.images, number, image) for number, image in found.items()]
    _images[part.name] = [
        AnnotatedImage(image["file_name"], image["width"], image["height"]) for image in content
    ]
    DatasetCatalog.register(part.name, lambda: content)
    MetadataCatalog.get(part.name).set(
        thing_classes=list(CLASS_NAMES),
        ids_of_classes=[*range(1, len(CLASS_NAMES) + 1)],  # VOC itself does not number its classes
        dirname=str(part.images.parent),
        year=part.year,
        split=listed.stem,
        annotated=found,
    )
    return list(CLASS_NAMES)


def _voc_image(folder: Path, number: str, image: VocImage) -> dict[str, Any]:
    """Return an image as Detectron2's own reader does, with coordinates that begin at 0."""
    return {
        "file_name": str(folder / f"{number}.jpg"),
        "image_id": number,
        "height": image.height,
        "width": image.width,
        "annotations": [
            {
                "category_id": CLASS_NAMES.index(each.name),
                "bbox": [xmin - 1.0, ymin - 1.0, xmax, ymax],
                "bbox_mode": BoxMode.XYXY_ABS,
            }
            for each in image.objects
            for xmin, ymin, xmax, ymax in [each.box]
        ],
    }


def _all_there(folder: Path, names: Sequence[str], advice: str = "") -> None:
    if missing := image_files.missing(folder, names):
        what = "annotated images" if folder.name != "Annotations" else "annotations of listed images"
        if not image_files.missing(folder, [missing[0].replace("\\", "/").removeprefix(f"{folder.name}/")]):
            advice = f"; file names are paths below {folder.name}, with slashes: mend the annotations"
        if os.environ.get("RUNTIME") == "docker" and not folder.exists():
            advice = (
                "; a container sees what is named: give the data as for finetune (DATA=..., or VAL=...)"
            )
        raise KitError(
            f"{folder}: {len(missing)} of {len(names)} {what} are missing, {missing[0]} first{advice}"
        )


def fit_masks(cfg: CfgNode, folder: Path) -> CfgNode:
    """Return the config adapted to the masks of the user's own data; say so if it changes.

    Data without masks removes the mask head; run-length encoded masks are trained on as bitmaps.
    """
    own = source.written(folder)
    if own is None or not cfg.MODEL.MASK_ON:
        return cfg
    if not own.masks:
        change, why = ["MODEL.MASK_ON", False], "no object has a mask: the model is to find boxes alone"
    elif own.run_lengths and cfg.INPUT.MASK_FORMAT != "bitmask":
        change, why = ["INPUT.MASK_FORMAT", "bitmask"], "masks of brushes are trained on as bitmaps"
    else:
        return cfg
    if is_local_main():
        say(f"data: {why} ({change[0]}={change[1]})")
    fitted = cfg.clone()
    fitted.merge_from_list(change)
    return fitted


def fit_classes(cfg: CfgNode, folder: Path, classes: Sequence[str], overrides: Sequence[str]) -> CfgNode:
    """Return the config with the data's number of classes; say so if it changes.

    Args:
        cfg: the user's config.
        folder: folder of the data, for messages.
        classes: names of the data's classes.
        overrides: the user's overrides.

    Raises:
        KitError: the user's overrides set another number.
    """
    key, count = model.categories(cfg)
    if any(override.partition("=")[0] == key for override in overrides):
        _check_count(cfg, folder, classes)
    if len(classes) == count:
        return cfg
    if is_local_main():
        say(f"data: {len(classes)} classes, where the config has {count}: {key}={len(classes)}")
    fitted = cfg.clone()
    fitted.merge_from_list([key, len(classes)])
    return fitted


def _check_count(cfg: CfgNode, folder: Path, categories: Sequence[str]) -> None:
    key, count = model.categories(cfg)
    if len(categories) != count:
        raise KitError(
            f"{folder} has {len(categories)} categories, the config expects {count}; "
            f"add {key}={len(categories)}"
        )
