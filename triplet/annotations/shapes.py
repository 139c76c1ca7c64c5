"""Boxes, polygons, run-length masks and keypoints of COCO's annotations."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triplet.annotations.findings import Findings, show
from triplet.annotations.numbers import Floats, Ints, Rows, read_rows

AT_ONCE = 100_000
"""Number of polygons to check together, half a GB of numbers."""
PERSON = 17
"""Number of a person's keypoints; Detectron2 knows their names and mirror images."""


@dataclass(frozen=True)
class Uses:
    """Purposes for which annotations are read, beyond boxes."""

    masks: bool = False
    keypoints: bool = False
    train: bool = False
    evaluate: bool = False
    bitmask: bool = False
    """INPUT.MASK_FORMAT, which decides whether run-length masks can be trained on."""


@dataclass(frozen=True)
class Shapes:
    """Annotations and the sizes of their images."""

    annotations: Sequence[dict[str, Any]]
    sizes: Ints
    """(n, 2) width and height of each annotation's image; 0 where unknown."""
    problems: Findings
    notes: Findings

    def name(self, place: int) -> str:
        """Return words with which a person can find an annotation."""
        known = self.annotations[place].get("id")
        return f"annotation {show(known)}" if known is not None else f"annotations[{place}]"

    def refuse(self, kind: str, places: Sequence[int] | Ints, text: Callable[[int], str]) -> None:
        """Record the annotations at these places as problems; the text is computed for the first."""
        self._add(self.problems, kind, places, text)

    def note(self, kind: str, places: Sequence[int] | Ints, text: Callable[[int], str]) -> None:
        """Record the annotations at these places as tolerated."""
        self._add(self.notes, kind, places, text)

    def _add(
        self, to: Findings, kind: str, places: Sequence[int] | Ints, text: Callable[[int], str]
    ) -> None:
        if len(places):
            first = int(places[0])
            to.add(kind, f"{self.name(first)} {text(first)}", len(places))

    def size(self, place: int) -> str:
        """Return the size of an annotation's image, for messages."""
        width, height = self.sizes[place]
        return f"{width} x {height}"


def check_boxes(shapes: Shapes) -> None:
    """Check that boxes have four numbers and no negative size, and lie at least partly inside the image.

    Boxes without area (COCO has two) and boxes that reach out of the image are only noted: Detectron2 drops
    the former and clips the latter.
    """
    values = [each.get("bbox") for each in shapes.annotations]
    shapes.refuse(
        "no box", [i for i, v in enumerate(values) if v is None or v == []], lambda i: "has no bbox"
    )
    there = [i for i, v in enumerate(values) if v is not None and v != []]
    rows = read_rows([values[i] for i in there])
    bad = {there[i]: text for i, text in rows.bad.items()}
    wrong = (rows.lengths != 4).nonzero()[0].tolist()
    bad |= {there[i]: f"has {rows.lengths[i]} numbers" for i in wrong if i not in rows.bad}
    shapes.refuse(
        "box", sorted(bad), lambda i: f"has a bbox that {bad[i]}; a bbox is 4 numbers: x, y, width, height"
    )
    right = rows.lengths == 4
    places = np.array(there, dtype=np.int64)[right]
    boxes = rows.flat[np.repeat(right, rows.lengths)].reshape(-1, 4)
    _check_extents(shapes, places, boxes)


def _check_extents(shapes: Shapes, places: Ints, boxes: Floats) -> None:
    def said(place: int) -> str:
        return f"{show(shapes.annotations[place]['bbox'])}"

    size = shapes.sizes[places].astype(np.float64)
    known = size[:, 0] > 0
    negative = (boxes[:, 2:] < 0).any(1)
    shapes.refuse(
        "negative box",
        places[negative],
        lambda i: f"has the bbox {said(i)}, expected a width and a height that are not negative",
    )
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    far = (low < -size).any(1) | (high > 2 * size).any(1)
    outside = (low > size).any(1) | (high < 0).any(1)
    outside = known & ~negative & (outside | far)
    shapes.refuse(
        "box outside",
        places[outside],
        lambda i: f"has the bbox {said(i)}, which is not inside its image of {shapes.size(i)} pixels",
    )
    fine = ~negative & ~outside
    shapes.note(
        "flat box",
        places[fine & (boxes[:, 2:] == 0).any(1)],
        lambda i: f"has a bbox without area, {said(i)}, which is not trained on",
    )
    over = known & fine & ((low < -1).any(1) | (high > size + 1).any(1))
    shapes.note(
        "box over the edge",
        places[over],
        lambda i: f"has the bbox {said(i)}, which is clipped to its image of {shapes.size(i)} pixels",
    )


