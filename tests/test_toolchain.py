"""What torch.compile needs of the machine."""

from triplet import toolchain


def test_compilers_are_those_that_the_tools_call(monkeypatch):
    monkeypatch.setattr(
        toolchain.shutil, "which", lambda name: {"g++": "/g++", "clang": "/clang"}.get(name)
    )
    for gpu, variable in ((True, "CC"), (False, "CXX")):
        monkeypatch.delenv(variable, raising=False)
        assert not any("compiler" in what for what in toolchain.missing(gpu=gpu))
        monkeypatch.setenv(variable, "ccache gcc")  # not one program
        assert any("compiler" in what for what in toolchain.missing(gpu=gpu))
