"""Read pickles of numpy arrays without running code in them."""

import mmap
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from triplet.weights import pickles


class _Array:
    """Stand-in for numpy.ndarray: a pickle that called the real one could allocate any amount of memory."""


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Return the empty array with which numpy's pickles begin; the content follows as its state."""
    return np.ndarray((0,), np.dtype("b"))


def _encode(text: str, encoding: str) -> bytes:
    """Encode as Python 3 pickles bytes for Python 2; other codecs could expand their input."""
    if encoding not in pickles.LATIN1:
        raise pickle.UnpicklingError(f"the codec {encoding!r:.20} is not allowed in a weight file")
    return text.encode("latin1")


_INSTEAD: dict[str, object] = {"ndarray": _Array, "_reconstruct": _reconstruct, "encode": _encode}


class ArraysOnly(pickle.Unpickler):
    """Unpickler that accepts numpy arrays and plain values, and nothing that could run code."""

    ALLOWED = frozenset(
        (
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),
        )
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
        return _INSTEAD.get(name) or super().find_class(module, name)


def read(path: Path, encoding: str = "ASCII") -> Any:
    """Load a pickle of arrays and plain values.

    Args:
        path: path of the file.
        encoding: encoding of its strings; latin1 if Python 2 wrote it.

    Raises:
        pickle.UnpicklingError: it is damaged, has more than arrays and plain values, or asks for more
            memory than its file can hold.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            pickles.survey(content, len(content))
            return ArraysOnly(file, encoding=encoding).load()
    except (pickle.UnpicklingError, OSError):
        raise
    except Exception as error:  # a damaged pickle or an empty file may raise anything
        raise pickle.UnpicklingError(f"{type(error).__name__} {error}"[:160]) from None
