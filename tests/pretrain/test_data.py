import numpy as np
import pytest
import torch
from PIL import Image

from tests.pretrain.test_layout import settings
from triplet.errors import KitError
from triplet.images import open_images
from triplet.pretrain.config import Views
from triplet.pretrain.data import ViewPairs, load
from triplet.pretrain.layout import Order, make_layout
from triplet.signals import Stop


def batches(images, config, start=0):
    return list(
        load(
            images,
            make_layout(config, 1),
            Order(len(images), config),
            0,
            start,
            torch.device("cpu"),
            Stop(),
        )
    )


def test_loader_gives_pairs_of_views_in_order(drawn):
    images = open_images(drawn / "unlabelled")
    config = settings(group=12, workers=0)
    plain = batches(images, config)
    assert len(plain) == 8
    assert plain[0][0].shape == (12, 2, 3, 32, 32)
    assert plain[0][0].dtype == torch.uint8
    parallel = batches(images, config.model_copy(update={"workers": 2}), start=3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain[3:], parallel, strict=True))


def test_epochs_differ(drawn):
    data = ViewPairs(open_images(drawn / "unlabelled"), Views(size=32), seed=0)
    assert np.array_equal(data[(0, 3)][0], data[(0, 3)][0])
    assert not np.array_equal(data[(0, 3)][0], data[(1, 3)][0])


def test_an_unreadable_image_is_replaced_and_named(drawn, tmp_path):
    images = open_images(drawn / "unlabelled")
    for name, content in (("a.jpg", b"not a picture"), ("b.png", images.read(0)[:500])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.png").write_bytes(images.read(1))
    data = ViewPairs(open_images(tmp_path), Views(size=32), seed=0)
    views, unreadable = data[(0, 0)]
    assert unreadable == [0, 1]
    assert np.array_equal(views, data[(0, 2)][0])
    assert data[(0, 2)][1] == []


def test_missing_empty_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(KitError, match="no folder or list of images"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(KitError, match="holds no image"):
        open_images(tmp_path)
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"not a picture")
    for workers in (0, 1):
        config = settings(group=12, workers=workers)
        with pytest.raises(KitError, match=r"^10 images in a row cannot be read, from \d+\.jpg on$"):
            batches(open_images(tmp_path), config)


def test_16_bits_are_trained_on_as_8_and_floats_are_refused(tmp_path):
    gray = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)
    for folder, pixels in (("narrow", gray), ("wide", gray.astype(np.uint16) * 257)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    narrow, wide = (
        ViewPairs(open_images(tmp_path / folder), Views(size=32), seed=0)[(0, 0)][0]
        for folder in ("narrow", "wide")
    )
    assert np.array_equal(narrow, wide)
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "wide" / "a.png", "TIFF")
    data = ViewPairs(open_images(tmp_path / "wide"), Views(size=32), seed=0)
    with pytest.raises(KitError, match=r"^a\.png has pixels of mode F \(32 bits\), expected 8 or 16 bits"):
        data[(0, 0)]
