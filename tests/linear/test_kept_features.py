"""What kept features depend on, which shards there are, and the pixels that they are of."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.linear import features
from benchmarks.linear.config import Common, ImageSettings, Training
from benchmarks.linear.data import Crops, EpochOrder, open_sets, share
from benchmarks.linear.stage import Task
from triplet.pretrain.config import Views
from triplet.pretrain.layout import permutation
from triplet.pretrain.views import render_view, sample_augmentation, view_rng
from triplet.records import Job
from triplet.training.distributed import Processes


@pytest.mark.parametrize("crops", [0, 2])
@pytest.mark.parametrize("rank", [0, 1])
def test_features_are_of_images_precision_and_for_crops_the_seed(
    places, imagenet, monkeypatch, crops, rank
):
    """In shards of ten images, every second of which is this process's."""
    ours, theirs = open_sets(imagenet / "train", imagenet / "val")
    asked, written = [], []

    class Two(Processes):
        def gather(self, value):
            return [value] * 2

    def perform(processes, stage, folder, work, **plan):
        asked.append((stage, folder.name, plan))
        folder.mkdir(parents=True)
        job = Job(folder)
        work(job)
        for path in job.outputs.values():
            np.save(path, np.zeros((1, 2), dtype=np.float16))

    monkeypatch.setattr(features, "ROWS", 10)
    monkeypatch.setattr(features, "perform", perform)
    monkeypatch.setattr(features, "_write", lambda shards, *_: written.extend(shards))
    config = Common(seed=7, precision="bfloat16", workers=3, images={"size": 32, "shorter": 40})
    task = Task(
        "run", ours, theirs, {"weights": places / "w"}, Two(rank, 2, torch.device("cpu")), Job(places)
    )
    found = features.extract(config, task, {"train": ours, "test": theirs}, crops=crops)
    images = {"size": 32, "shorter": 40, "scale": [0.08, 1.0]}
    ((stage, name, plan),) = asked
    assert (stage, name) == ("features", "crops" if crops else "centres")
    seed = {"seed": 7} if crops else {}
    assert plan["config"] == {"images": images, "precision": "bfloat16", "crops": crops, **seed}
    assert (plan["inputs"], plan["derived"]) == ({"weights": places / "w"}, True)
    views = (
        [f"{split}-{crop}" for split in ("train", "test") for crop in (0, 1)]
        if crops
        else ["train", "test"]
    )
    assert list(found) == views
    sizes = {"train": [10, 10, 10, 10, 5], "test": [10, 5]}
    every = [(view, n, size) for view in views for n, size in enumerate(sizes[view.partition("-")[0]])]
    assert [(path.stem, len(items)) for path, _, items in written] == [
        (f"{view}-{n:05d}", size) for view, n, size in every[rank::2]
    ]
    for path, dataset, items in written:
        view, number = path.stem.rsplit("-", 1)
        places_ = range(10 * int(number), 10 * int(number) + len(items))
        assert items == [(int(view[-1]), p) for p in places_] if crops else [*places_]
        assert dataset.data is (ours if view.startswith("train") else theirs)


def test_crops_are_as_drawn_and_mirrored_half_the_time(imagenet):
    ours, _ = open_sets(imagenet / "train", imagenet / "val")
    crops = Crops(ours, ImageSettings(size=32, shorter=36, scale=(0.3, 0.6)), 5)
    image = Image.open(imagenet / "train" / ours.images.name(4)).convert("RGB")
    views = Views(size=32, scale=(0.3, 0.6), jitter=0, grayscale=0, blur=(0, 0), solarize=(0, 0))
    mirrored = 0
    for epoch in range(40):
        draws = sample_augmentation(views, image.size, 0, view_rng(5, epoch, 4, 0))
        assert (draws.jitter, draws.grayscale, draws.blur_radius, draws.solarize) == (
            (),
            False,
            None,
            False,
        )
        pixels, place = crops[(epoch, 4)]
        assert place == 4
        assert np.array_equal(pixels, render_view(image, draws, 32, interpolation="bilinear"))
        mirrored += draws.flip
    assert 10 < mirrored < 30


def test_an_epoch_is_filled_up_with_its_own_first_images():
    """Seven images for three replicas, batches of three: nine places, of which two come twice."""
    order = EpochOrder(7, Training(batch=3, num_replicas=3, learning_rate=1, epochs=2), 4)
    assert (order.filled, order.per_epoch, order.steps) == (9, 3, 6)
    for epoch in (0, 1):
        expected = [*permutation(7, 4, epoch), *permutation(7, 4, epoch)[:2]]
        found = [list(order.batches(3 * epoch, rank, 3))[:3] for rank in range(3)]
        for batch in range(3):
            assert [found[rank][batch] for rank in range(3)] == [
                [(epoch, place)] for place in expected[3 * batch : 3 * batch + 3]
            ]
    assert share(11, 1, 3, 2) == [[1, 4], [7, 10]]
