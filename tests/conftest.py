"""What all tests share: places of their own, and a drawn data set."""

import os
from pathlib import Path

import pytest

if "TEST_GPU" not in os.environ:  # before anyone asks torch
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

from triplet.pull.drawn import Drawn, draw_dataset

KIT = Path(__file__).parent.parent

TINY = Drawn(unlabelled=48, train=12, val=6, radii=(18, 30), large=(28, 50), objects=(1, 3))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU, or where it is hidden, its tests are skipped."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU; make test-gpu"))


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data sets, checkpoints and reports below tmp_path; the working directory stays the kit."""
    monkeypatch.chdir(KIT)
    for name in ("datasets", "checkpoints", "reports"):
        monkeypatch.setenv(f"TRIPLET_{name.upper()}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn data set, shared and not to be changed."""
    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    draw_dataset(folder, TINY)
    return folder
