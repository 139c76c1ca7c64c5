"""What is drawn for views and orders, what a run is expected to cost, and what its record says."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from tests.support.small_pretrain import ALONE, laid_out, settings
from triplet import records
from triplet.images import open_images
from triplet.knn import accuracy, knn_predict
from triplet.models.networks import Networks, mlp
from triplet.models.resnet import ResNet
from triplet.pretrain.config import ResolutionRange, Views
from triplet.pretrain.data import read_or_next
from triplet.pretrain.estimate import encoder_flop, estimate
from triplet.pretrain.layout import Order, make_layout, permutation
from triplet.pretrain.methods import METHODS
from triplet.pretrain.monitor import KnnMonitor
from triplet.pretrain.trainer import pretrain
from triplet.pretrain.views import (
    augmented_views,
    centre_view,
    normalize,
    render_view,
    sample_augmentation,
    view_rng,
)
from triplet.signals import Stop
from triplet.training.distributed import Processes
from triplet.training.schedule import ema_momentum, learning_rate

SMALL = {"size": 32, "online": {"smallest": 32, "largest": 48}, "target": {"smallest": 32, "largest": 40}}


def drawn_views(count=2000, size=(3000, 3000), **fields):
    config = Views(**fields)
    return [sample_augmentation(config, size, 0, view_rng(7, 0, i, 0)) for i in range(count)]


def test_crops_are_as_often_wide_as_high_and_within_their_bounds():
    """The ratio is drawn by its logarithm; on a large square nothing is rejected and little rounded."""
    boxes = np.array([each.box for each in drawn_views(scale=(0.1, 0.3), ratio=(0.5, 2.0))], dtype=float)
    left, top, width, height = boxes.T
    ratio, area = width / height, width * height / 3000**2
    assert (ratio < 1).mean() == pytest.approx(0.5, abs=0.04)
    assert np.log2(ratio).mean() == pytest.approx(0, abs=0.05)
    assert (ratio.min(), ratio.max()) == pytest.approx((0.5, 2.0), rel=0.01)
    assert (area.min(), area.max()) == pytest.approx((0.1, 0.3), rel=0.02)
    assert area.mean() == pytest.approx(0.2, abs=0.005)
    for place, room in ((left, 3000 - width), (top, 3000 - height)):
        assert (place / room).mean() == pytest.approx(0.5, abs=0.03)
        assert ((place >= 0) & (place <= room)).all()


def test_a_crop_reaches_every_border():
    found = {each.box[:2] for each in drawn_views(600, (10, 12), scale=(0.5, 0.5), ratio=(0.8, 0.8))}
    # Half of 120 pixels at 0.8: 7 x 9.
    assert found == {(left, top) for left in range(4) for top in range(4)}


def test_a_crop_that_does_not_fit_is_drawn_again():
    """Half of these do not, ten in a row hardly ever; then the whole square is taken."""
    boxes = [each.box for each in drawn_views(1000, scale=(0.7, 0.7), ratio=(0.5, 2.0))]
    assert boxes.count((0, 0, 3000, 3000)) < 5


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 100), (433, 0, 133, 100)), ((90, 1000), (0, 440, 90, 120)), ((50, 50), (0, 0, 50, 50))],
)
def test_what_no_crop_fits_is_cut_in_the_centre(size, box):
    """Torchvision's fallback: the nearest ratio that is allowed."""
    config = Views.model_construct(**{**dict(Views()), "scale": (40.0, 50.0)})
    found = sample_augmentation(config, size, 0, view_rng(0, 0, 0, 0))
    assert found.box == box


def test_colours_are_drawn_in_any_order_within_their_strengths():
    chosen = dict(
        jitter=1, brightness=0.9, contrast=0.1, saturation=0.3, hue=0.05, flip=0.25, grayscale=0.35
    )
    views = drawn_views(**chosen)
    assert len({tuple(name for name, _ in each.jitter) for each in views}) == 24
    for name, low, high in (
        ("brightness", 0.1, 1.9),
        ("contrast", 0.9, 1.1),
        ("saturation", 0.7, 1.3),
        ("hue", -0.05, 0.05),
    ):
        values = [dict(each.jitter)[name] for each in views]
        span = high - low
        assert (min(values), max(values)) == pytest.approx((low, high), abs=0.01 * span)
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=0.03 * span)
    assert np.mean([each.flip for each in views]) == pytest.approx(0.25, abs=0.03)
    assert np.mean([each.grayscale for each in views]) == pytest.approx(0.35, abs=0.03)


