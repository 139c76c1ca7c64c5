"""The energy of a stage, by the counters of made-up cards: real pynvml, and a libnvidia-ml of our own."""

import ast
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from tests.conftest import KIT
from tests.support.processes import Process, launch
from triplet import energy

STAGE = KIT / "tests" / "support" / "metered_stage.py"
READ = "import sys; from triplet.energy import *; print([*map(read_counter, sys.argv[1:])])"
KWH = 3_600_000_000


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A folder with libnvidia-ml.so.1, whose cards tests/support/nvml.c lists."""
    path = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = KIT / "tests" / "support" / "nvml.c"
    soname = f"-Wl,-soname,{path.name}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Werror", soname, source, "-o", path], check=True)
    return path


def counters(library, *gpus, **environment):
    command = [sys.executable, "-c", READ, *gpus]
    environment = {"LD_LIBRARY_PATH": str(library.parent), **environment}
    done = subprocess.run(command, cwd=KIT, capture_output=True, text=True, check=True, env=environment)
    return ast.literal_eval(done.stdout)


def test_only_a_whole_card_with_a_counter_is_read(library):
    gpus = ("GPU-a", "GPU-b", "GPU-a", "GPU-pascal", "GPU-divided", "MIG-part", "GPU-unknown")
    assert counters(library, *gpus) == [KWH + 7, 2 * KWH, 2 * KWH + 7, None, None, None, None]
    assert counters(library, "GPU-soon") == [4 * KWH]  # divided from its next reset on


def test_a_driver_that_does_not_answer_is_no_counter(library):
    assert counters(library, "GPU-a", NVML_FAILS="1") == [None]


def test_a_machine_without_nvml_or_gpu_measures_nothing():
    assert energy.read_counter("GPU-of-nobody") is None
    assert energy.own_gpu() is None
    assert energy.measure()() is None


def test_a_card_is_known_by_its_own_name_once_it_is_used(monkeypatch):
    """Whatever the number that CUDA gives it; only a look at a GPU must not take memory on one."""
    names = [SimpleNamespace(uuid="aa-0"), SimpleNamespace(uuid="bb-1")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: names[number])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert energy.own_gpu() is None
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert energy.own_gpu() == "GPU-bb-1"


@pytest.mark.parametrize(
    ("counted", "used"),
    [
        ((7, 7 + 3 * KWH, 7 + 5 * KWH), [3, 5]),
        ((None, KWH, KWH), [None] * 2),
        ((7, None, KWH + 7), [None, 1]),
    ],
)
def test_energy_is_the_growth_of_the_counter(monkeypatch, counted, used):
    looks = iter(counted)
    monkeypatch.setattr(energy, "own_gpu", lambda: "GPU-a")
    monkeypatch.setattr(energy, "read_counter", lambda gpu: next(looks))
    spent = energy.measure()
    assert [spent(), spent()] == used


def test_a_sum_with_a_part_that_is_not_known_is_not_known():
    assert energy.total(iter([1.5, 0.25, 2.0])) == 3.75
    assert energy.total(iter([1.5, None, 2.0])) is None
    assert energy.total([None, None]) is None


def test_sessions_add_up_unless_one_was_not_measured(library, tmp_path):
    """Sessions that were stopped or failed count as well."""
    whole = ("whole:GPU-a:stop", "whole:GPU-a:error", "whole:GPU-a:done")
    partly = ("old:GPU-pascal:done", "partly::stop", "partly:GPU-a:done")
    running = Process(STAGE, library, tmp_path, *whole, *partly)
    out, error = running.communicate(240)
    assert running.wait() == 0, error
    assert out.splitlines() == ["whole 3.0", "old None", "partly None"]


@pytest.mark.slow
def test_processes_add_up_each_by_its_own_card(library, tmp_path):
    """Also when they are stopped: the second session is of new processes, as a user's is."""
    said = []
    for end in ("stop", "done"):
        running = launch(2, library, tmp_path, f"both:GPU-a,GPU-b:{end}", program=(STAGE,))
        out, error = running.communicate(240)
        assert running.wait() == 0, error
        said += out.splitlines()
    assert said == ["both 6.0"]


@pytest.mark.gpu
def test_the_counter_of_this_gpu_grows():
    """Real CUDA, real NVML; a card without a counter has no energy."""
    torch.cuda.init()
    if energy.read_counter(energy.own_gpu()) is None:
        pytest.skip("this GPU has no counter of its own")
    spent = energy.measure()
    square = torch.rand(8192, 8192, device="cuda")
    for _ in range(50):
        square @ square
    torch.cuda.synchronize()
    assert 0 < spent() < 0.01
