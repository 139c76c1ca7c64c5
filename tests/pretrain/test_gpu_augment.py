"""Against PIL, whose pixels these are: every bound here is equality, measured and kept."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from triplet.pretrain import gpu_augment as module
from triplet.pretrain.config import Views
from triplet.pretrain.gpu_augment import box_weights, gpu_augment
from triplet.pretrain.views import BACKENDS, AugmentationParams, sample_augmentation, view_rng


def draws(**fields):
    plain = dict(box=(0, 0, 1, 1), flip=False, jitter=(), grayscale=False, blur_radius=None, solarize=False)
    return AugmentationParams(**{**plain, **fields})


def noise(width=64, height=48, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def smooth(width=64, height=48, seed=0):
    """As photographs are: neighbours are alike."""
    return noise(width // 8, height // 8, seed).resize((width, height), Image.Resampling.BICUBIC)


def batch(*images):
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def by_pil(images, each):
    return batch(*(BACKENDS["pil"](image, d) for image, d in zip(images, each, strict=True)))


def jitter(*pairs):
    return {"jitter": pairs}


ALONE = [
    *(jitter(("brightness", f)) for f in (0.0, 0.63, 1.0, 1.37)),
    *(jitter(("contrast", f)) for f in (0.0, 0.63, 1.0, 1.37)),
    *(jitter(("saturation", f)) for f in (0.0, 0.81, 1.0, 1.19)),
    *(jitter(("hue", f)) for f in (-0.5, -0.09, -0.001, 0.0, 0.001, 0.09, 0.5)),
    {"grayscale": True},
    *({"blur_radius": r} for r in (0.1, 0.5, 1.0, 1.37, 2.0, 7.3, 40.0)),
    {"solarize": True},
]


@pytest.mark.parametrize("fields", ALONE, ids=str)
@pytest.mark.parametrize("kind", [smooth, noise])
def test_each_operation_is_pils(kind, fields):
    images = [kind(seed=seed) for seed in (0, 1)]
    each = [draws(**fields)] * 2
    assert torch.equal(gpu_augment(batch(*images), each), by_pil(images, each))


def test_hue_is_pils_all_over_the_colours():
    """An eighth of all of them, in a lattice, at a turn that carries many around the circle."""
    every = np.arange(0, 256, 2, dtype=np.uint8)
    lattice = np.stack(np.meshgrid(every, every, every), axis=-1).reshape(2048, 1024, 3)
    image, each = Image.fromarray(lattice), [draws(**jitter(("hue", 0.1)))]
    assert torch.equal(gpu_augment(batch(image), each), by_pil([image], each))


@given(radius=st.floats(0.1, 2.0), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_blur_is_pils_at_any_radius(radius, seed):
    image = noise(24, 17, seed)
    expected = batch(image.filter(ImageFilter.GaussianBlur(radius)))
    assert torch.equal(gpu_augment(batch(image), [draws(blur_radius=radius)]), expected)


@given(radius=st.floats(0.1, 20.0))
def test_three_boxes_have_the_gaussians_deviation(radius):
    (weights,) = box_weights([radius]).astype(np.float64) / 2**24
    place = np.arange(len(weights)) - len(weights) // 2
    assert weights.sum() == pytest.approx(1, abs=1e-6)
    assert weights.min() >= 0
    assert np.sqrt(module.BLUR_PASSES * (weights * place**2).sum()) == pytest.approx(radius, rel=1e-3)


def test_each_sample_has_its_own_order():
    """All 24 orders of one jitter in one batch: each is PIL's, and most differ."""
    pairs = (("brightness", 1.4), ("contrast", 0.6), ("saturation", 1.2), ("hue", 0.1))
    each = [draws(jitter=order) for order in itertools.permutations(pairs)]
    images = [smooth()] * len(each)
    found = gpu_augment(batch(*images), each)
    assert torch.equal(found, by_pil(images, each))
    assert len({view.numpy().tobytes() for view in found}) > 12


def test_whole_recipe_is_pils():
    """So mean, deviation and histogram are PIL's too."""
    images = [(smooth if i % 2 else noise)(seed=i) for i in range(200)]
    each = [
        sample_augmentation(Views(), (64, 48), i // 2 % 2, view_rng(0, 0, i, i // 2 % 2))
        for i in range(200)
    ]
    assert torch.equal(gpu_augment(batch(*images), each), by_pil(images, each))


@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), memory=st.sampled_from(["chw", "hwc"]))
@settings(max_examples=20, deadline=None)
def test_a_batch_is_its_views_one_by_one(seed, count, memory):
    """Whatever stands beside a view, in any order and memory layout; and the input is left as it was."""
    pixels = batch(*(noise(9, 7, seed + i) for i in range(count)))
    if memory == "hwc":
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    before = pixels.clone()
    each = [sample_augmentation(Views(), (9, 7), i % 2, view_rng(seed, 0, i, i % 2)) for i in range(count)]
    together = gpu_augment(pixels, each)
    assert torch.equal(pixels, before)
    alone = torch.cat([gpu_augment(pixels[i : i + 1], each[i : i + 1]) for i in range(count)])
    assert torch.equal(together, alone)
    assert torch.equal(gpu_augment(pixels.flip(0), each[::-1]).flip(0), together)


@given(seed=st.integers(0, 10_000), order=st.permutations(["brightness", "contrast", "saturation"]))
@settings(max_examples=20, deadline=None)
def test_neutral_factors_change_nothing(seed, order):
    pixels = batch(noise(16, 16, seed))
    assert torch.equal(gpu_augment(pixels, [draws(jitter=tuple((name, 1.0) for name in order))]), pixels)
    assert torch.equal(gpu_augment(pixels, [draws()]), pixels)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_laws(seed):
    pixels = batch(noise(16, 16, seed))
    gray = gpu_augment(pixels, [draws(grayscale=True)])
    assert torch.equal(gray[:, 0], gray[:, 1])
    assert torch.equal(gray[:, 0], gray[:, 2])
    assert torch.equal(gpu_augment(gray, [draws(grayscale=True)]), gray)  # idempotent
    for name in ("saturation", "hue"):  # gray has neither
        assert torch.equal(gpu_augment(gray, [draws(**jitter((name, 0.3)))]), gray)
    assert torch.equal(gpu_augment(pixels, [draws(**jitter(("saturation", 0.0)))]), gray)
    assert gpu_augment(pixels, [draws(solarize=True)]).max() < 128


def test_degenerate_batches():
    assert gpu_augment(torch.empty(0, 3, 5, 7, dtype=torch.uint8), []).shape == (0, 3, 5, 7)
    everything = [
        draws(
            jitter=(("hue", 0.1), ("contrast", 1.3), ("saturation", 0.7), ("brightness", 0.8)),
            grayscale=True,
            blur_radius=1.5,
            solarize=True,
        )
    ]
    for image in (noise(1, 1), noise(1, 9), Image.new("RGB", (5, 5)), Image.new("RGB", (5, 5), "white")):
        assert torch.equal(gpu_augment(batch(image), everything), by_pil([image], everything))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_and_the_host_does_not_wait():
    pixels = batch(*(noise(64, 48, i) for i in range(64)))
    each = [sample_augmentation(Views(), (64, 48), i % 2, view_rng(0, 0, i, i % 2)) for i in range(64)]
    there = pixels.cuda()
    first = gpu_augment(there, each)  # makes the colour tables
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = gpu_augment(there, each)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first.cpu(), gpu_augment(pixels, each))
    assert torch.equal(first, second)
