"""What all tests share: places of their own, and a drawn data set."""

import gc
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Before torch is imported: processes share the cores, and rounding depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # others are processes that import torch anew
if "TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is first imported

from tests.support.processes import SERVER, fork_server
from triplet.pull.synthetic import Drawn, draw_dataset

KIT = Path(__file__).parent.parent

TINY = Drawn(unlabelled=48, train=12, val=6, radii=(18, 30), large=(28, 50), objects=(1, 3))


def pytest_configure(config: pytest.Config) -> None:
    """Workers of pytest-xdist share one fork server.

    What `make test ARGS=...` was told is not for the make of a test, and messages name commands as without
    make. SIGHUP and SIGINT are heard, under nohup and in the background as well.
    """
    for name in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "RUNTIME", "ARGS"):
        os.environ.pop(name, None)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        os.environ[SERVER] = fork_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits longest, for the package index, begins first. Without a GPU, or where it is hidden, its
    tests are skipped.
    """
    import torch

    items.sort(key=lambda item: item.path.name != "test_lean_setups.py")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU; make test-gpu"))


def pytest_collection_finish() -> None:
    """What is imported is looked through no more, neither here nor in the loaders that tests fork."""
    gc.freeze()


@contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """Data sets, checkpoints and reports below a folder; the working directory is the kit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(KIT)
        for name in ("datasets", "checkpoints", "reports"):
            patch.setenv(f"TRIPLET_{name.upper()}", str(folder / name))
        yield folder


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """The three places below tmp_path."""
    with placed(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small drawn data set, shared and not to be changed."""
    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    draw_dataset(folder, TINY)
    return folder
