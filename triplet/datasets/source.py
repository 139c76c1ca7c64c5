"""Turn the user's data into two parts in the normal form: train and val, with the same classes."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from triplet import files, untrusted
from triplet.datasets import VAL_SHARE
from triplet.datasets.layouts import classes_of, find, read_coco
from triplet.datasets.parts import NAMES, AnnotatedPart, PartFiles
from triplet.errors import KitError
from triplet.paths import local, portable

DESCRIPTION = "own_data.json"
"""File that is written last into a folder of the normal form: its presence means that it is complete."""


@dataclass(frozen=True)
class DataSource:
    """The user's data: a folder in a known layout, or COCO JSONs and the folders of their images."""

    folder: Path | None = None
    train: Path | None = None
    train_images: Path | None = None
    """Folder of the training images; by default that of the JSON."""
    val: Path | None = None
    val_images: Path | None = None
    val_share: float = 0.0
    """Share of the images to hold out if the data has no validation part; 0 for none."""
    split_seed: int = 0

    def __post_init__(self) -> None:
        if bool(self.folder) == bool(self.train or self.val):
            raise KitError("data is named by a folder (--data), or by its files (--train, --val)")
        if (self.train_images and not self.train) or (self.val_images and not self.val):
            raise KitError("--train-images goes with --train, and --val-images with --val")

    def __str__(self) -> str:
        return str(self.folder or self.train or self.val)

    @property
    def words(self) -> list[str]:
        """The options of the command line that name this data."""
        named = {
            "--data": self.folder,
            "--train": self.train,
            "--train-images": self.train_images,
            "--val": self.val,
            "--val-images": self.val_images,
            "--val-share": "" if self.val_share == VAL_SHARE else f"{self.val_share:g}",
            "--split-seed": self.split_seed,
        }
        return [word for option, value in named.items() if value for word in (option, str(value))]


@dataclass(frozen=True)
class OwnData:
    """A data set in the normal form."""

    layout: str
    parts: Mapping[str, AnnotatedPart]
    """``train`` and ``val``, or one of them."""
    split: Mapping[str, Any]
    """Share and seed with which the kit has split a single part; {} if the data has two parts."""

    @property
    def classes(self) -> dict[int, str]:
        """Names of the classes by id, in the order of the ids."""
        return classes_of(next(iter(self.parts.values())).content)

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """The content of the normal form's files, by name."""
        return {f"instances_{name}.json": json.dumps(part.content) for name, part in self.parts.items()}

    def line(self) -> str:
        """Describe the recognised data in one line."""
        images = ", ".join(f"{len(each.content['images'])} {name}" for name, each in self.parts.items())
        how = f", split by seed {self.split['split_seed']}" if self.split else ""
        classes = f"{len(self.classes)} class{'es' * (len(self.classes) != 1)}"
        return f"{self.layout}: {images} images{how}, {classes}"


def read(source: DataSource, single: str = "train", classes: Sequence[str] = ()) -> OwnData:
    """Read the user's data into the normal form, and split it if it is a single part.

    Args:
        source: the user's data.
        single: name of a single part that is not split.
        classes: classes for all parts, those of a model to evaluate; by default those of ``train``.

    Raises:
        KitError: an unknown layout, unusable annotations, or classes of ``val`` that ``train`` or the model
            lacks.
    """
    layout, parts = _read_parts(source)
    split: dict[str, Any] = {}
    if "all" in parts:
        whole = parts.pop("all")
        if source.val_share:
            parts = split_images(whole, source.val_share, source.split_seed)
            split = {"val_share": source.val_share, "split_seed": source.split_seed}
        else:
            parts = {single: whole}
    if classes:
        categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
        for part in parts.values():
            _take_classes(part, categories, "the model's")
    elif len(parts) == 2:
        train = parts["train"]
        _take_classes(parts["val"], train.content["categories"], str(train.source))
    return OwnData(layout, parts, split)


def _read_parts(source: DataSource) -> tuple[str, dict[str, AnnotatedPart]]:
    if source.folder:
        layout, found = find(source.folder)
        return layout.name, {part: layout.read(each) for part, each in found.items()}
    named = {"train": (source.train, source.train_images), "val": (source.val, source.val_images)}
    for path in (path for pair in named.values() for path in pair if path):
        if not path.exists():
            raise KitError(f"nothing at {path}")
    parts = {
        part: read_coco(PartFiles(file, images or file.parent))
        for part, (file, images) in named.items()
        if file
    }
    return "COCO JSON", parts if len(parts) == 2 or "val" in parts else {"all": parts["train"]}


