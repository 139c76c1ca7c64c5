"""The Triton kernels equal torch's operators bit for bit in Triton's interpreter, and compile for a GPU."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import KIT
from triplet.pretrain import gpu_augment as module
from triplet.pretrain.config import Views
from triplet.pretrain.gpu_augment import by_torch, by_triton
from triplet.pretrain.views import AugmentationParams, sample_augmentation, view_rng

kernels = pytest.importorskip("triplet.pretrain.triton_augment")
ORDINARY = AugmentationParams((0, 0, 1, 1), False, (), False, None, False)

pytestmark = pytest.mark.skipif("TEST_GPU" in os.environ, reason="Triton's interpreter is for the CPU")


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch):
    """Each program costs the interpreter the same, so that few large ones are quick."""
    monkeypatch.setattr(kernels, "VIEWS", 256)


def noise(count, height=12, width=16):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return torch.from_numpy(pixels)


def sample(count):
    return [
        sample_augmentation(Views(), (16, 12), i % 2, view_rng(0, 0, i // 2, i % 2)) for i in range(count)
    ]


def assert_equal(pixels, draws):
    before = pixels.clone()
    assert torch.equal(by_triton(pixels, draws, kernels), by_torch(pixels, draws))
    assert torch.equal(pixels, before)


def test_some_draws_are_bit_for_bit_the_same():
    assert_equal(noise(40), sample(40))


@pytest.mark.slow
def test_a_thousand_draws_are_bit_for_bit_the_same():
    assert_equal(noise(1000), sample(1000))


def test_draws_outside_the_recipe_are_the_same(monkeypatch):
    """Several contrasts, a wide blur on few pixels, no operation, tiles that do not divide."""
    monkeypatch.setattr(kernels, "VIEWS", 4)
    monkeypatch.setattr(kernels, "BLOCK", 64)
    fields = [
        {},
        {"jitter": (("contrast", 0.0), ("hue", -0.5), ("contrast", 1.9))},
        {"jitter": (("brightness", 3.0), ("saturation", 0.0), ("contrast", 0.3)), "solarize": True},
        {"blur_radius": 7.3},
        {"blur_radius": 0.1, "solarize": True, "grayscale": True},
    ]
    draws = [replace(ORDINARY, **each) for each in fields]
    assert_equal(noise(5, 9, 11), draws)
    assert_equal(noise(1, 9, 11), draws[:1])
    assert_equal(noise(0), [])


@pytest.mark.slow
def test_hue_is_the_same_all_over_the_colours(monkeypatch):
    """Every third value of each channel, at a turn that carries many around the circle."""
    monkeypatch.setattr(kernels, "VIEWS", 1)
    monkeypatch.setattr(kernels, "BLOCK", 1 << 20)
    every = np.arange(0, 256, 3, dtype=np.uint8)
    lattice = torch.from_numpy(np.stack(np.meshgrid(every, every, every)).reshape(1, 3, -1, 86))
    draws = replace(ORDINARY, jitter=(("hue", 0.1),))
    assert_equal(lattice, [draws])


def test_torch_stands_in_where_triton_cannot_be(monkeypatch):
    module._kernels.cache_clear()
    monkeypatch.setattr(module.toolchain, "missing", lambda gpu: ["a C compiler"])
    assert module._kernels() is None
    module._kernels.cache_clear()
    monkeypatch.setattr(module.toolchain, "missing", lambda gpu: [])
    assert module._kernels() is kernels
    module._kernels.cache_clear()
    monkeypatch.setitem(sys.modules, "triplet.pretrain.triton_augment", None)
    monkeypatch.delattr("triplet.pretrain.triton_augment")
    assert module._kernels() is None
    module._kernels.cache_clear()


COMPILE = """
import json, sys
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triplet.pretrain import triton_augment

constants = dict(PLACES=4, VIEWS=1, BLOCK=1024, TAPS=5, LAST=True)
pointers = dict(pixels="*u8", changed="*u8", source="*u8", target="*u8", table="*fp32", sums="*i64")
found = {}
for name in ("_sum_luma", "_recolour", "_box"):
    kernel = getattr(triton_augment, name)
    types = {k: "constexpr" if k in constants else pointers.get(k, "i32") for k in kernel.arg_names}
    source = ASTSource(kernel, types, {k: v for k, v in constants.items() if k in types})
    built = compile(source, target=GPUTarget("cuda", 90, 32), options=dict(enable_fp_fusion=False))
    found[name] = dict(ptx=built.asm["ptx"], bytes=len(built.asm["cubin"]))
json.dump(found, sys.stdout)
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_with_exact_arithmetic(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=KIT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert set(found) == {"_sum_luma", "_recolour", "_box"}
    for name, each in found.items():
        assert each["bytes"] > 1000
        for word in ("fma.", "approx", "div.full"):
            assert word not in each["ptx"], f"{name}: {word}"
    assert "div.rn.f32" in found["_recolour"]["ptx"]
