"""Compilation in place: each network, as asked, with what torch needs for it."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from triplet import toolchain
from triplet.errors import KitError
from triplet.training.compilation import compile_networks


class Twice(nn.Linear):
    """A network of the kit's own, as torch.compile leaves torch's layers alone as they are."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_each_network_is_compiled_in_place_as_asked(monkeypatch, tmp_path):
    monkeypatch.setenv("TRIPLET_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())  # as torchvision's import leaves it
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that it is as before after this test
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setattr(torch._dynamo.config, "optimize_ddp", True)
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    networks = [Twice(2, 3), Twice(3, 1)]
    names = [list(network.state_dict()) for network in networks]
    images = torch.ones(4, 2)
    expected = networks[1](networks[0](images))
    compile_networks(iter(networks), backend=backend)
    assert torch.equal(networks[1](networks[0](images)), expected)
    assert len(compiled) == 2
    assert [list(network.state_dict()) for network in networks] == names
    assert torch._dynamo.config.optimize_ddp is False
    assert torch._dynamo.config.recompile_limit == 64
    kept = tmp_path / ".compiled" / str(os.getuid())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(kept / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == str(kept / "triton")


def test_compiled_code_is_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    monkeypatch.setenv("TRITON_CACHE_DIR", "ours")
    toolchain.keep_compiled_code(tmp_path)
    assert [os.environ[f"{name}_CACHE_DIR"] for name in ("TORCHINDUCTOR", "TRITON")] == ["mine", "ours"]


@pytest.mark.parametrize(("gpu", "there", "lacking"), [(True, "g++", "C"), (False, "gcc", r"C\+\+")])
def test_networks_on_a_gpu_need_another_compiler(monkeypatch, gpu, there, lacking):
    monkeypatch.setattr(toolchain.shutil, "which", lambda name: name == there or None)
    network = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(is_cuda=gpu)]))
    with pytest.raises(KitError, match=f"compile=true needs a {lacking} compiler"):
        compile_networks([network])
