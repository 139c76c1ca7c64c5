"""A package of OpenSelfSup's shape: a folder without ``__init__.py``, data that it does not list.

Its version is read as OpenSelfSup reads its own, which Python 3.13 does not do any more.
"""

from setuptools import find_packages, setup


def get_version():
    exec('__version__ = "0.3.0"')
    return locals()["__version__"]


setup(name="openselfsup", version=get_version(), packages=find_packages(exclude=("configs",)))
