"""Annotated images that are missing, damaged, turned, of another size, or of other pixels."""

import random

import numpy as np
import pytest
from PIL import Image

from tests.annotations.mutations import mutate_bytes
from triplet.annotations.findings import Findings
from triplet.annotations.image_files import AnnotatedImage, check_images, missing
from triplet.errors import KitError

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def picture(path, turned=1, pixels=NOISE, **options):
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.fromarray(pixels).save(path, exif=exif.tobytes(), **options)
    return AnnotatedImage(str(path), 60, 40)


def said(*images, total=None):
    problems, notes = check_images(images, total)
    return problems.lines(), notes.lines()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_sizes_are_those_that_detectron2_reads(tmp_path, suffix):
    """It turns images by their EXIF orientation."""
    path = tmp_path / f"a.{suffix}"
    assert said(picture(path), picture(path, turned=3)) == ([], [])
    high = picture(path, turned=6)
    assert said(AnnotatedImage(high.path, 40, 60)) == ([], [])
    message = "has 40 x 60 pixels as its EXIF orientation 6 turns it, its annotations say 60 x 40"
    assert said(high) == ([f"{path} {message}"], [])
    assert said(AnnotatedImage(high.path, 60, 40, used=False)) == ([], []), "not trained on"


@pytest.mark.parametrize("total", [1, 2000], ids=["decoded", "by the ends"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_images_that_are_cut_short_are_named(tmp_path, suffix, total):
    path = tmp_path / f"a.{suffix}"
    image = picture(path)
    assert said(image, total=total) == ([], [])
    for part in (0, 10, 200, path.stat().st_size // 2):
        picture(path)
        path.write_bytes(path.read_bytes()[:part])
        (line,), _ = said(image, total=total)
        assert line.startswith(f"{path} or its annotations cannot be read (")
        assert line.endswith("; mend it")


def test_bytes_after_the_end_do_no_harm(tmp_path):
    image = picture(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + b"\0" * 50)
    assert said(image, total=2000) == ([], [])


def test_pixels_of_16_bits_are_said_and_of_32_refused(tmp_path):
    wide = picture(tmp_path / "a.png", pixels=NOISE[..., 0].astype(np.uint16) * 257)
    text = f"{tmp_path}/a.png has pixels of 16 bits (mode I;16), scaled to 8 (and 1 more)"
    assert said(wide, wide) == ([], [text])
    for dtype, mode in ((np.float32, "F"), (np.int32, "I")):
        image = picture(tmp_path / "a.tif", pixels=NOISE[..., 0].astype(dtype))
        (line,), _ = said(image)
        assert line == (
            f"{tmp_path}/a.tif has pixels of mode {mode} (32 bits), expected 8 or 16 bits; convert it"
        )


def test_what_processes_find_is_counted_together(tmp_path):
    (tmp_path / "a.png").write_text("none")
    broken = AnnotatedImage(str(tmp_path / "a.png"), 60, 40)
    together = Findings()
    together.merge(check_images([broken] * count)[0] for count in (1, 0, 2))
    with pytest.raises(KitError, match=r"a\.png or its annotations .*; mend it \(and 2 more\)$"):
        together.refuse()


def test_names_with_folders_are_found(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/b.png", "c.png"):
        (tmp_path / name).touch()
    assert missing(tmp_path, ["a/b.png", "c.png"]) == []
    assert missing(tmp_path, ["b.png", "a/b.png", "a/c.png"]) == ["b.png", "a/c.png"]
    assert missing(tmp_path, [f"a/{'x' * 999}"]) == [f"a/{'x' * 999}"]
    assert missing(tmp_path / "none", ["c.png"]) == ["c.png"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_mutations_give_a_result_or_one_line(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    image = picture(path)
    whole = path.read_bytes()
    refused = 0
    for seed in range(100):
        path.write_bytes(mutate_bytes(whole, random.Random(seed)))
        lines, _ = said(image)
        assert all(line.isprintable() for line in lines)
        refused += len(lines)
    assert 20 < refused <= 100
