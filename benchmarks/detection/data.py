"""Folders in COCO 2017's and PASCAL VOC's layout as Detectron2 data sets.

Which of a folder's data sets is meant is said by the names in the config's DATASETS, which are Detectron2's
own; where they lie is the user's choice.
"""

import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.detection import model
from triplet import coco
from triplet.errors import KitError

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_voc_instances, register_coco_instances
from detectron2.data.datasets.pascal_voc import CLASS_NAMES

_NAMES = re.compile(
    r"(?P<keypoints>keypoints_)?coco_2017_(?P<split>train|val)"
    r"|voc_(?P<year>2007|2012)_(?P<list>train|val|trainval|test)"
)


@dataclass(frozen=True)
class Part:
    """One of Detectron2's data sets, found below a folder of the user's."""

    name: str
    """In Detectron2's catalogues: the folder and Detectron2's own name."""
    declared: str
    """Detectron2's own name."""
    kind: str
    """instances, person_keypoints or voc."""
    images: Path
    """Folder."""
    annotations: Path
    """A file of COCO's, a folder of VOC's."""
    listed: Path | None = None
    """VOC: which images."""
    year: int = 0
    """VOC."""

    @property
    def inputs(self) -> dict[str, Path]:
        """For a record."""
        more = {"list": self.listed} if self.listed else {}
        return {"annotations": self.annotations, "images": self.images, **more}


def parts(cfg: CfgNode, folder: Path, *, train: bool) -> list[Part]:
    """What DATASETS.TRAIN or TEST names, in the folder; COCO's instances where it names nothing.

    Raises:
        KitError: another layout, or a data set that the kit does not know.
    """
    declared, default = (
        (cfg.DATASETS.TRAIN, "coco_2017_train") if train else (cfg.DATASETS.TEST, "coco_2017_val")
    )
    return [_find(folder, name) for name in declared or [default]]


def inputs(cfg: CfgNode, folder: Path, *, train: bool) -> dict[str, Path]:
    """Files and folders that a stage reads of the data, by name, for its record."""
    found = parts(cfg, folder, train=train)
    if len(found) == 1:
        return found[0].inputs
    return {f"{part.declared} {name}": path for part in found for name, path in part.inputs.items()}


def training(cfg: CfgNode, folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """Make what DATASETS.TRAIN names known to Detectron2.

    Returns:
        The names there, and the names of the categories.

    Raises:
        KitError: another layout, damaged annotations, missing images, or another number of categories than
            the model has.
    """
    needed = ("bbox", "segmentation") if cfg.MODEL.MASK_ON else ("bbox",)
    found = [(part.name, _register(part, needed)) for part in parts(cfg, folder, train=True)]
    categories = found[0][1]
    if odd := [name for name, theirs in found if theirs != categories]:
        raise KitError(f"{odd[0]} has other categories than {found[0][0]}")
    _check_count(cfg, folder, categories)
    return tuple(name for name, _ in found), categories


def testing(cfg: CfgNode, folder: Path) -> tuple[str, list[str]]:
    """The same of DATASETS.TEST, which names one data set."""
    found = parts(cfg, folder, train=False)
    if len(found) > 1:
        raise KitError(f"DATASETS.TEST names {len(found)} data sets, expected one")
    categories = _register(found[0])
    _check_count(cfg, folder, categories)
    return found[0].name, categories


def _find(folder: Path, declared: str) -> Part:
    known = _NAMES.fullmatch(declared.rpartition("/")[2])  # a resolved config names folders as well
    if known is None:
        raise KitError(
            f"DATASETS names {declared!r}; the kit has coco_2017_*, keypoints_coco_2017_* and voc_2007_*, "
            "voc_2012_*"
        )
    name = f"{folder.absolute()}/{known[0]}"
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
                "run: make pull PULL=voc"
            )
    return part


def _register(part: Part, needed: Sequence[str] = ("bbox",)) -> list[str]:
    """Make it known; returns the names of its categories. Each annotation must have what is needed."""
    if part.name in DatasetCatalog:
        DatasetCatalog.remove(part.name)
        MetadataCatalog.remove(part.name)
    if part.listed:
        return _register_voc(part, part.listed)
    truth = coco.read(part.annotations.parents[1], part.images.name, part.kind)
    _all_there(part.images, [image["file_name"] for image in truth["images"]])
    known = {category["id"] for category in truth["categories"]}
    for each in truth["annotations"]:
        lacks = [key for key in needed if not each.get(key)]
        if lacks or each.get("category_id") not in known:
            what = f"no {lacks[0]}" if lacks else f"a category_id that is none ({each.get('category_id')})"
            raise KitError(f"{part.annotations}: annotation {each.get('id')} has {what}")
    more = {}
    if part.kind == "person_keypoints":
        of_detectron2 = MetadataCatalog.get("keypoints_coco_2017_val")
        keys = ("keypoint_names", "keypoint_flip_map", "keypoint_connection_rules")
        more = {key: of_detectron2.get(key) for key in keys}
    register_coco_instances(part.name, more, str(part.annotations), str(part.images))
    return [category["name"] for category in truth["categories"]]


def _register_voc(part: Part, listed: Path) -> list[str]:
    numbers = listed.read_text().split()
    _all_there(part.images, [f"{number}.jpg" for number in numbers])
    _all_there(part.annotations, [f"{number}.xml" for number in numbers])
    root = part.images.parent
    try:
        content = load_voc_instances(str(root), listed.stem, CLASS_NAMES)
    except (ET.ParseError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise KitError(f"{part.annotations}: an annotation is damaged or not VOC's: {error}") from None
    DatasetCatalog.register(part.name, lambda: content)
    MetadataCatalog.get(part.name).set(
        thing_classes=list(CLASS_NAMES), dirname=str(root), year=part.year, split=listed.stem
    )
    return list(CLASS_NAMES)


def _all_there(folder: Path, names: Sequence[str]) -> None:
    there = set(os.listdir(folder))
    if missing := [name for name in names if name not in there]:
        what = "annotated images" if folder.name != "Annotations" else "annotations of listed images"
        raise KitError(f"{folder}: {len(missing)} of {len(names)} {what} are missing, {missing[0]} first")


def _check_count(cfg: CfgNode, folder: Path, categories: Sequence[str]) -> None:
    key, count = model.categories(cfg)
    if len(categories) != count:
        raise KitError(
            f"{folder} has {len(categories)} categories, the config expects {count}; "
            f"add {key}={len(categories)}"
        )
