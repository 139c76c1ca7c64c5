"""What torch.compile needs beside torch: it builds its kernels' launchers on the spot."""

import os
import shutil
import sysconfig
from pathlib import Path


def missing() -> list[str]:
    """Of a C++ compiler and Python's headers, what this machine lacks."""
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++")
    there = {
        "a C++ compiler": any(map(shutil.which, compilers)),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").exists(),
    }
    return [what for what, found in there.items() if not found]
