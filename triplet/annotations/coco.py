"""Read and check COCO's annotation files, and convert them to the form that all their readers accept."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from triplet.annotations.findings import Findings, show
from triplet.annotations.ids import LARGEST, number_ids, refer
from triplet.annotations.numbers import Ints, not_a_number, read_rows
from triplet.annotations.shapes import (
    Shapes,
    Uses,
    check_boxes,
    check_keypoints,
    check_masks,
    decode_counts,
)
from triplet.annotations.text import read_json, without_collection
from triplet.errors import KitError

TABLES = ("images", "annotations", "categories")
LARGEST_SIDE = 10**6
"""Largest plausible side of an image in pixels."""
UNLIKE = "is not in COCO's annotation format, or annotates nothing"


@dataclass(frozen=True)
class Checked:
    """The content of a COCO annotation file without errors."""

    content: dict[str, Any]
    """The content of the file. Ids are integers, those of annotations from 1 up. The fields that COCO's
    evaluation needs are filled in if the file is read for it."""
    as_it_is: bool
    """Whether Detectron2 and COCO's evaluation can read the file itself, as nothing had to be changed."""
    image_ids: dict[int, Any]
    """New id -> the file's id, for images whose id was changed."""
    category_ids: dict[int, Any]
    """New id -> the file's id, for categories whose id was changed."""
    notes: list[str]
    """Findings that training tolerates, one line for each kind."""


def check(path: Path, uses: Uses | None = None, shown: Path | None = None) -> Checked:
    """Read an annotation file and refuse it if it is unusable.

    Args:
        path: path of the JSON file.
        uses: purposes besides boxes, if any.
        shown: the file that messages name: the user's own, if the kit has made this one from it.

    Raises:
        KitError: the message has the file, the first wrong annotation of each kind, and what was expected.
    """
    with without_collection():
        content, plain = read_json(path)
        return _check(shown or path, content, plain, uses or Uses())


def check_content(path: Path, content: Any, uses: Uses | None = None) -> Checked:
    """Check content that is already in memory, as ``check`` does; messages name ``path``."""
    with without_collection():
        return _check(path, content, False, uses or Uses())


def _check(path: Path, content: Any, plain: bool, uses: Uses) -> Checked:
    tables = _tables(path, content)
    problems, notes = Findings(), Findings()
    images, changed_images = _check_images(tables["images"], problems)
    categories, changed_categories = _check_categories(tables["categories"], problems)
    problems.refuse(path)  # references to wrong ids would be wrong as well
    annotations = tables["annotations"]
    own_ids = number_ids([each.get("id") for each in annotations], "annotations", problems)
    changed = _refer(annotations, images, categories, problems)
    changed |= _check_flags(annotations, problems)
    shapes = Shapes(annotations, _sizes(annotations, tables["images"]), problems, notes)
    check_boxes(shapes)
    check_masks(shapes, uses)
    check_keypoints(shapes, uses)
    problems.refuse(path)
    _check_use(path, annotations, uses)
    changed |= _renumber(annotations, own_ids)
    if uses.evaluate:
        changed |= _fill(annotations, uses)
    return Checked(
        content,
        plain and not changed and not changed_images and not changed_categories,
        {number: id for id, number in images.items() if id != number},
        {number: id for id, number in categories.items() if id != number},
        [f"{path.name}: {line}" for line in notes.lines()] if uses.train else [],
    )


