"""Read PASCAL VOC's XML as VOC's own toolkit does: decimal coordinates, and difficult 0 if missing."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from triplet import untrusted
from triplet.annotations.findings import Findings, show
from triplet.errors import KitError, message_of

CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """One annotated object."""

    name: str
    box: tuple[float, float, float, float]
    """The file's xmin, ymin, xmax, ymax: pixels counted from 1, both ends included."""
    difficult: bool


@dataclass(frozen=True)
class VocImage:
    """One annotated image."""

    width: int
    height: int
    objects: list[VocObject]


def read_list(path: Path) -> list[str]:
    """Read the names in an image set: one per line, without repetition.

    Raises:
        KitError: the list is missing or has another form.
    """
    try:
        lines = untrusted.read_text(path, untrusted.NAMES, "list of names").splitlines()
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror})") from None
    names = [line.strip() for line in lines if line.strip()]
    for name in names:
        if len(name.split()) != 1 or "/" in name or "\0" in name or not name.isprintable():
            raise KitError(f"{path} has the line {show(name)}, expected the name of an image")
    if len({*names}) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise KitError(f"{path} lists {show(twice)} more than once")
    if not names:
        raise KitError(f"{path} lists no image")
    return names


def check(folder: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, VocImage]:
    """Read the annotations of images and refuse unusable ones.

    Args:
        folder: folder of the XML files.
        names: names of the images.
        classes: possible classes of an object.

    Raises:
        KitError: the message has the first wrong file of each kind, with what was found and expected.
    """
    problems = Findings()
    found = {}
    for name in names:
        path = folder / f"{name}.xml"
        try:
            found[name] = _read(path, classes)
        except _OddError as error:
            problems.add(error.kind, f"{path} {error}")
        except (KitError, ET.ParseError, OSError, ValueError, LookupError, RecursionError) as error:
            reason = message_of(str(error).removeprefix(f"{path} "), 100)
            text = f"{path}: an annotation is damaged or not VOC's: it cannot be read ({reason})"
            problems.add("damaged", text)
    problems.refuse()
    if not any(image.objects for image in found.values()):
        raise KitError(f"{folder}: none of the {len(found)} annotations has an object")
    return found


class _OddError(Exception):
    """Error in an annotation, with its kind."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def _read(path: Path, classes: Sequence[str]) -> VocImage:
    root = ET.fromstring(untrusted.read_bytes(path, untrusted.ANNOTATION, "VOC annotation"))
    sides = []
    for side in ("width", "height"):
        value = _number(root, f"size/{side}")
        if value < 1 or value != math.floor(value) or value > 10**6:
            raise _OddError(side, f"has the {side} {value:g}, expected pixels")
        sides.append(int(value))
    width, height = sides
    return VocImage(
        width, height, [_object(each, classes, (width, height)) for each in root.findall("object")]
    )


def _object(element: ET.Element, classes: Sequence[str], size: tuple[int, int]) -> VocObject:
    name = (element.findtext("name") or "").strip()
    if name not in classes:
        raise _OddError(
            "class", f"has an object of the class {show(name)}, which is not one of VOC's {len(classes)}"
        )
    xmin, ymin, xmax, ymax = box = tuple(_number(element, f"bndbox/{corner}") for corner in CORNERS)
    said = ", ".join(f"{corner} {value:g}" for corner, value in zip(CORNERS, box, strict=True))
    if xmax < xmin or ymax < ymin:
        raise _OddError("box", f"has a box whose ends are exchanged: {said}")
    if xmax < 0 or ymax < 0 or xmin > size[0] + 1 or ymin > size[1] + 1:
        raise _OddError("outside", f"has a box that is not inside its {size[0]} x {size[1]} pixels: {said}")
    if xmin < -size[0] or ymin < -size[1] or xmax > 2 * size[0] or ymax > 2 * size[1]:
        raise _OddError(
            "outside", f"has a box that reaches out of its {size[0]} x {size[1]} pixels: {said}"
        )
    difficult = _number(element, "difficult", default=0)
    if difficult not in (0, 1):
        raise _OddError("difficult", f"has the difficult {difficult:g}, expected 0 or 1")
    return VocObject(name, (xmin, ymin, xmax, ymax), difficult == 1)


def _number(element: ET.Element, path: str, default: float | None = None) -> float:
    """Return the finite number at a path; VOC's toolkit reads all numbers as decimals."""
    text = element.findtext(path)
    if default is not None and not (text or "").strip():  # some tools write an empty element
        return default
    if text is None:
        raise _OddError(
            f"no {path}", f"has no {path}: an annotation is damaged or not VOC's, or of another form"
        )
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise _OddError(path, f"has the {path} {show(text.strip())}, expected a number")
    return value