def split_images(part: AnnotatedPart, val_share: float, seed: int) -> dict[str, AnnotatedPart]:
    """Hold out a share of the images; whether an image is held out depends on the seed and its name.

    So the choice does not depend on the order in the file, and changes little if images are added.

    Args:
        part: all images, with their annotations.
        val_share: share of the images, between 0 and 1.
        seed: seed of the choice.

    Raises:
        KitError: too few images.
    """
    images = part.content["images"]
    count = round(len(images) * val_share)
    if not 0 < count < len(images):
        raise KitError(
            f"{part.source}: {val_share:g} of its {len(images)} images are {count}, expected some for "
            "training and some for validation; give another --val-share, or --val FILE"
        )
    ranked = sorted(
        images, key=lambda each: hashlib.sha256(f"{seed} {each['file_name']}".encode()).digest()
    )
    held_out = {image["id"] for image in ranked[:count]}

    def chosen(*, val: bool) -> AnnotatedPart:
        rows = {
            "images": [image for image in images if (image["id"] in held_out) == val],
            "annotations": [
                each for each in part.content["annotations"] if (each["image_id"] in held_out) == val
            ],
        }
        return AnnotatedPart({**part.content, **rows}, part.images, part.source)

    return {"train": chosen(val=False), "val": chosen(val=True)}


def _take_classes(part: AnnotatedPart, categories: list[dict[str, Any]], whose: str) -> None:
    """Give a part these classes by their names, as tools number each part separately."""
    ids = {each["name"]: each["id"] for each in categories}
    own = classes_of(part.content)
    used = {each["category_id"] for each in part.content["annotations"]}
    if odd := [name for id, name in own.items() if id in used and name not in ids]:
        raise KitError(f"{part.source} has the class {odd[0]!r}, which is none of {whose}")
    part.content["categories"] = categories
    for each in part.content["annotations"]:
        each["category_id"] = ids[own[each["category_id"]]]


def identity(data: OwnData) -> dict[str, Any]:
    """Describe a data set for a record: its origin and the hashes of its content."""
    hashes = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in data.texts.items()}
    sources = {
        name: {"source": portable(part.source), "images": portable(part.images)}
        for name, part in data.parts.items()
    }
    return {"layout": data.layout, "parts": sources, "sha256": hashes, **data.split}


def write(data: OwnData, folder: Path) -> None:
    """Write the normal form: a JSON for each part, then the description of all."""
    for name, text in data.texts.items():
        files.write_text(folder / name, text)
    objects = [each for part in data.parts.values() for each in part.content["annotations"]]
    runs = [type(each.get("segmentation")) is dict and not each.get("iscrowd") for each in objects]
    masks = any(each.get("segmentation") for each in objects)
    description = {**identity(data), "masks": masks, "run_lengths": any(runs)}
    files.write_text(folder / DESCRIPTION, json.dumps(description, indent=1))


@dataclass(frozen=True)
class WrittenData:
    """A folder of the normal form."""

    folder: Path
    masks: bool
    """Whether any object has a mask."""
    run_lengths: bool
    """Whether any object that is not a crowd has a run-length mask, as brushes make them."""
    parts: Mapping[str, PartFiles]
    sources: Mapping[str, Path]
    """The user's files, for messages."""


def written(folder: Path) -> WrittenData | None:
    """Read the normal form in a folder; None if there is none.

    Raises:
        KitError: its description is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        data = untrusted.read_bytes(path, untrusted.RECORD, "description")
        found = _Description.model_validate_json(data)
    except ValidationError:
        raise KitError(f"{path} is damaged; remove it, and name the data that it was made of") from None
    parts = {name: part for name, part in found.parts.items() if name in NAMES}
    return WrittenData(
        folder,
        found.masks,
        found.run_lengths,
        {
            name: PartFiles(folder / f"instances_{name}.json", local(each.images))
            for name, each in parts.items()
        },
        {name: local(each.source) for name, each in parts.items()},
    )


class _Place(BaseModel):
    source: str
    images: str


class _Description(BaseModel):
    masks: bool
    run_lengths: bool = False
    parts: dict[str, _Place]
