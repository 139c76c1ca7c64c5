import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from torchvision.transforms import v2

from triplet.pretrain.config import ResolutionRange, Views
from triplet.pretrain.views import (
    AugmentationParams,
    centre_view,
    draw_resolutions,
    normalize,
    render_view,
    sample_augmentation,
    view_rng,
)

PLAIN = AugmentationParams(
    box=(0, 0, 64, 48), flip=False, jitter=(), grayscale=False, blur_radius=None, solarize=False
)


def image(width=64, height=48):
    pixels = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def change(**fields):
    return AugmentationParams(**{**PLAIN.__dict__, **fields})


def test_crop_and_resize_are_torchvisions():
    draws = change(box=(10, 5, 40, 30))
    expected = v2.functional.resized_crop(image(), 5, 10, 30, 40, [32, 32], v2.InterpolationMode.BICUBIC)
    for backend in ("pil", "opencv"):
        assert np.array_equal(render_view(image(), draws, 32, backend), np.asarray(expected))


@pytest.mark.parametrize(
    ("fields", "reference"),
    [
        ({"flip": True}, v2.functional.horizontal_flip),
        ({"grayscale": True}, lambda i: v2.functional.rgb_to_grayscale(i, 3)),
        ({"blur_radius": 1.3}, lambda i: i.filter(ImageFilter.GaussianBlur(1.3))),
        ({"solarize": True}, lambda i: i.point(lambda p: p if p < 128 else 255 - p)),
        ({"jitter": (("hue", 0.07),)}, lambda i: v2.functional.adjust_hue(i, 0.07)),
        (
            {"jitter": (("contrast", 1.2), ("brightness", 0.7))},
            lambda i: v2.functional.adjust_brightness(v2.functional.adjust_contrast(i, 1.2), 0.7),
        ),
    ],
)
def test_each_transform_is_its_reference(fields, reference):
    base = image().resize((32, 32), Image.Resampling.BICUBIC)
    ours = render_view(image(), change(**fields), 32, "pil")
    assert np.array_equal(ours, np.asarray(reference(base)))


# Fields -> the largest and the mean absolute difference of the opencv backend from PIL, in levels of 255.
TOLERANCES = [
    ({"flip": True}, 0, 0),
    ({"jitter": (("brightness", 1.37),)}, 0, 0),
    ({"jitter": (("brightness", 0.63),)}, 0, 0),
    ({"jitter": (("contrast", 1.37),)}, 0, 0),
    ({"jitter": (("contrast", 0.63),)}, 0, 0),
    ({"jitter": (("saturation", 1.19),)}, 1, 0.1),
    ({"jitter": (("saturation", 0.81),)}, 1, 0.1),
    ({"jitter": (("hue", 0.09),)}, 16, 1.2),  # PIL rounds hue and saturation to 8 bits in another way
    ({"jitter": (("hue", -0.09),)}, 16, 1.2),
    ({"jitter": (("hue", 0.0),)}, 16, 1.2),
    ({"grayscale": True}, 1, 0.01),
    ({"blur_radius": 0.1}, 0, 0),
    # PIL approximates the Gaussian by three boxes and repeats the border after each: 4 levels inside.
    ({"blur_radius": 1.0}, 8, 0.8),
    ({"blur_radius": 2.0}, 24, 1.2),
    ({"solarize": True}, 0, 0),
]