def _tables(path: Path, content: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the three tables of objects, none of them empty."""
    if type(content) is not dict:
        raise KitError(f"{path} {UNLIKE}: it holds {show(content)}, expected an object with {TABLES}")
    for name in TABLES:
        table = content.get(name)
        if type(table) is not list or not table:
            found = "nothing" if name not in content or table == [] else show(table)
            raise KitError(f"{path} {UNLIKE}: {name!r} holds {found}, expected a list of objects")
        if {*map(type, table)} != {dict}:
            place = next(i for i, each in enumerate(table) if type(each) is not dict)
            raise KitError(f"{path} {UNLIKE}: {name}[{place}] is {show(table[place])}, expected an object")
    return {name: content[name] for name in TABLES}


def _set_ids(table: Sequence[dict[str, Any]], numbers: Mapping[Any, int]) -> bool:
    """Replace the ids by numbers; return whether any changed."""
    changed = False
    for each in table:
        id = each.get("id")
        if type(id) is float and id.is_integer():
            id = int(id)
        number = numbers.get(id) if type(id) in (int, str) else None
        if number is not None and (number != id or type(each["id"]) is not int):
            each["id"] = number
            changed = True
    return changed


def _check_images(images: Sequence[dict[str, Any]], problems: Findings) -> tuple[dict[Any, int], bool]:
    """Check file names and sizes of images; return the images' numbers by their ids."""
    numbers = number_ids([image.get("id") for image in images], "images", problems)
    changed = False
    for place, image in enumerate(images):
        name = image.get("file_name")
        if said := bad_name(name):
            problems.add("file name", f"images[{place}] has the file_name {show(name)}, which {said}")
        for side in ("width", "height"):
            value = image.get(side)
            if type(value) is float and value.is_integer():
                value = image[side] = int(value)
                changed = True
            if type(value) is not int or not 0 < value <= LARGEST_SIDE:
                text = f"image {show(image.get('id'))} has the {side} {show(value)}, expected pixels"
                problems.add(f"image {side}", text)
        _check_pixels(image, problems)
    changed |= _set_ids(images, numbers)
    return numbers, changed


def _check_pixels(image: Mapping[str, Any], problems: Findings) -> None:
    """Refuse an image with more pixels than the kit decodes, as its masks would have as many."""
    width, height = image.get("width"), image.get("height")
    most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if type(width) is type(height) is int and 0 < most < width * height:
        text = f"image {show(image.get('id'))} has {width} x {height} pixels, expected at most {most}"
        problems.add("image size", text)


def bad_name(name: Any) -> str:
    """Say why this is not the name or path of a file below a folder; '' if it is."""
    if type(name) is not str or not name or "\0" in name or not encodable(name):
        return "is not text that can name a file"
    if name.startswith("/") or ".." in name.split("/"):
        return "is not a plain file name or path inside the folder"
    return ""


def encodable(text: str) -> bool:
    """Return whether a text can be encoded, as JSON may contain halves of surrogate pairs."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _check_categories(
    categories: Sequence[dict[str, Any]], problems: Findings
) -> tuple[dict[Any, int], bool]:
    numbers = number_ids([category.get("id") for category in categories], "categories", problems)
    seen: dict[str, Any] = {}
    for category in categories:
        name, id = category.get("name"), show(category.get("id"))
        if type(name) is not str or not name.strip() or not encodable(name):
            problems.add("name", f"category {id} has the name {show(name)}, expected a text")
        elif name in seen:
            problems.add("same name", f"categories {seen[name]} and {id} both have the name {show(name)}")
        else:
            seen[name] = id
    return numbers, _set_ids(categories, numbers)


def _renumber(annotations: Sequence[dict[str, Any]], ids: Mapping[Any, int]) -> bool:
    """Number annotations from 1 up, unless their ids can stay: COCO's evaluation reads 0 as no match."""
    if 0 not in ids and all(type(each["id"]) is int for each in annotations):
        return False
    for number, each in enumerate(annotations, 1):
        each["id"] = number
    return True


def _refer(
    annotations: Sequence[dict[str, Any]],
    images: Mapping[Any, int],
    categories: Mapping[Any, int],
    problems: Findings,
) -> bool:
    """Point annotations to the numbers of their images and categories; return whether any changed."""
    changed = False
    for key, numbers in (("image_id", images), ("category_id", categories)):
        values = [each.get(key) for each in annotations]
        found = refer(values, numbers)
        lost = [place for place, number in enumerate(found) if number is None]
        if lost:
            at, table = lost[0], "images" if key == "image_id" else "categories"
            article = "an" if key == "image_id" else "a"
            text = (
                f"annotation {show(annotations[at].get('id'))} has {article} {key} that "
                f"is none ({show(values[at])}), expected the id of one of the {len(numbers)} {table}"
            )
            problems.add(key, text, len(lost))
        elif found != values or {*map(type, values)} != {int}:
            changed = True
            for each, number in zip(annotations, found, strict=True):
                each[key] = number
    return changed


def _check_flags(annotations: Sequence[dict[str, Any]], problems: Findings) -> bool:
    """Check iscrowd, ignore, area and num_keypoints where present; return whether any was changed."""
    if _flags_are_right(annotations):
        return False
    changed = False
    for each in annotations:
        name = each.get("id")
        crowd = each.get("iscrowd", 0)
        if type(crowd) in (bool, float) and crowd in (0, 1):
            crowd = each["iscrowd"] = int(crowd)
            changed = True
        if type(crowd) is not int or crowd not in (0, 1):
            problems.add("iscrowd", f"annotation {show(name)} has iscrowd {show(crowd)}, expected 0 or 1")
        if ignore := each.get("ignore"):
            text = f"annotation {show(name)} has ignore {show(ignore)}, which Detectron2 does not know"
            problems.add("ignore", f"{text}; take it out or make it a crowd")
        elif "ignore" in each and type(ignore) not in (int, bool):
            del each["ignore"]
            changed = True
        for key in ("area", "num_keypoints"):
            value = each.get(key, 0)
            if not_a_number(value) or not 0 <= value < LARGEST or (key != "area" and value % 1):
                text = f"annotation {show(name)} has {key} {show(value)}, expected a number from 0 on"
                problems.add(key, text)
            elif key == "num_keypoints" and type(value) is float:
                each[key] = int(value)
                changed = True
    return changed


def _flags_are_right(annotations: Sequence[dict[str, Any]]) -> bool:
    """Return whether all flags are right, checking a column at a time."""
    crowds = [each.get("iscrowd", 0) for each in annotations]
    numbers = read_rows([[each.get("area", 0) for each in annotations]])
    return (
        {*map(type, crowds)} == {int}
        and {*crowds} <= {0, 1}
        and not any("ignore" in each or "num_keypoints" in each for each in annotations)
        and not numbers.bad
        and bool(((numbers.flat >= 0) & (numbers.flat < LARGEST)).all())
    )


def _sizes(annotations: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]]) -> Ints:
    """Return the (n, 2) width and height of each annotation's image; 0 if it has no image."""
    known = {image["id"]: (image["width"], image["height"]) for image in images}
    ids = [each.get("image_id") for each in annotations]
    flat = [known.get(id, (0, 0)) if type(id) is int else (0, 0) for id in ids]
    return np.array(flat, dtype=np.int64).reshape(-1, 2)


