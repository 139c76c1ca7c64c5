"""A small run, and drawn photographs."""

import pytest

from benchmarks.speed import photos
from triplet.config import parse
from triplet.pretrain.config import Pretrain

SMALL = {
    "model": {"depth": 18, "width": 8, "hidden": 16, "outputs": 8},
    "views": {
        "size": 48,
        "online": {"smallest": 32, "largest": 48},
        "target": {"smallest": 32, "largest": 48},
    },
    "loss": {"group": 12},
    "optimizer": {"learning_rate": 0.3, "groups": 1, "accumulate": 2},
    "schedule": {"epochs": 10, "warmup_epochs": 1},
}


@pytest.fixture
def config():
    return parse(SMALL, Pretrain, "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photos.draw_photos(tmp_path_factory.mktemp("photos"), 6)
