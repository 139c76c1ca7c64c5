"""``triplet data check``: show the content of a data set on one page and in one picture before training."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triplet import files
from triplet.annotations.image_files import THOROUGH, look
from triplet.datasets.source import DataSource, OwnData, read
from triplet.errors import KitError
from triplet.images import SIXTEEN_BITS
from triplet.paths import portable, root
from triplet.progress import Bar, say

Draw = Callable[[Sequence[tuple[Path, Sequence[Mapping[str, Any]]]], Sequence[str], Path], None]
"""A function that draws files with their objects, given the names of the classes (from 0), to a path."""
SHOWN = 12
"""Number of images in the picture."""
SMALL, MEDIUM = 32**2, 96**2
"""Bounds of COCO's size classes, in pixels of area."""
TINY = 4
"""Shortest useful side of a box in pixels; no detector here finds smaller objects."""
FEW = 10
"""Number of objects of a class below which neither a training nor an AP says much."""
UNBALANCED = 20
"""Ratio of the most frequent class's objects to the rarest one's from which data are called unbalanced."""
THREADS = 8
LISTED = 12
"""Most classes to list by name."""


@dataclass(frozen=True)
class LookedAt:
    """An annotated image, and the properties of its file."""

    part: str
    path: Path
    name: str
    said: tuple[int, int]
    """Width and height in the annotations."""
    objects: Sequence[Mapping[str, Any]]
    size: tuple[int, int] | None = None
    """Width and height of the file, rotated by EXIF; None if it is missing or unreadable."""
    turned: bool = False
    mode: str = ""
    """Pillow's mode of the file."""
    error: str = ""
    bytes: int = 0


def check(source: DataSource, draw: Draw, picture: Path | None = None) -> None:
    """Print the page and write the picture.

    Args:
        source: the user's data.
        draw: writes the picture.
        picture: path of the picture; by default below reports/data/.

    Raises:
        KitError: an unknown layout, or unusable annotations.
    """
    own = read(source)
    say(f"data: {own.line()}")
    images = look_at(own)
    for word, text in facts(own, images):
        say(f"  {word:<10}{text}")
    shown = [each for each in _chosen(images) if not _look(each, decode=True).error]
    if not shown:
        where = " and ".join(dict.fromkeys(portable(part.images) for part in own.parts.values()))
        none = f"{source}: none of its {len(images)} annotated images can be read in {where}"
        raise KitError(f"{none}; put them there, or into images/ in it")
    name = (source.folder or source.train or source.val or Path("data")).absolute().stem
    path = picture or root("reports") / "data" / f"{name}.png"
    numbers = {id: number for number, id in enumerate(own.classes)}
    draw(
        [
            (each.path, [{**o, "category_id": numbers[o["category_id"]]} for o in each.objects])
            for each in shown
        ],
        list(own.classes.values()),
        path,
    )
    say(f"  {'picture':<10}{portable(path)}, {len(shown)} of the images with their annotations")


def look_at(own: OwnData) -> list[LookedAt]:
    """Read every image; if there are more than THOROUGH, mostly headers and last bytes alone."""
    found = []
    for part, annotated in own.parts.items():
        objects: dict[int, list[Mapping[str, Any]]] = {}
        for each in annotated.content["annotations"]:
            objects.setdefault(each["image_id"], []).append(each)
        for image in annotated.content["images"]:
            size = image["width"], image["height"]
            name = image["file_name"]
            found.append(LookedAt(part, annotated.images / name, name, size, objects.get(image["id"], [])))
    looked = list[LookedAt]()
    with ThreadPoolExecutor(THREADS) as pool, Bar("data: looking at images", len(found)) as bar:
        for each in pool.map(lambda each: _look(each, decode=len(found) <= THOROUGH), found):
            looked.append(each)
            bar.step()
    return looked


def _look(image: LookedAt, *, decode: bool) -> LookedAt:
    if not image.path.is_file():
        return replace(image, error="missing")
    try:
        mode, size, turned = look(image.path, decode=decode)
        length = image.path.stat().st_size
        return replace(image, size=size, turned=turned > 1, mode=mode, bytes=length)
    except KitError as error:
        return replace(image, error=str(error))
    except Exception as error:  # Pillow's plug-ins may raise anything
        return replace(image, error=type(error).__name__)


