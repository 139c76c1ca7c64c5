"""What the checker refuses and in which words, what it tolerates, and what it brings into one form."""

import gzip
import json
import lzma
import random
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as masks

from tests.annotations.conftest import HEIGHT, WIDTH, compressed, square, uncompressed
from tests.annotations.mutations import mutate_bytes, mutate_json
from triplet.annotations.coco import check
from triplet.annotations.shapes import Uses, decode_counts
from triplet.errors import KitError

ALL = Uses(masks=True, evaluate=True)
TRAIN = Uses(masks=True, train=True)


def annotation(key, value, place=0):
    """A change of one annotation's value."""

    def change(table):
        table["annotations"][place][key] = value

    return change


def without(name, key, place=0):
    """A change that takes a value away."""

    def change(table):
        del table[name][place][key]

    return change


def entry(name, key, value, place=0):
    """A change of a value in any table."""

    def change(table):
        table[name][place][key] = value

    return change


def run(**values):
    return annotation("segmentation", {**compressed(square(5, 5, 10)), **values})


WRONG = {
    "images": (lambda t: t.pop("images"), "'images' holds nothing, expected a list of objects"),
    "table": (lambda t: t.update(annotations={}), "'annotations' holds {}, expected a list of objects"),
    "row": (lambda t: t["categories"].append(3), r"categories\[2\] is 3, expected an object"),
    "no id": (without("annotations", "id"), r"annotations\[0\] has the id None, expected a whole number"),
    "true id": (entry("images", "id", True), r"images\[0\] has the id True, expected a whole number"),
    "negative id": (
        entry("images", "id", -1),
        r"images\[0\] has the id -1, expected a whole number from 0",
    ),
    "huge id": (annotation("id", 2**53), r"annotations\[0\] has the id 9007199254740992, expected a whole"),
    "two images": (
        entry("images", "id", 1),
        r"images\[0\] and images\[1\] have the same id 1, expected one",
    ),
    "two annotations": (annotation("id", 12), r"annotations\[0\] and annotations\[1\] have the same id 12"),
    "two names": (entry("categories", "name", "bar"), "categories 7 and 2 both have the name 'bar'"),
    "half a character": (entry("categories", "name", "\ud800"), r"category 7 has the name '\\ud800'"),
    "no image": (
        annotation("image_id", 9),
        r"annotation 11 has an image_id that is none \(9\), expected the",
    ),
    "list id": (annotation("image_id", [3]), r"annotation 11 has an image_id that is none \(\[3\]\)"),
    "no category": (
        annotation("category_id", None),
        r"annotation 11 has a category_id that is none \(None\)",
    ),
    "escaping": (
        entry("images", "file_name", "a/../../b"),
        r"images\[0\] .* is not a plain file name or path ins",
    ),
    "absolute": (
        entry("images", "file_name", "/b.png"),
        "'/b.png', which is not a plain file name or path insi",
    ),
    "no name": (
        entry("images", "file_name", 3),
        r"has the file_name 3, which is not text that can name a file",
    ),
    "width": (entry("images", "width", "60"), "image 3 has the width '60', expected pixels"),
    "no height": (without("images", "height"), "image 3 has the height None, expected pixels"),
    "no box": (without("annotations", "bbox"), "annotation 11 has no bbox"),
    "three": (
        annotation("bbox", [1, 2, 3]),
        "annotation 11 has a bbox that has 3 numbers; a bbox is 4 numbers",
    ),
    "text": (
        annotation("bbox", [1, "2", 3, 4]),
        "annotation 11 has a bbox that holds '2', expected numbers",
    ),
    "NaN": (annotation("bbox", [1, float("nan"), 3, 4]), "annotation 11 has a bbox that holds nan"),
    "flag": (annotation("bbox", [1, True, 3, 4]), "annotation 11 has a bbox that holds True"),
    "huge": (annotation("bbox", [1, 10**400, 3, 4]), "annotation 11 has a bbox that holds 1000"),
    "negative": (
        annotation("bbox", [9, 9, -5, 5]),
        r"\[9, 9, -5, 5\], expected a width and a height that are",
    ),
    "outside": (
        annotation("bbox", [70, 9, 5, 5]),
        r"\[70, 9, 5, 5\], which is not inside its image of 60 x 40",
    ),
    "far": (
        annotation("bbox", [9, 9, 500, 5]),
        r"\[9, 9, 500, 5\], which is not inside its image of 60 x 40",
    ),
    "crowd": (annotation("iscrowd", "0"), "annotation 11 has iscrowd '0', expected 0 or 1"),
    "ignore": (
        annotation("ignore", 1),
        "annotation 11 has ignore 1, which Detectron2 does not know; take it",
    ),
    "area": (annotation("area", -4), "annotation 11 has area -4, expected a number from 0 on"),
    "no mask": (annotation("segmentation", []), "annotation 11 has no segmentation"),
    "mask": (
        annotation("segmentation", "x"),
        "has the segmentation 'x', expected a list of polygons or run",
    ),
    "flat": (
        annotation("segmentation", square(1, 1, 5)),
        r"\[1, 1, 6, 1, \.\.\.\], expected a list of polygons",
    ),
    "nested": (
        annotation("segmentation", [[[1, 1], [6, 1], [6, 6]]]),
        r"a polygon that holds \[1, 1\], expect",
    ),
    "odd": (
        annotation("segmentation", [[1, 1, 6, 1, 6, 6, 1]]),
        "a polygon of an odd count of numbers, expec",
    ),
    "point": (
        annotation("segmentation", [[1, 1]]),
        "a first polygon of fewer than 3 points, expected at",
    ),
    "reach": (
        annotation("segmentation", [[1, 1, 6, 1, 6, 1e9]]),
        "a polygon that reaches out of its image",
    ),
    "run size": (
        run(size=[WIDTH, HEIGHT]),
        r"has the size \[60, 40\], expected \[40, 60\] \(height, width\)",
    ),
    "no size": (run(size=None), r"has the size None, expected \[height, width\]"),
    "counts": (run(counts="!"), "has counts that are not compressed run lengths: '!'"),
    "more counts": (run(counts="PPP"), "a run-length mask that has"),
    "pixels": (run(counts=[100, 20]), "has 120 pixels, expected 2400, height times width"),
    "half a run": (run(counts=[2399.5, 0.5]), "has a run that is not a whole number from 0 on"),
    "text in runs": (
        run(counts=[2399, "1"]),
        "has counts that are wrong: the list holds '1', expected numbers",
    ),
    "no counts": (run(counts=None), "has the counts None, expected a list or a text"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_in_one_line(table, write, change, message):
    change(table)
    path = write(table)
    with pytest.raises(KitError, match=message) as caught:
        check(path, ALL)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("annotations", "keypoints"), "annotation 11 has no keypoints"),
        (
            annotation("keypoints", [1, 2, 2] * 16),
            "the list have 48 numbers, expected 51, x, y and visibility",
        ),
        (annotation("keypoints", [1, 2, 3] * 17), "a keypoint whose visibility is another than 0, 1 or 2"),
        (annotation("keypoints", [1, None, 2] * 17), "the list holds None, expected numbers"),
        (
            annotation("keypoints", [1, 1e9, 2] * 17),
            "keypoints that reach out of its image of 60 x 40 pixels",
        ),
        (annotation("num_keypoints", 1e308), r"num_keypoints 1e\+308, expected a number from 0 on"),
    ],
)
def test_keypoints_are_those_of_a_person(people, write, change, message):
    assert check(write(people), Uses(keypoints=True, evaluate=True)).as_it_is
    change(people)
    with pytest.raises(KitError, match=message):
        check(write(people), Uses(keypoints=True, evaluate=True))


