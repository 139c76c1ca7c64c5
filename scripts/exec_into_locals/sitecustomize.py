"""On PYTHONPATH while old packages are built: ``exec`` changes a function's locals, as before Python 3.13.

The setup.py of mmcv 1.x and of OpenSelfSup read their version in that way, which PEP 667 has ended.
"""

import builtins
import sys
from typing import Any

plain = builtins.exec


def exec_into_locals(code: Any, *spaces: Any, **named: Any) -> None:
    """Run code as ``exec`` does; without namespaces, in the frame of the caller, which keeps new names."""
    if not spaces and not named:
        caller = sys._getframe(1)
        spaces = (caller.f_globals, caller.f_locals)
    plain(code, *spaces, **named)


if sys.version_info >= (3, 13):
    builtins.exec = exec_into_locals
