"""Packages that are installed here, as if they were not."""

import importlib.abc
import sys


class _Refused(importlib.abc.MetaPathFinder):
    """A finder that lets nothing of some packages be imported."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.packages:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def refuse(*packages):
    """Let packages be missing from now on.

    None in sys.modules would do for the kit, but SciPy and scikit-learn look there for torch's types.
    """
    assert not set(packages) & set(sys.modules)
    sys.meta_path.insert(0, _Refused(packages))