def test_the_two_views_have_their_own_blur_and_solarisation():
    config = Views(blur=(0.3, 0.9), solarize=(0.6, 0.15), blur_radius=(1.0, 3.0))
    for view in (0, 1):
        found = [sample_augmentation(config, (90, 80), view, view_rng(0, 0, i, view)) for i in range(2000)]
        radii = [each.blur_radius for each in found if each.blur_radius is not None]
        assert len(radii) / 2000 == pytest.approx(config.blur[view], abs=0.04)
        assert (min(radii), max(radii), np.mean(radii)) == pytest.approx((1, 3, 2), abs=0.05)
        assert np.mean([each.solarize for each in found]) == pytest.approx(config.solarize[view], abs=0.04)


def test_grey_comes_first_where_the_config_says_so():
    views = drawn_views(200, grayscale=0.5, grayscale_first=True, jitter=0.5)
    assert not any(each.grayscale for each in views)
    grey = [each.jitter for each in views if ("saturation", 0.0) in each.jitter]
    assert 60 < len(grey) < 140
    assert all(jitter[0] == ("saturation", 0.0) and len(jitter) in (1, 5) for jitter in grey)


@pytest.mark.parametrize(
    "changes", [{}, {"interpolation": "bilinear"}, {"backend": "opencv"}, {"size": 40}]
)
def test_views_are_rendered_as_the_config_says(changes):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (60, 90, 3)).astype(np.uint8))
    config = Views(**{"size": 32, "solarize": (0.5, 0.5), **changes})
    found = augmented_views(image, config, partial(view_rng, 3, 1, 2), 2)
    for view in (0, 1):
        draws = sample_augmentation(config, (90, 60), view, view_rng(3, 1, 2, view))
        expected = render_view(image, draws, config.size, config.backend, config.interpolation)
        assert np.array_equal(found[view], expected)
    other = {"interpolation": "bicubic"} if "interpolation" in changes else {"interpolation": "bilinear"}
    again = augmented_views(image, config.model_copy(update=other), partial(view_rng, 3, 1, 2), 2)
    assert not np.array_equal(found, again)