def facts(own: OwnData, images: Sequence[LookedAt]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the page, each a name and a text."""
    objects = [each for image in images for each in image.objects]
    sizes = Counter(image.said for image in images)
    common = ", ".join(f"{w} x {h} ({count})" for (w, h), count in sizes.most_common(3))
    smallest, largest = (pick(sizes, key=lambda size: size[0] * size[1]) for pick in (min, max))
    yield "images", f"{len(images)}: {common}{', ...' * (len(sizes) > 3)}"
    yield (
        "sizes",
        f"from {smallest[0]} x {smallest[1]} to {largest[0]} x {largest[1]}, "
        f"median of the shorter side {statistics.median(min(image.said) for image in images):g}",
    )
    yield "objects", f"{len(objects)}, {len(objects) / len(images):.1f} an image; {_masks(objects)}"
    areas = [each["bbox"][2] * each["bbox"][3] for each in objects]
    small, medium = sum(area < SMALL for area in areas), sum(SMALL <= area < MEDIUM for area in areas)
    yield (
        "boxes",
        f"{small} small (below 32 x 32), {medium} medium, {len(areas) - small - medium} large (96 x 96 on)",
    )
    counts = _counts(own)
    listed = [f"{name} {' + '.join(map(str, each))}" for name, each in counts.items()]
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    yield "classes", f"{', '.join(listed[:LISTED])}{more} ({' + '.join(own.parts)})"
    strange = [*_odd_files(images), *_odd_objects(images), *_odd_classes(own, counts)]
    for line in strange or ["nothing"]:
        yield "odd", line


def _masks(objects: Sequence[Mapping[str, Any]]) -> str:
    count = sum(bool(each.get("segmentation")) for each in objects)
    if count in (0, len(objects)):
        return "each has a mask" if count else "no masks, boxes alone"
    return f"{count} have a mask: finetune with ARGS=MODEL.MASK_ON=False, or give the others one"


def _counts(own: OwnData) -> dict[str, list[int]]:
    """Count the objects of each class in each part, the most frequent class first."""
    each = [Counter(a["category_id"] for a in part.content["annotations"]) for part in own.parts.values()]
    found = {name: [count[id] for count in each] for id, name in own.classes.items()}
    return dict(sorted(found.items(), key=lambda pair: -sum(pair[1])))


def _some(what: str, names: Sequence[str]) -> Iterator[str]:
    """Say how many there are, and name the first ones."""
    if names:
        yield f"{what}: {len(names)} ({names[0]}{', ...' * (len(names) > 1)})"


def _odd_files(images: Sequence[LookedAt]) -> Iterator[str]:
    yield from _some("images that are missing", [each.name for each in images if each.error == "missing"])
    unreadable = [f"{each.name} ({each.error})" for each in images if each.error not in ("", "missing")]
    yield from _some("images that cannot be read", unreadable)
    yield from _some("images that EXIF turns", [each.name for each in images if each.turned])
    other = [
        f"{each.name} has {each.size[0]} x {each.size[1]}, annotated as {each.said[0]} x {each.said[1]}"
        for each in images
        if each.size and each.size != each.said
    ]
    yield from _some("images of another size than annotated", other)
    for mode, what in (("L", "greyscale images"), ("CMYK", "CMYK images, read as RGB")):
        yield from _some(what, [each.name for each in images if each.mode == mode])
    wide = [each.name for each in images if each.mode in SIXTEEN_BITS]
    yield from _some("images with pixels of 16 bits, scaled to 8", wide)
    twice, both = _same_files(images)
    yield from _some("images that a part has twice", twice)
    yield from _some("images of val that are in train, too", both)
    yield from _some("images without an object", [each.name for each in images if not each.objects])


def _same_files(images: Sequence[LookedAt]) -> tuple[list[str], list[str]]:
    """Return the names of images that a part has twice, and of those that are in both parts."""
    by_size: dict[int, list[LookedAt]] = {}
    for each in images:
        if each.bytes:
            by_size.setdefault(each.bytes, []).append(each)
    seen: dict[str, LookedAt] = {}
    twice, both = list[str](), list[str]()
    for alike in by_size.values():
        for each in alike if len(alike) > 1 else ():
            first = seen.setdefault(files.sha256(each.path), each)
            if first is not each:
                (twice if first.part == each.part else both).append(each.name)
    return twice, both


def _odd_objects(images: Sequence[LookedAt]) -> Iterator[str]:
    tiny, outside, again, crowds = list[str](), list[str](), list[str](), list[str]()
    for image in images:
        seen = Counter((each["category_id"], *each["bbox"]) for each in image.objects)
        again += [image.name for count in seen.values() for _ in range(count - 1)]
        for each in image.objects:
            x, y, w, h = each["bbox"]
            crowds += [image.name] * each.get("iscrowd", 0)
            tiny += [image.name] * (min(w, h) < TINY)
            outside += [image.name] * (
                min(x, y) < -1 or x + w > image.said[0] + 1 or y + h > image.said[1] + 1
            )
    yield from _some(f"objects with a side below {TINY} px", tiny)
    yield from _some("boxes that reach out of their image", outside)
    yield from _some("objects that are annotated twice", again)
    yield from _some("crowds (iscrowd 1), which are not trained on", crowds)


def _odd_classes(own: OwnData, counts: Mapping[str, Sequence[int]]) -> Iterator[str]:
    for place, part in enumerate(own.parts):
        yield from _some(
            f"classes without an object in {part}", [n for n, each in counts.items() if not each[place]]
        )
    totals = [sum(each) for each in counts.values() if sum(each)]
    rare = [name for name, each in counts.items() if 0 < sum(each) < FEW]
    yield from _some(f"classes with fewer than {FEW} objects", rare)
    if max(totals) >= UNBALANCED * min(totals):
        yield f"the most frequent class has {max(totals) / min(totals):.0f} times the objects of the rarest"


def _chosen(images: Sequence[LookedAt]) -> list[LookedAt]:
    """Choose readable annotated images, evenly spread over their names."""
    usable = sorted((each for each in images if each.objects and each.size), key=lambda each: each.name)
    count = min(SHOWN, len(usable))
    return [usable[place * len(usable) // count] for place in range(count)]