def check_masks(shapes: Shapes, uses: Uses) -> None:
    """Check that masks are polygons, as flat lists of x, y, or run lengths that cover the image's
    pixels."""
    values = [each.get("segmentation") for each in shapes.annotations]
    if uses.masks:
        shapes.refuse(
            "no mask",
            [i for i, v in enumerate(values) if not v],
            lambda i: "has no segmentation; give it one, or train on boxes alone: MODEL.MASK_ON=False",
        )
    lists = [i for i, v in enumerate(values) if type(v) is list and v]
    runs = [i for i, v in enumerate(values) if type(v) is dict and v]
    others = [i for i, v in enumerate(values) if v and type(v) not in (list, dict)]
    shapes.refuse(
        "mask",
        others,
        lambda i: f"has the segmentation {show(values[i])}, expected a list of polygons or run lengths",
    )
    for start in range(0, len(lists), AT_ONCE):
        _check_polygons(shapes, lists[start : start + AT_ONCE], uses)
    _check_runs(shapes, runs)
    single = [i for i in runs if not shapes.annotations[i].get("iscrowd")]
    if uses.masks and uses.train and not uses.bitmask:
        shapes.refuse(
            "run lengths",
            single,
            lambda i: (
                "has a mask of run lengths and is not a crowd, which is trained on as bitmaps only; add "
                "INPUT.MASK_FORMAT=bitmask"
            ),
        )


def _check_polygons(shapes: Shapes, places: list[int], uses: Uses) -> None:
    values = [shapes.annotations[i]["segmentation"] for i in places]
    if {*map(type, chain.from_iterable(values))} != {list}:
        odd = [i for i, v in zip(places, values, strict=True) if any(type(each) is not list for each in v)]
        shapes.refuse(
            "flat polygon",
            odd,
            lambda i: (
                f"has the segmentation {show(shapes.annotations[i]['segmentation'])}, expected a list of "
                "polygons: [[x0, y0, x1, y1, ...], ...]"
            ),
        )
        places = sorted({*places} - {*odd})
        values = [shapes.annotations[i]["segmentation"] for i in places]
    rows = read_rows([*chain.from_iterable(values)])
    counts = np.fromiter(map(len, values), dtype=np.int64, count=len(values))
    owners = np.repeat(np.array(places, dtype=np.int64), counts)
    bad = {int(owners[i]): text for i, text in rows.bad.items()}
    shapes.refuse(
        "polygon",
        sorted(bad),
        lambda i: f"has a polygon that {bad[i]}; a polygon is one flat list: [x0, y0, x1, y1, ...]",
    )
    lengths = rows.lengths.copy()
    lengths[[*rows.bad]] = 6  # reported already
    _check_lengths(shapes, owners, lengths)
    _check_reach(shapes, owners, rows, "a polygon that reaches")
    if uses.evaluate and uses.masks:
        # COCO's evaluation uses the first polygon to tell polygons from boxes of four numbers.
        firsts = np.cumsum(counts) - counts
        short = owners[firsts][(lengths[firsts] < 6) & (lengths[firsts] % 2 == 0)]
        shapes.refuse(
            "first", short, lambda i: "has a first polygon of fewer than 3 points, expected at least 3"
        )


def _check_lengths(shapes: Shapes, owners: Ints, lengths: Ints) -> None:
    odd = np.unique(owners[lengths % 2 == 1])
    shapes.refuse(
        "odd polygon", odd, lambda i: "has a polygon of an odd count of numbers, expected pairs of x and y"
    )
    short = np.unique(owners[(lengths < 6) & (lengths % 2 == 0)])
    shapes.note(
        "short polygon", short, lambda i: "has a polygon of fewer than 3 points, which is not trained on"
    )


def _check_reach(shapes: Shapes, owners: Ints, rows: Rows, what: str) -> None:
    """Refuse coordinates beyond twice the image: they are in other units and would take unlimited
    memory."""
    limit = 2 * shapes.sizes[owners].max(1) if len(owners) else np.zeros(0)
    far = np.unique(owners[(limit > 0) & (rows.most() > limit)])
    shapes.refuse(what, far, lambda i: f"has {what} out of its image of {shapes.size(i)} pixels")