def test_the_order_of_images_is_of_the_seed_and_the_epoch():
    orders = {(seed, epoch): tuple(permutation(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len({*orders.values(), tuple(range(50))}) == 5
    assert all(sorted(order) == [*range(50)] for order in orders.values())
    one, other = (Order(50, laid_out(seed=seed)) for seed in (0, 1))
    assert one.micro_batch(5) == [(1, index) for index in orders[0, 1][11:22]]
    assert other.micro_batch(5) == [(1, index) for index in orders[1, 1][11:22]]


def test_an_epoch_ends_where_its_last_micro_batch_does():
    """Five micro-batches of eleven in an epoch of 60 images, two in a step, six epochs: 15 steps."""
    order = Order(60, laid_out(accumulate=2, epochs=6))
    assert (order.per_epoch, order.steps, order.iterations) == (5, 15, 30)
    assert [order.epoch(step) for step in range(16)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4, 5, 5, 6]
    assert [step for step in range(1, 16) if order.ends_epoch(step, 1)] == [3, 5, 8, 10, 13, 15]
    assert [step for step in range(1, 16) if order.ends_epoch(step, 4)] == [10, 15]
    assert Order(60, laid_out(accumulate=2, epochs=5)).steps == 12, "the 25th micro-batch fills no step"


def test_each_pass_knows_its_place_in_the_micro_batch():
    config = laid_out(groups=4, accumulate=2, images_per_gpu=11)
    order, layout = Order(100, config), make_layout(config, 2)
    for rank in (0, 1):
        (first, *_) = layout.steps(order, rank, 0)
        assert [(each.iteration, each.first) for each in first] == [
            (iteration, 22 * rank + cut) for iteration in (0, 1) for cut in (0, 11)
        ]
        for each in first:
            assert list(each.items) == order.micro_batch(each.iteration)[each.first : each.first + 11]
    assert [layout.team(rank) for rank in range(2)] == [0, 0]
    assert [make_layout(config, 8).team(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


class Unreadable:
    """Images of which some cannot be read."""

    def __init__(self, count, broken):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def name(self, index):
        return f"{index}.png"

    def read(self, index):
        return None if index in self.broken else f"pixels of {index}"


@pytest.mark.parametrize(
    ("broken", "index", "found"),
    [
        ({4}, 2, ("pixels of 2", 2, [])),
        ({4}, 4, ("pixels of 0", 0, [4])),
        ({3, 4, 0}, 3, ("pixels of 1", 1, [3, 4, 0])),
    ],
)
def test_the_next_readable_image_stands_in_also_at_the_end(broken, index, found):
    images = Unreadable(5, broken)
    assert read_or_next(images, index, images.read) == found


# Passes of the online and the target encoder for one image: the former go backward as well, twice forward.
PASSES = {"byol": (2, 2), "moco": (1, 1), "npid": (1, 0), "relative-loc": (16, 0), "rotation-pred": (4, 0)}
PASSES |= {"simclr": (2, 0), "triplet": (2, 2)}


@pytest.mark.parametrize("method", METHODS)
def test_the_arithmetic_of_a_method_is_its_passes(method):
    fixed = {"smallest": 64, "largest": 64}
    config = settings(
        method, views={"size": 64, "online": fixed, "target": fixed, "patches": {"resize": 120, "crop": 99}}
    )
    online, target = PASSES[method]
    side = 99 // 3 - 21 if method == "relative-loc" else 64
    expected = (3 * online + target) * encoder_flop(config.model, side)
    if method in ("byol", "triplet"):
        predictor = mlp(8, 16, 8)
        with FlopCounterMode(display=False) as counter:
            predictor(torch.randn(6, 8, requires_grad=True)).sum().backward()
        expected += 2 * counter.get_total_flops() / 6
    assert estimate(config, make_layout(config, 2)).flop == pytest.approx(expected, rel=1e-9)


def test_the_arithmetic_of_an_encoder_is_that_of_its_layers():
    config = settings("triplet")
    networks = Networks(**config.model.model_dump())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        networks.eval().online(torch.randn(3, 3, 64, 64))
    assert encoder_flop(config.model, 64) == pytest.approx(counter.get_total_flops() / 3)


def test_memory_counts_weights_gradients_momenta_and_saved_ones():
    """Weight, gradient and momentum of what is trained, four bytes each; of the target weights alone."""
    for method, images in (("triplet", 12), ("npid", 24)):
        config = settings(method, images_per_gpu=images, views=SMALL, contrastive={"negatives": 5000})
        layout = make_layout(config, 1)
        networks = METHODS[method].build(config, 1)
        trained = sum(p.numel() for p in networks.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in networks.parameters())
        fixed = 12 * trained + 4 * (whole - trained) + 4 * sum(b.numel() for b in networks.buffers())
        each = (estimate(config, layout).memory - fixed) / images
        pixels = METHODS[method].TRAITS.views * 3 * 32 * 32 * 5
        side = config.views.online.largest if method == "triplet" else 32
        kept = kept_by_hand(config.model, side)
        kept = kept if method == "triplet" else kept + 4 * 5000 * 8  # of one term of the loss
        assert each == pytest.approx(kept + pixels, rel=0.003)


@pytest.mark.parametrize("method", ["triplet", "npid"])
def test_memory_that_no_image_takes_is_counted_to_the_byte(method):
    """What two layouts have in common, of which one has twice the images in a pass."""
    half, whole = (settings(method, images_per_gpu=n, views=SMALL) for n in (12, 24))
    small, large = (estimate(config, make_layout(config, 1)).memory for config in (half, whole))
    networks = METHODS[method].build(half, 1)
    trained = sum(p.numel() for p in networks.parameters() if p.requires_grad)
    others = sum(p.numel() for p in networks.parameters() if not p.requires_grad)
    buffers = sum(b.numel() for b in networks.buffers())
    assert 2 * small - large == pytest.approx(12 * trained + 4 * others + 4 * buffers, abs=1)


def kept_by_hand(model, side):
    """Bytes for one of eight images that autograd holds on the CPU."""
    networks, storages = Networks(**model.model_dump()), {}
    own = {p.untyped_storage().data_ptr() for p in networks.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = networks.predictor(networks.online(torch.randn(8, 3, side, side)))
    assert output.requires_grad
    return sum(storages.values()) / 8


def test_the_mean_over_resolutions_is_weighted_by_their_odds():
    sides = {
        "online": {"smallest": 64, "largest": 112, "step": 16},
        "target": {"smallest": 64, "largest": 64},
    }
    config = settings("triplet", views={"size": 32, **sides})
    online = sum(encoder_flop(config.model, side) for side in (64, 80, 96, 112)) / 4
    flop = 6 * online + 2 * encoder_flop(config.model, 64)
    found = estimate(config, make_layout(config, 2)).flop - METHODS["triplet"].work(config).more_flop
    assert found == pytest.approx(flop)
    assert METHODS["triplet"].work(config).target_sides == ResolutionRange(smallest=64, largest=64)


@pytest.fixture(scope="module")
def shades(tmp_path_factory):
    """Three classes of noise that overlap: 11, 12 and 13 images."""
    folder, rng = tmp_path_factory.mktemp("shades"), np.random.default_rng(0)
    for label in range(3):
        (folder / str(label)).mkdir()
        for i in range(11 + label):
            pixels = rng.integers(0, 150, (30, 44, 3)) + rng.integers(0, 60) + 25 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(label) / f"{i}.png")
    return open_images(folder)


@pytest.mark.parametrize("processes", [1, 3])
def test_the_monitors_accuracy_is_that_of_its_sample(shades, processes):
    """However many processes share the features, the first half of the sample classifies the second."""
    config = settings(
        "triplet", monitor={"every": 1, "images": 25, "neighbours": 4, "temperature": 0.5}, seed=2
    )
    torch.manual_seed(0)
    networks = Networks(18, 8, 16, 8).train()
    parts = []

    class Heard(Exception):
        """Stops a process where it would wait for the others, with what it would tell them."""

    class Several(Processes):
        def gather(self, value):
            if len(parts) < self.size:
                raise Heard(value)
            return parts

    def ask(rank):
        return KnnMonitor(config, shades, Several(rank, processes, torch.device("cpu")))(networks, Stop())

    for rank in range(processes):
        with pytest.raises(Heard) as heard:
            ask(rank)
        parts.append(heard.value.args[0])
    found = [ask(rank) for rank in range(processes)]
    chosen = np.random.default_rng((2, 0xC1A55)).permutation(36)[:25]
    assert len({*chosen.tolist()}) == 25
    pixels = [centre_view(Image.open(shades.folder / shades.name(i)), 37, 32) for i in chosen]
    backbone: ResNet = networks.online.backbone
    with torch.no_grad():
        backbone.eval()
        features = backbone(normalize(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))).mean((2, 3))
    labels = torch.from_numpy(shades.labels[chosen])
    predicted = knn_predict(features[:12], labels[:12], features[12:], neighbours=4, temperature=0.5)
    assert found == pytest.approx([accuracy(predicted, labels[12:])] * processes)
    assert 30 < found[0] < 100


def test_a_run_leaves_what_it_did_in_numbers(drawn, tmp_path, capsys):
    """Eleven images a group, two groups, 48 images: two micro-batches an epoch, three of them in a step."""
    config = settings(
        "triplet",
        loss={"group": 11},
        views=SMALL,
        optimizer={"learning_rate": 0.4, "groups": 2, "accumulate": 3},
        schedule={"epochs": 5, "warmup_epochs": 2, "ema_base": 0.7},
        checkpoint_every=2,
        max_to_keep=1,
    )
    job, kept = records.Job(tmp_path), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "triplet.pretrain.trainer.checkpoint.keep",
            lambda folder, most: kept.append((sorted(p.name for p in folder.glob("step*.pth")), most)),
        )
        pretrain(config, open_images(drawn / "unlabelled"), job, ALONE)
    assert kept == [(["step_0000002.pth"], 1), (["step_0000002.pth", "step_0000003.pth"], 1)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["epoch"]) for line in lines] == [(3, 1), (6, 3), (9, 4)]
    for number, line in enumerate(lines):
        last = 3 * number + 2
        rate = dict(peak=0.4, iterations_per_epoch=2, epochs=5, warmup_epochs=2)
        assert line["learning_rate"] == pytest.approx(learning_rate(last, **rate))
        assert line["ema_momentum"] == pytest.approx(ema_momentum(last, iterations=9, base=0.7))
        assert line["images_per_second"] == pytest.approx(66 / line["step_time"], rel=0.05)
    results = {k: v for k, v in job.results.items() if k not in ("layout", "final")}
    assert results == {
        "images": 48,
        "batch": 66,
        "epochs": 5,
        "steps": 3,
        "bn_images": 22,
        "unreadable": [],
        "weights": "drawn from the seed",
    }
    assert job.results["final"] == lines[-1]
    assert job.results["layout"] == make_layout(config, 1).describe()
    assert "66 images a step = 1 processes x 3 passes x 22 images" in capsys.readouterr().out
    final = torch.load(tmp_path / "checkpoint.pth", weights_only=True)
    assert (final["step"], final["epoch"], final["optimizer"]) == (3, 5, None)
    step = torch.load(tmp_path / "step_0000002.pth", weights_only=True)
    assert (step["step"], step["epoch"]) == (2, 3)
    assert job.outputs == {"checkpoint": tmp_path / "checkpoint.pth", "metrics": tmp_path / "metrics.jsonl"}
    assert not torch.backends.cudnn.benchmark
