"""Pickles of numpy arrays, read without running what may be in them."""

import pickle


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays and plain values and nothing that could run code."""

    ALLOWED = frozenset(
        (
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("_codecs", "encode"),  # how Python 3 writes bytes for Python 2; torch allows it, too
        )
    )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a weight file")
        return super().find_class(module, name)