@pytest.mark.parametrize(("fields", "largest", "mean"), TOLERANCES)
def test_opencv_differs_from_pil_by_no_more_than_stated(fields, largest, mean):
    photo = image(500, 375)
    pil, ours = (
        render_view(photo, change(box=(50, 40, 300, 250), **fields), 224, backend).astype(int)
        for backend in ("pil", "opencv")
    )
    difference = np.abs(pil - ours)
    assert difference.max() <= largest
    assert difference.mean() <= mean
    if largest:
        assert difference.max() > 0  # the bound is there for a reason


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_neutral_factors_change_nothing(seed):
    """Each operation is the identity at its neutral factor, hue but for its rounding."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    plain = render_view(noise, change(box=(0, 0, 16, 16)), 16)
    for name in ("brightness", "contrast", "saturation"):
        for backend in ("pil", "opencv"):
            view = render_view(noise, change(box=(0, 0, 16, 16), jitter=((name, 1.0),)), 16, backend)
            assert np.array_equal(view, plain), (name, backend)


def test_both_backends_have_the_same_statistics():
    """All transforms together, over many draws: mean, deviation, and distance of the histograms."""
    photo = image(500, 375)
    both = {"pil": [], "opencv": []}
    for i in range(120):
        draws = sample_augmentation(Views(), photo.size, i % 2, view_rng(0, 0, i, i % 2))
        for backend, views in both.items():
            views.append(render_view(photo, draws, 112, backend))
    pil, ours = (np.stack(views).astype(float) for views in both.values())
    assert ours.mean((0, 1, 2)) == pytest.approx(pil.mean((0, 1, 2)), abs=0.4)
    assert ours.std((0, 1, 2)) == pytest.approx(pil.std((0, 1, 2)), abs=0.4)
    one, other = (np.histogram(v, bins=256, range=(0, 256))[0] / v.size for v in (pil, ours))
    assert np.abs(one - other).sum() / 2 < 0.02  # total variation
    assert np.abs(np.cumsum(one) - np.cumsum(other)).sum() < 0.4  # Wasserstein distance, in levels


def test_draws_depend_on_seed_epoch_index_and_view_alone():
    def draws(*key):
        return sample_augmentation(Views(), (64, 48), key[3], view_rng(*key))

    keys = [(s, e, i, v) for s in (0, 1) for e in (0, 1) for i in (0, 1) for v in (0, 1)]
    assert [draws(*k) for k in keys] == [draws(*k) for k in keys]
    assert len({draws(*k) for k in keys}) == len(keys)


def test_draws_have_the_recipes_distribution():
    sample = [
        sample_augmentation(Views(), (500, 375), i % 2, view_rng(0, 0, i, i % 2)) for i in range(4000)
    ]
    first, second = sample[::2], sample[1::2]

    def share(draws, field):
        return np.mean([bool(getattr(d, field)) for d in draws])

    assert share(sample, "flip") == pytest.approx(0.5, abs=0.03)
    assert share(sample, "jitter") == pytest.approx(0.8, abs=0.03)
    assert share(sample, "grayscale") == pytest.approx(0.2, abs=0.03)
    assert share(first, "blur_radius") == 1
    assert share(second, "blur_radius") == pytest.approx(0.1, abs=0.03)
    assert share(first, "solarize") == 0
    assert share(second, "solarize") == pytest.approx(0.2, abs=0.03)
    radii = [d.blur_radius for d in first]
    assert (min(radii), max(radii)) == pytest.approx((0.1, 2.0), abs=0.02)
    factors = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), None)
    for name in factors:
        values = [v for d in sample for n, v in d.jitter if n == name]
        low, high = {"hue": (-0.1, 0.1), "saturation": (0.8, 1.2)}.get(name, (0.6, 1.4))
        assert (min(values), max(values)) == pytest.approx((low, high), abs=0.01)
        first_places = np.mean([d.jitter[0][0] == name for d in sample if d.jitter])
        assert first_places == pytest.approx(0.25, abs=0.03)


def test_crops_have_torchvisions_distribution():
    def moments(boxes):
        left, top, width, height = np.array(boxes, dtype=float).T
        return np.array([(width * height).mean(), np.log(width / height).std(), left.mean(), top.mean()])

    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(224)
    theirs, pixels = [], image(500, 375)
    for _ in range(4000):
        p = crop.make_params([pixels])
        theirs.append((p["left"], p["top"], p["width"], p["height"]))
    ours = [sample_augmentation(Views(), (500, 375), 0, view_rng(1, 0, i, 0)).box for i in range(4000)]
    np.testing.assert_allclose(moments(ours), moments(theirs), rtol=0.05)


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (3, 3)])
def test_extreme_images_still_give_a_crop_inside(size):
    for i in range(50):
        left, top, width, height = sample_augmentation(Views(), size, 0, view_rng(0, 0, i, 0)).box
        assert 0 <= left < left + width <= size[0]
        assert 0 <= top < top + height <= size[1]


def test_normalize_is_torchvisions():
    raw = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    theirs = v2.functional.normalize(raw / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(normalize(raw), theirs, atol=1e-5, rtol=1e-5)


def test_sizes_cover_their_ranges_and_repeat():
    config = Views(online=ResolutionRange(smallest=96, largest=224, step=32))
    drawn = [draw_resolutions(config, 0, i) for i in range(2000)]
    assert {s.online_1 for s in drawn} == {s.online_2 for s in drawn} == {96, 128, 160, 192, 224}
    assert {s.target_1 for s in drawn} == set(range(128, 225))
    assert drawn == [draw_resolutions(config, 0, i) for i in range(2000)]
    assert np.corrcoef([s.target_1 for s in drawn], [s.target_2 for s in drawn])[0, 1] < 0.1


@pytest.mark.parametrize("backend", ["pil", "opencv"])
def test_a_view_is_solarised_after_blur_and_greyed_to_its_mean(backend):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    plain = dict(box=(0, 0, 40, 40), flip=False, jitter=(), grayscale=False)
    image = Image.fromarray(pixels)
    blurred, both = (
        render_view(image, AugmentationParams(**plain, blur_radius=1.5, solarize=solarize), 40, backend)
        for solarize in (False, True)
    )
    assert np.array_equal(both, np.where(blurred < 128, blurred, 255 - blurred))
    steps = np.full((40, 40, 3), 11, dtype=np.uint8)
    steps[:, :16] = 10
    flat = AugmentationParams(**{**plain, "jitter": (("contrast", 0.0),)}, blur_radius=None, solarize=False)
    assert (render_view(Image.fromarray(steps), flat, 40, backend) == 11).all()  # of a mean of 10.6


def test_the_centre_is_cut_after_the_shorter_side_is_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 48, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = image.resize((32, 20), Image.Resampling.BILINEAR).crop((8, 2, 24, 18))
    assert np.array_equal(centre_view(image, 20, 16), np.asarray(expected))


def test_sizes_are_of_the_seed_and_the_iteration():
    found = [
        [draw_resolutions(Views(), seed, iteration) for iteration in first]
        for seed, first in ((0, range(8)), (1, range(8)), (0, range(1, 9)), (0, range(8)))
    ]
    assert found[0] == found[3]
    assert found[0] != found[1]
    assert found[0] != found[2]
