"""In the path, this hides the top-level modules named in HIDDEN_MODULES from a Python and its children."""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder

HIDDEN = set(os.environ.get("HIDDEN_MODULES", "").split())


class Finder(PathFinder):
    """Python's own, without them."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None) -> ModuleSpec | None:
        if fullname.partition(".")[0] in HIDDEN:
            return None
        return super().find_spec(fullname, path, target)


sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
