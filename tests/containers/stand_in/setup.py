"""A package of OpenSelfSup's shape: a folder without ``__init__.py``, data that it does not list."""

from setuptools import find_packages, setup

setup(name="openselfsup", version="0.3.0", packages=find_packages(exclude=("configs",)))
