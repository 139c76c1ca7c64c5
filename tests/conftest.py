"""What all tests share: places of their own, and a drawn data set."""

from pathlib import Path

import pytest

from triplet.pull.drawn import Drawn, draw_dataset

KIT = Path(__file__).parent.parent

TINY = Drawn(unlabelled=48, train=12, val=6, radii=(18, 30), large=(28, 50), objects=(1, 3))


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