def test_the_first_of_each_kind_is_named_and_the_rest_counted(table, write):
    for each in table["annotations"]:
        each["bbox"][2] = -1
    table["annotations"][2]["segmentation"] = [1, 2, 3, 4, 5, 6]
    with pytest.raises(KitError) as caught:
        check(write(table), ALL)
    said = str(caught.value)
    assert "annotation 11 has the bbox [5, 5, -1, 10]" in said
    assert said.count("(and 2 more); ") == 1
    assert "; annotation 13 has the segmentation" in said
    assert "annotation 12" not in said


def test_what_occurs_in_coco_2017_is_accepted_and_counted(table, write):
    """Two boxes of no height, polygons of two points, boxes a pixel too wide, crowds as run lengths."""
    first, _, last = table["annotations"]
    first["bbox"][3] = 0.0
    first["segmentation"].append([1, 2, 3, 4])
    last["bbox"] = [45.0, 0.5, 15.7, 20]
    checked = check(write(table), TRAIN)
    assert checked.as_it_is
    assert check(write(table), ALL).as_it_is
    assert [note.partition(": ")[2] for note in checked.notes] == [
        "annotation 11 has a bbox without area, [5, 5, 10, 0.0], which is not trained on",
        "annotation 11 has a polygon of fewer than 3 points, which is not trained on",
    ]
    last["bbox"] = [45.0, 0.5, 18, 20]
    assert (
        "annotation 13 has the bbox [45.0, 0.5, 18, 20], which is clipped"
        in check(write(table), TRAIN).notes[1]
    )


