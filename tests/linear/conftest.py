"""A small ImageNet: class folders with known answers, and a backbone to look at them."""

import numpy as np
import pytest
import torch
from PIL import Image

from triplet.models.resnet import ResNet

NAMES = ("n01440764", "n02102040", "n03028079")


def draw(folder, count, seed, *, shuffled=False):
    """Images of noise as bright as their class, or as another one drawn at random."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            shown = rng.integers(len(NAMES)) if shuffled else number
            pixels = rng.integers(0, 40, (40, 48, 3)) + 100 * int(shown)
            Image.fromarray(pixels.astype(np.uint8).clip(0, 255)).save(folder / name / f"{name}_{i}.png")


@pytest.fixture(scope="session")
def imagenet(tmp_path_factory):
    """``train`` (3 x 15 images) and ``val`` (3 x 5), which any features tell apart; not to be changed."""
    folder = tmp_path_factory.mktemp("imagenet")
    draw(folder / "train", 15, 0)
    draw(folder / "val", 5, 1)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A narrow ResNet-18 as drawn, extracted; its BN statistics are those of some images."""
    torch.manual_seed(0)
    network = ResNet(18, 8)
    with torch.no_grad():
        for _ in range(20):
            network(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp("weights") / "r18.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    return path


IMAGES = "images: {size: 32, shorter: 36}\nworkers: 0\n"
PROBE = IMAGES + "training: {num_replicas: 4, batch: 16, learning_rate: 0.5, epochs: 8, warmup_epochs: 1}\n"
SWEEP = IMAGES + (
    "sweep: {crops: 2, held_out: 0.2, learning_rates: [0.1, 1], weight_decays: [0, 1.0e-4], batch: 12, "
    "epochs: 20}\n"
)


@pytest.fixture
def run(places, imagenet, weights):
    """Arguments of a stage on the small ImageNet, by the text of its config."""

    def arguments(stage, text, *extra, name="run", data=imagenet):
        path = places / f"{stage}.yaml"
        path.write_text(text)
        return [
            stage,
            "--run",
            name,
            "--config",
            str(path),
            "--data",
            str(data / "train"),
            "--val",
            str(data / "val"),
            "--weights",
            str(weights),
            *extra,
        ]

    return arguments