def _check_runs(shapes: Shapes, places: list[int]) -> None:
    """Check run-length masks: {"size": [height, width], "counts": [...] or text}."""
    values = [shapes.annotations[i]["segmentation"] for i in places]
    listed = [i for i, v in zip(places, values, strict=True) if type(v.get("counts")) is list]
    rows = read_rows([shapes.annotations[i]["segmentation"]["counts"] for i in listed])
    runs = dict(zip(listed, np.split(rows.flat, rows.starts[1:]), strict=True)) if listed else {}
    bad = {listed[i]: f"has counts that are wrong: the list {text}" for i, text in rows.bad.items()}
    for place, value in zip(places, values, strict=True):
        if place not in bad and (said := _run_problem(value, runs.get(place), shapes.sizes[place])):
            bad[place] = said
    shapes.refuse("run-length mask", sorted(bad), lambda i: f"has a run-length mask that {bad[i]}")


def _run_problem(mask: dict[str, Any], runs: Floats | None, size: Ints) -> str:
    """Say what is wrong with a run-length mask, '' for nothing; ``runs`` has a list of counts as
    numbers."""
    width, height = (int(each) for each in size)
    declared = mask.get("size")
    if type(declared) is not list or [*map(type, declared)] != [int, int]:
        return f"has the size {show(declared)}, expected [height, width]"
    if width and declared != [height, width]:
        return f"has the size {declared}, expected [{height}, {width}] (height, width)"
    if runs is None:
        counts = mask.get("counts")
        if type(counts) is not str:
            return f"has the counts {show(counts)}, expected a list or a text"
        decoded = decode_counts(counts)
        if decoded is None:
            return f"has counts that are not compressed run lengths: {show(counts)}"
        runs = decoded
    if (runs < 0).any() or (runs != np.floor(runs)).any():
        return "has a run that is not a whole number from 0 on"
    if (found := int(runs.sum())) != declared[0] * declared[1]:
        return f"has {found} pixels, expected {declared[0] * declared[1]}, height times width"
    return ""


def decode_counts(text: str) -> Floats | None:
    """Decode COCO's compressed text to (n,) run lengths; None if it is not such a text.

    As in rleFrString of COCO's maskApi.c, a character has 5 bits and a bit that says whether more follow;
    from the fourth run on, each is stored as the difference from the run two before.
    """
    codes = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 6:  # 35 bits
        return None
    index = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << (5 * index), starts)
    values = np.where(codes[ends] & 16, values - (1 << (5 * (ends - starts + 1))), values)
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    runs: Floats = values.astype(np.float64)
    return runs


def check_keypoints(shapes: Shapes, uses: Uses) -> None:
    """Check that keypoints are triples of x, y and 0, 1 or 2 (not labelled, hidden, visible)."""
    values = [each.get("keypoints") for each in shapes.annotations]
    if uses.keypoints:
        missing = [i for i, v in enumerate(values) if not v]
        shapes.refuse("no keypoints", missing, lambda i: "has no keypoints")
    there = [i for i, v in enumerate(values) if v]
    rows = read_rows([values[i] for i in there])
    bad = {there[i]: text for i, text in rows.bad.items()}
    wanted = f"{3 * PERSON}, x, y and visibility of {PERSON}" if uses.keypoints else "three for each"
    wrong = rows.lengths != 3 * PERSON if uses.keypoints else rows.lengths % 3 != 0
    for i in np.flatnonzero(wrong).tolist():
        bad.setdefault(there[i], f"have {rows.lengths[i]} numbers, expected {wanted}")
    shapes.refuse("keypoints", sorted(bad), lambda i: f"has keypoints that are wrong: the list {bad[i]}")
    owners = np.array(there, dtype=np.int64)
    seen = _visibility(rows, ~wrong)
    odd = np.unique(np.repeat(owners, rows.lengths)[seen][~np.isin(rows.flat[seen], (0, 1, 2))])
    shapes.refuse("visibility", odd, lambda i: "has a keypoint whose visibility is another than 0, 1 or 2")
    _check_reach(shapes, owners, rows, "keypoints that reach")


def _visibility(rows: Rows, right: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the (total,) mask of the numbers that are a keypoint's third, in valid rows."""
    index = np.arange(len(rows.flat)) - np.repeat(rows.starts, rows.lengths)
    third: NDArray[np.bool_] = (index % 3 == 2) & np.repeat(right, rows.lengths)
    return third
