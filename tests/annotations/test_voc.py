"""VOC's XML as tools write it, and what is refused."""

import random

import pytest

from tests.annotations.mutations import mutate_bytes
from triplet.annotations.voc import VocObject, check, read_list
from triplet.errors import KitError

OBJECT = (
    "<object><name>cat</name><pose>Left</pose><difficult>1</difficult><bndbox><xmin>8.5</xmin>"
    "<ymin>12</ymin><xmax>35.25</xmax><ymax>40</ymax></bndbox><part><name>head</name><bndbox>"
    "<xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"
)
SIZE = "<size><width>60</width><height>40</height><depth>3</depth></size>"


def page(inside=SIZE + OBJECT):
    return f"<annotation><filename>a.jpg</filename>{inside}</annotation>"


def read(folder, content, name="a"):
    (folder / f"{name}.xml").write_bytes(content if isinstance(content, bytes) else content.encode())
    return check(folder, [name], ["cat", "dog"])[name]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_vocs_decimals_and_gaps_are_read_as_its_toolkit_does(tmp_path, encoding):
    found = read(tmp_path, page().encode(encoding))
    assert (found.width, found.height) == (60, 40)
    assert found.objects == [VocObject("cat", (8.5, 12.0, 35.25, 40.0), True)]
    for said in ("", "<difficult/>", "<difficult>0</difficult>"):
        text = OBJECT.replace("<difficult>1</difficult>", said).replace("<pose>Left</pose>", "")
        assert read(tmp_path, page(SIZE + text).encode(encoding)).objects[0].difficult is False


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</annotation>", "", r"a\.xml: an annotation is damaged or not VOC's: it cannot be read"),
        (SIZE, "", r"a\.xml has no size/width: an annotation is damaged or not VOC's"),
        ("<width>60", "<width>60.5", r"a\.xml has the width 60\.5, expected pixels"),
        ("<height>40", "<height>x", r"a\.xml has the size/height 'x', expected a number"),
        ("<name>cat", "<name>cow", r"an object of the class 'cow', which is not one of VOC's 2"),
        ("<xmin>8.5</xmin>", "", "has no bndbox/xmin"),
        ("<xmin>8.5", "<xmin>nan", "has the bndbox/xmin 'nan', expected a number"),
        ("<xmin>8.5", "<xmin>38", "a box whose ends are exchanged: xmin 38, ymin 12, xmax 35.25, ymax 40"),
        (
            "<xmax>35.25",
            "<xmax>999",
            "a box that reaches out of its 60 x 40 pixels: xmin 8.5, ymin 12, xmax 999",
        ),
        ("<ymin>12", "<ymin>-900", "a box that reaches out of its 60 x 40 pixels"),
        ("<difficult>1", "<difficult>2", "has the difficult 2, expected 0 or 1"),
        (OBJECT, "", "none of the 1 annotations has an object"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path, old, new, message):
    with pytest.raises(KitError, match=message) as caught:
        read(tmp_path, page().replace(old, new))
    assert "\n" not in str(caught.value)


def test_the_first_of_each_kind_is_named_and_the_rest_counted(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.xml").write_text(page().replace("<name>cat", "<name>cow"))
    with pytest.raises(KitError, match=r"a\.xml has an object of the class 'cow'.* \(and 2 more\)$"):
        check(tmp_path, ["a", "b", "c"], ["cat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no image"),
        (b"a\nb\na\n", "lists 'a' more than once"),
        (b"a 1\nb -1\n", "has the line 'a 1', expected the name of an image"),
        (b"../a\n", r"has the line '\.\./a'"),
        (b"caf\xe9\n", "is not a list of names in UTF-8: byte 3 is not; save it as UTF-8"),
    ],
)
def test_lists_of_images_are_checked(tmp_path, content, message):
    path = tmp_path / "test.txt"
    for written in (b"a\n\nb\n", b"\xef\xbb\xbfa\r\nb"):
        path.write_bytes(written)
        assert read_list(path) == ["a", "b"]
    path.write_bytes(content)
    with pytest.raises(KitError, match=message):
        read_list(path)


def test_mutations_give_a_result_or_one_line(tmp_path):
    results, refusals = 0, []
    for seed in range(300):
        try:
            read(tmp_path, mutate_bytes(page().encode(), random.Random(seed)))
            results += 1
        except KitError as error:
            refusals.append(str(error))
    assert results > 20
    assert len(refusals) > 20
    assert [text for text in refusals if not text.isprintable()] == []


def test_entities_within_entities_come_to_an_end(tmp_path):
    """A billion laughs."""
    levels = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    bomb = f'<!DOCTYPE annotation [<!ENTITY e0 "ha">{levels}]>' + page().replace("a.jpg", "&e11;")
    with pytest.raises(KitError, match="an annotation is damaged or not VOC's"):
        read(tmp_path, bomb)
