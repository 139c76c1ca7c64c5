"""Make Detectron2 from PyPI's sdist (v0.6, no compiled operators) work with today's packages.

Import this before detectron2. Upstream's pinned commit, which the containers build, does not need it.
R50-C4 uses no compiled operator of Detectron2's own (RoIAlign and NMS are torchvision's).
"""

import importlib.util
import sys
import types

import numpy as np
import PIL.Image


def prepare() -> None:
    """Replace ``detectron2._C`` if it was not compiled, and names that Pillow and NumPy have dropped."""
    if importlib.util.find_spec("detectron2._C") is None:
        stub = types.ModuleType("detectron2._C")
        stub.get_compiler_version = lambda: "not compiled"  # type: ignore[attr-defined]
        stub.get_cuda_version = lambda: "not compiled"  # type: ignore[attr-defined]
        stub.has_cuda = lambda: False  # type: ignore[attr-defined]
        sys.modules["detectron2._C"] = stub
    if not hasattr(PIL.Image, "LINEAR"):  # used by v0.6's transforms; gone since Pillow 10
        PIL.Image.LINEAR = PIL.Image.BILINEAR  # type: ignore[attr-defined]
    if "str" not in vars(np):  # used by v0.6's PASCAL VOC; gone since NumPy 1.24
        np.str = str  # type: ignore[attr-defined]


prepare()
