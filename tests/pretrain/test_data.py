from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.small_pretrain import laid_out, settings
from triplet.errors import KitError
from triplet.images import decode, open_images
from triplet.pretrain import data
from triplet.pretrain.config import Views
from triplet.pretrain.data import ViewPairs, load
from triplet.pretrain.layout import Order, make_layout
from triplet.pretrain.methods import METHODS
from triplet.pretrain.views import view_rng
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
    config = laid_out(group=12, workers=0)
    plain = batches(images, config)
    assert len(plain) == 8
    assert plain[0][0].shape == (12, 2, 3, 32, 32)
    assert plain[0][0].dtype == torch.uint8
    parallel = batches(images, config.model_copy(update={"workers": 2}), start=3)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(plain[3:], parallel, strict=True))


def test_epochs_differ(drawn):
    pairs = ViewPairs(open_images(drawn / "unlabelled"), Views(size=32), seed=0)
    assert np.array_equal(pairs[(0, 3)][0], pairs[(0, 3)][0])
    assert not np.array_equal(pairs[(0, 3)][0], pairs[(1, 3)][0])


@pytest.mark.parametrize("method", ["triplet", "rotation-pred", "relative-loc"])
def test_a_process_gets_the_views_of_its_own_items(drawn, monkeypatch, method):
    """From a later step on, drawn by seed, epoch and image; bytes that are prefetched are counted."""
    images, config = open_images(drawn / "unlabelled"), settings(method, seed=5)
    layout, order, traits = make_layout(config, 2), Order(len(images), config), METHODS[method].TRAITS
    sizes, stream = [], data.stream
    monkeypatch.setattr(data, "stream", lambda *given: sizes.append(given[-1]) or stream(*given))
    for rank in (0, 1):
        passes = [each for step in layout.steps(order, rank, order.steps - 1) for each in step]
        found = list(load(images, layout, order, rank, order.steps - 1, torch.device("cpu"), Stop()))
        for each, (pixels, _) in zip(passes, found, strict=True):
            assert sizes.pop() == pixels.numel()
            for (epoch, index), views in zip(each.items, pixels, strict=True):
                image, rng = decode(images.read(index)), partial(view_rng, 5, epoch, index)
                expected = traits.sample_views(image, config.views, rng, traits.views)
                assert np.array_equal(views.permute(0, 2, 3, 1), expected)


def test_an_unreadable_image_is_replaced_and_named(drawn, tmp_path):
    images = open_images(drawn / "unlabelled")
    for name, content in (("a.jpg", b"not a picture"), ("b.png", images.read(0)[:500])):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "c.png").write_bytes(images.read(1))
    pairs = ViewPairs(open_images(tmp_path), Views(size=32), seed=0)
    views, unreadable = pairs[(0, 0)]
    assert unreadable == [0, 1]
    assert np.array_equal(views, pairs[(0, 2)][0])
    assert pairs[(0, 2)][1] == []


def test_missing_empty_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(KitError, match="no folder or list of images"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(KitError, match="holds no image"):
        open_images(tmp_path)
    for i in range(12):
        (tmp_path / f"{i}.jpg").write_bytes(b"not a picture")
    for workers in (0, 1):
        config = laid_out(group=12, workers=workers)
        with pytest.raises(KitError, match=r"^10 images in a row cannot be read, from \d+\.jpg on$"):
            batches(open_images(tmp_path), config)


def test_the_first_of_many_unreadable_images_is_named(tmp_path):
    for i in range(12):
        (tmp_path / f"{i:02d}.jpg").write_bytes(b"not a picture")
    with pytest.raises(KitError, match=r"^10 images in a row cannot be read, from 07\.jpg on$"):
        ViewPairs(open_images(tmp_path), Views(size=32), seed=0)[(0, 7)]


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
    pairs = ViewPairs(open_images(tmp_path / "wide"), Views(size=32), seed=0)
    with pytest.raises(KitError, match=r"^a\.png has pixels of mode F \(32 bits\), expected 8 or 16 bits"):
        pairs[(0, 0)]