def test_run_lengths_are_trained_on_as_bitmaps_alone(table, write):
    table["annotations"][0]["segmentation"] = compressed(square(5, 5, 10))
    with pytest.raises(KitError, match=r"annotation 11 .* not a crowd, .*; add INPUT.MASK_FORMAT=bitmask$"):
        check(write(table), TRAIN)
    assert check(write(table), Uses(masks=True, train=True, bitmask=True)).as_it_is
    assert check(write(table), Uses(train=True)).as_it_is
    assert check(write(table), ALL).as_it_is


def test_nothing_to_train_on_or_to_count_is_refused(table, write):
    for each in table["annotations"]:
        each["iscrowd"] = 1
    for uses, what in ((TRAIN, "trained on"), (ALL, "counted")):
        with pytest.raises(KitError, match=f"none of its 3 annotations is {what}: all are crowds"):
            check(write(table), uses)


def test_texts_and_zeros_become_ids_that_both_engines_take(table, write):
    for number, each in enumerate(table["annotations"]):
        each["id"] = number
    checked = check(write(table), ALL)
    assert not checked.as_it_is
    assert [each["id"] for each in checked.content["annotations"]] == [1, 2, 3]
    for image in table["images"]:
        image["id"] = f"img{image['id']}"
    for each in table["annotations"]:
        each["image_id"] = f"img{each['image_id']}"
        each["category_id"] = str(each["category_id"])
    checked = check(write(table), ALL)
    assert checked.image_ids == {1: "img3", 2: "img1"}
    assert checked.category_ids == {}
    assert [each["image_id"] for each in checked.content["annotations"]] == [1, 2, 2]
    assert [each["category_id"] for each in checked.content["annotations"]] == [2, 7, 2]


def test_texts_of_digits_keep_their_numbers(table, write):
    for image in table["images"]:
        image["id"] = f"00{image['id']}"
    for each in table["annotations"]:
        each["image_id"] = f"00{each['image_id']}"
    assert check(write(table)).image_ids == {3: "003", 1: "001"}


def test_what_evaluation_needs_is_filled_in(table, write):
    for each in table["annotations"]:
        del each["area"], each["iscrowd"]
    table["annotations"][1]["segmentation"] = compressed(square(20, 10, 12))
    del table["annotations"][2]["segmentation"]
    checked = check(write(table), Uses(evaluate=True))
    assert [each["area"] for each in checked.content["annotations"]] == [116.0, 144.0, 400.0]
    assert [each["iscrowd"] for each in checked.content["annotations"]] == [0, 0, 0]
    assert check(write(table)).as_it_is, "nothing is needed for training"


