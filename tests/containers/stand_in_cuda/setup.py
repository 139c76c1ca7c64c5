"""A package of Detectron2's shape: an operator that is compiled for CUDA in seconds, not minutes."""

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CUDAExtension

setup(
    name="detectron2",
    version="0.6",
    packages=["detectron2"],
    ext_modules=[CUDAExtension("detectron2._C", ["detectron2/layers/csrc/double.cu"])],
    cmdclass={"build_ext": BuildExtension},
)