def _check_use(path: Path, annotations: Sequence[dict[str, Any]], uses: Uses) -> None:
    """Raise KitError if no annotation is of a kind that is trained on, or that counts."""
    if not (uses.train or uses.evaluate):
        return

    def counts(each: Mapping[str, Any]) -> bool:
        return (
            not each.get("iscrowd")
            and (not uses.train or _trained_on(each))
            and (not uses.keypoints or any(each["keypoints"][2::3]))
        )

    if not any(map(counts, annotations)):
        what = "trained on" if uses.train else "counted"
        raise KitError(
            f"{path}: none of its {len(annotations)} annotations is {what}: all are crowds, or have no "
            + ("keypoint that is labelled" if uses.keypoints else "area")
        )


def _trained_on(annotation: Mapping[str, Any]) -> bool:
    """Return whether Detectron2 keeps an annotation: its box has an area, and its polygons, if any, include
    one of three points."""
    polygons = annotation.get("segmentation")
    if type(polygons) is list and polygons and max(map(len, polygons)) < 6:
        return False
    return bool(min(annotation["bbox"][2:]) > 0)


def _fill(annotations: Sequence[dict[str, Any]], uses: Uses) -> bool:
    """Fill in the fields that COCO's evaluation needs; return whether any annotation lacked one.

    The area is that of the mask if there is one, else that of the box.
    """
    changed = False
    for each in annotations:
        if lacks := {"iscrowd", "area", *["num_keypoints"] * uses.keypoints} - each.keys():
            changed = True
            if "iscrowd" in lacks:
                each["iscrowd"] = 0
            if "area" in lacks:
                each["area"] = _area(each)
            if "num_keypoints" in lacks:
                each["num_keypoints"] = sum(value > 0 for value in each["keypoints"][2::3])
    return changed


def _area(annotation: Mapping[str, Any]) -> float:
    """Return the area of polygons, by the shoelace formula, or of run lengths; without either, that of the
    box."""
    mask = annotation.get("segmentation")
    if not mask:
        return float(math.prod(annotation["bbox"][2:]))
    if type(mask) is dict:
        runs = mask["counts"]
        decoded = decode_counts(runs) if type(runs) is str else np.array(runs, dtype=np.float64)
        return 0.0 if decoded is None else float(decoded[1::2].sum())
    total = 0.0
    for polygon in mask:
        x, y = np.array(polygon, dtype=np.float64).reshape(-1, 2).T
        total += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return total
