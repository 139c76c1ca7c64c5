"""Requirements of torch.compile and of torch's GPU memory on a machine."""

import os
import shutil
import sysconfig
from pathlib import Path


def missing(*, gpu: bool) -> list[str]:
    """Return which of a C compiler and Python's headers is missing; torch.compile builds launchers with
    them.

    Args:
        gpu: True for Triton, which calls $CC, gcc or clang; False for inductor, which calls $CXX or g++.
    """
    variable, names = ("CC", ("gcc", "clang")) if gpu else ("CXX", ("g++",))
    compilers = [os.environ[variable]] if variable in os.environ else names
    places = [
        sysconfig.get_path("include", scheme) for scheme in ("posix_prefix", sysconfig.get_default_scheme())
    ]
    there = {
        f"a {'C' if gpu else 'C++'} compiler": any(map(shutil.which, compilers)),
        "Python's headers": any(Path(place, "Python.h").exists() for place in places),
    }
    return [what for what, found in there.items() if not found]


def keep_compiled_code(folder: Path) -> None:
    """Make torch.compile and Triton keep their output below a folder, separately for each user.

    Their default is the machine's /tmp, which a container loses, so that each restart would compile again
    in every process. The user's own settings are kept.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    unset = (None, default_cache_dir())  # torch itself sets the variable when torchvision imports its parts
    for variable, name in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        if os.environ.get(variable) in unset:
            os.environ[variable] = str(folder / str(os.getuid()) / name)


def expandable_segments() -> None:
    """Make torch's memory on a GPU grow in place, as many resolutions leave holes in fixed segments.

    Torch reads the setting when it first uses a GPU. It is not set on WSL and Jetson, whose drivers lack
    it.
    """
    if not any(map(os.path.exists, ("/dev/dxg", "/etc/nv_tegra_release"))):
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