def test_equal_numbers_become_those_that_both_engines_read(people, write):
    first, second, third = people["annotations"]
    first.update(num_keypoints=17.0, iscrowd=False)
    second.update(iscrowd=1.0, ignore=0)
    third.update(num_keypoints=-0.0, ignore=None)
    checked = check(write(people), Uses(keypoints=True, evaluate=True))
    assert not checked.as_it_is
    found = [(each["num_keypoints"], each["iscrowd"]) for each in checked.content["annotations"]]
    assert [(type(one), type(other)) for one, other in found] == [(int, int)] * 3
    assert found == [(17, 0), (17, 1), (0, 0)]
    assert ["ignore" in each for each in checked.content["annotations"]] == [False, True, False]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_read(table, write, encoding):
    table["categories"][0]["name"] = "schräg"
    checked = check(write(json.dumps(table, ensure_ascii=False).encode(encoding)))
    assert checked.content == table
    assert not checked.as_it_is


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"images": "caf\xe9"}',
            r"not text in UTF-8 or UTF-16 \(byte 0xe9 at 15\); .*iconv -f LATIN1 -t UTF-8",
        ),
        (b"", "not in COCO's annotation format: is not JSON"),
        (b"[" * 100_000, "not in COCO's annotation format: is nested more deeply"),
        (b'{"images": [%s]}' % (b"1" * 5000), "is not JSON .a number of more than 4300 digits"),
        (b"[]", r"it holds \[\], expected an object with"),
        (gzip.compress(b"{}", mtime=0), "is compressed, expected JSON; unpack it first"),
        (lzma.compress(b"{}"), "is compressed, expected JSON; unpack it first"),
    ],
)
def test_what_is_no_annotation_file_is_named(write, content, message):
    with pytest.raises(KitError, match=message) as caught:
        check(write(content))
    assert "\n" not in str(caught.value)


@given(pixels=st.lists(st.booleans(), min_size=60, max_size=60))
def test_compressed_run_lengths_are_read_as_coco_writes_them(pixels):
    mask = masks.encode(np.asfortranarray(np.array(pixels, dtype=np.uint8).reshape(12, 5)))
    expected = uncompressed({**mask, "counts": mask["counts"].decode()})["counts"]
    assert decode_counts(mask["counts"].decode()).tolist() == expected


def test_long_runs_are_read_too():
    mask = np.zeros((3000, 2000), dtype=np.uint8, order="F")
    mask[17:2500, 1000:1003] = 1
    encoded = masks.encode(mask)
    assert decode_counts(encoded["counts"].decode()).sum() == mask.size
    assert decode_counts(encoded["counts"].decode())[1::2].sum() == mask.sum()


@pytest.mark.parametrize("uses", [TRAIN, ALL, Uses(keypoints=True, train=True)])
def test_mutations_give_a_result_or_one_line(people, write, uses):
    """300 mutations of values and of bytes each: no traceback, no second line, no waiting."""
    began, results, refusals = time.monotonic(), 0, []
    for seed in range(300):
        draw = random.Random(seed)
        plain = json.dumps(people).encode()
        spoilt = (
            mutate_bytes(plain, draw) if seed % 4 == 0 else json.dumps(mutate_json(people, draw)).encode()
        )
        try:
            check(write(spoilt), uses)
            results += 1
        except KitError as error:
            refusals.append(str(error))
    assert results > 20
    assert len(refusals) > 20
    assert [text for text in refusals if not text.isprintable() or len(text) > 1200] == []
    assert time.monotonic() - began < 30


def test_an_image_of_more_pixels_than_are_decoded_is_refused(table, write):
    """Its masks would have as many."""
    table["images"][0] |= {"width": 20_000, "height": 20_000}
    with pytest.raises(KitError, match="has 20000 x 20000 pixels, expected at most 178956970"):
        check(write(table))
