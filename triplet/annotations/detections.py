"""Detections in COCO's result format, checked before an engine written in C reads them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from triplet.annotations.findings import Findings, show
from triplet.annotations.numbers import Ints, read_rows
from triplet.annotations.shapes import PERSON
from triplet.errors import KitError

AT_ONCE = 4096
"""Number of masks to check together, few enough for a processor's cache."""
LONGEST = 7
"""Most characters of one run: 35 bits."""
Say = Callable[[int], str]


def check(detections: Any, sizes: Mapping[Any, tuple[int, int]], categories: set[Any], task: str) -> None:
    """Refuse detections that an engine would misread or crash on.

    Args:
        detections: detections from JSON, in COCO's result format.
        sizes: width and height in pixels of the ground truth's images, by id.
        categories: ids of the ground truth's categories.
        task: bbox, segm or keypoints.

    Raises:
        KitError: the message has the first error of each kind, with what was found and expected.
    """
    if type(detections) is not list or not detections or {*map(type, detections)} != {dict}:
        raise KitError(f"detections are {show(detections)}, expected a list of objects, at least one")
    problems = Findings()

    def refuse(kind: str, places: Sequence[int] | Ints, say: Say) -> None:
        if len(places):
            first = int(places[0])
            problems.add(kind, f"detections[{first}] {say(first)}", len(places))

    def column(key: str) -> list[Any]:
        return [each.get(key) for each in detections]

    for key, known in (("image_id", sizes.keys()), ("category_id", categories)):
        ids = column(key)
        odd = [i for i, id in enumerate(ids) if type(id) not in (int, str) or id not in known]
        refuse(key, odd, lambda i, key=key, ids=ids: f"has the {key} {show(ids[i])}, not annotated")  # type: ignore[misc]
    _check_scores(column("score"), refuse)
    problems.refuse()
    if task == "bbox":
        _check_boxes(column("bbox"), refuse)
    elif task == "segm":
        _check_masks(column("segmentation"), [sizes[id] for id in column("image_id")], refuse)
    else:
        if any(boxes := column("bbox")):
            _check_boxes(boxes, refuse)
        _check_keypoints(column("keypoints"), refuse)
    problems.refuse()


Refuse = Callable[[str, Sequence[int] | Ints, Say], None]


def _check_scores(scores: list[Any], refuse: Refuse) -> None:
    if read_rows([scores]).bad:
        odd = list(read_rows([[each] for each in scores]).bad)
        refuse("score", odd, lambda i: f"has the score {show(scores[i])}, expected a number")


def _check_boxes(boxes: list[Any], refuse: Refuse) -> None:
    rows = read_rows(boxes)
    wrong = np.flatnonzero(rows.lengths != 4)
    refuse("box", wrong, lambda i: f"has the bbox {show(boxes[i])}, expected x, y, width and height")
    if not len(wrong):
        negative = np.flatnonzero((rows.flat.reshape(-1, 4)[:, 2:] < 0).any(1))
        refuse(
            "negative box",
            negative,
            lambda i: f"has the bbox {show(boxes[i])}, expected a width and a height from 0 on",
        )


def _check_keypoints(keypoints: list[Any], refuse: Refuse) -> None:
    wrong = np.flatnonzero(read_rows(keypoints).lengths != 3 * PERSON)
    wanted = f"{3 * PERSON} numbers, x, y and visibility of {PERSON}"
    refuse("keypoints", wrong, lambda i: f"has the keypoints {show(keypoints[i])}, expected {wanted}")


def _check_masks(values: list[Any], sizes: Sequence[tuple[int, int]], refuse: Refuse) -> None:
    odd = [
        i
        for i, value in enumerate(values)
        if type(value) is not dict or type(value.get("counts")) is not str
    ]
    refuse(
        "mask", odd, lambda i: f"has the segmentation {show(values[i])}, expected compressed run lengths"
    )
    if odd:
        return
    other = [i for i, (value, size) in enumerate(zip(values, sizes, strict=True)) if not _fits(value, size)]
    refuse(
        "size",
        other,
        lambda i: (
            f"has a mask of the size {show(values[i].get('size'))}, expected {[*sizes[i][::-1]]} "
            "(height, width)"
        ),
    )
    pixels = np.array([width * height for width, height in sizes], dtype=np.float64)
    for start in range(0, len(values), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        totals = count_pixels([value["counts"] for value in values[some]])
        wrong = np.flatnonzero(totals != pixels[some]) + start
        refuse(
            "run lengths",
            wrong,
            lambda i, start=start, totals=totals: (  # type: ignore[misc]
                f"has a mask of {totals[i - start]:.0f} pixels, expected {pixels[i]:.0f}"
                if totals[i - start] >= 0
                else f"has counts that are not compressed run lengths: {show(values[i]['counts'])}"
            ),
        )


def _fits(mask: Mapping[str, Any], size: tuple[int, int]) -> bool:
    declared = mask.get("size")
    return type(declared) is list and [*map(type, declared)] == [int, int] and declared == [*size[::-1]]


def count_pixels(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return (n,) the sum of the run lengths of each of COCO's compressed texts; -1 if it is invalid.

    This decodes like ``shapes.decode_counts``, but all texts at once.
    """
    encoded = [text.encode("utf-8", "replace") for text in texts]
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    codes = np.frombuffer(b"".join(encoded), dtype=np.uint8) - np.uint8(48)  # smaller codes wrap around
    owners = np.repeat(np.arange(len(texts)), lengths)
    bad = lengths == 0
    bad[owners[codes > 63]] = True
    bad[~bad] |= codes[np.cumsum(lengths)[~bad] - 1] & 32 != 0
    fine = ~bad[owners]
    codes, owners = codes[fine], owners[fine]
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    long = ends - starts >= LONGEST
    bad[owners[ends[long]]] = True
    shifts = np.minimum(np.arange(len(codes)) - np.repeat(starts, ends - starts + 1), LONGEST)
    parts = (codes & 31).astype(np.int64) << (5 * shifts)
    values = np.add.reduceat(parts, starts) if len(ends) else parts
    values = np.where(
        codes[ends] & 16, values - (1 << (5 * np.minimum(ends - starts + 1, LONGEST))), values
    )
    of = owners[ends]
    runs = _add_up(values, of)
    bad[of[runs < 0]] = True
    totals = np.bincount(of, weights=runs, minlength=len(texts))
    return np.where(bad, -1.0, totals)


def _add_up(values: Ints, owners: Ints) -> Ints:
    """Return (m,) runs from differences: from a mask's fourth run on, each is relative to the one two
    before."""
    begins = np.flatnonzero(np.diff(owners, prepend=-1))
    place = np.arange(len(values)) - np.repeat(begins, np.diff(begins, append=len(values)))
    runs = values.copy()
    for chosen in (place % 2 == 1, (place % 2 == 0) & (place > 0)):
        some, of = values[chosen], owners[chosen]
        sums = np.cumsum(some)
        firsts = np.flatnonzero(np.diff(of, prepend=-1))
        before = (sums - some)[firsts]
        runs[chosen] = sums - np.repeat(before, np.diff(firsts, append=len(of)))
    return runs
