"""Survey others' pickles before building anything from them: ten bytes may ask for any amount of memory.

``survey`` runs a pickle with stand-ins for everything that it names. It compares the size of the objects
that the pickle would make with the size of its file, and collects the stated sizes of the tensors'
storages.
"""

import io
import math
import mmap
import pickle
import struct
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch

from triplet import untrusted

LONG = 1 << 16
"""Bytes of an argument beyond which a survey skips it as the content of an array."""
VIEWS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_parameter",
    "_rebuild_meta_tensor_no_storage",
    "Size",
)
"""Opcodes that allocate no memory of their own."""
LATIN1 = ("latin1", "latin-1", "latin_1", "iso-8859-1")


class StandIn:
    """Stand-in for an object, without state or behaviour."""

    depth = 0
    name = ""
    """Name of the class that it stands for."""

    def __new__(cls, *arguments: Any, **more: Any) -> "StandIn":
        if cls.called:
            cls.called(cls.name, (*arguments, *more.values()))
        return super().__new__(cls)

    called: Callable[[str, tuple[Any, ...]], None] | None = None

    def __init__(self, *arguments: Any, **more: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deeply it is nested."""

    depth = 0


class _File:
    """File that counts reads, and skips long ones."""

    def __init__(self, content: io.BytesIO | mmap.mmap) -> None:
        self.content, self.reads = content, 0

    def read(self, size: int) -> bytes:
        self.reads += 1
        if self.reads > untrusted.INSTRUCTIONS:
            raise pickle.UnpicklingError(f"more than {untrusted.INSTRUCTIONS} instructions")
        if size <= LONG:
            return self.content.read(size)
        self.content.seek(size, io.SEEK_CUR)  # beyond the end of a mapped file: ValueError
        return b""

    def readline(self) -> bytes:
        self.reads += 1
        return self.content.readline()

    def readinto(self, buffer: bytearray) -> int:
        raise pickle.UnpicklingError("unexpected read")


class Survey(pickle._Unpickler):
    """Unpickler that runs one pickle with stand-ins.

    Args:
        file: file that contains the pickle.
        size: bytes of the whole file, the limit on the size of its objects.

    Attributes:
        storages: stated bytes of each storage of a tensor, by key.
        names: names of the classes and functions in the pickle.
    """

    def __init__(self, file: _File, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self.most = max(size, 1 << 20)
        self.storages: dict[str, int] = {}
        self.names: dict[str, type[StandIn]] = {}
        self.made = 0

    def find_class(self, module: str, name: str) -> type[StandIn]:
        full = f"{module}.{name}"
        if full not in self.names:
            self.names[full] = type(
                "StandIn", (StandIn,), {"name": full, "called": staticmethod(self._call)}
            )
        return self.names[full]

    def persistent_load(self, saved: Any) -> StandIn:
        """Note one of torch's storages: ('storage', class, key, device, number of elements, ...)."""
        if not isinstance(saved, tuple) or len(saved) < 5:
            raise pickle.UnpicklingError("a reference that torch never writes")
        kind, key, count = saved[1], str(saved[2]), saved[4]
        if not isinstance(count, int) or not 0 <= count <= self.most:
            raise pickle.UnpicklingError(f"a tensor of {count} elements in a file of {self.most} bytes")
        name = getattr(kind, "name", "").rpartition(".")[2]
        width = 1 if name == "UntypedStorage" else torch.serialization.StorageType(name).dtype.itemsize
        self.storages[key] = max(self.storages.get(key, 0), count * width)
        return StandIn()

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError("an extension of pickle's")

    def _call(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Check a call against the limits of the file."""
        if name == "_codecs.encode" and (len(arguments) != 2 or arguments[1] not in LATIN1):
            raise pickle.UnpicklingError("an encoding that no writer of weights uses")
        asked = _product(arguments)
        for each in arguments:
            if isinstance(each, tuple | list) and each and all(isinstance(part, int) for part in each):
                asked = max(asked, _product(each))
                break  # the first one is the size, the second one the strides
        if asked > self.most:
            raise pickle.UnpicklingError(f"{name} of {asked:.2g} elements in a file of {self.most} bytes")
        if name.rpartition(".")[2] not in VIEWS:
            self.made += asked
            if self.made > 4 * self.most:
                raise pickle.UnpicklingError("objects of many times its own size")

    def load_frame(self) -> None:  # a frame only says how far to read ahead
        self.read(8)  # type: ignore[attr-defined]

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))  # type: ignore[attr-defined]
        self.append(bytearray(self.read(size)))  # type: ignore[attr-defined]

    def load_long_binput(self) -> None:
        (number,) = struct.unpack("<I", self.read(4))  # type: ignore[attr-defined]
        if number > untrusted.INSTRUCTIONS:
            raise pickle.UnpicklingError(f"an object numbered {number}")
        self.memo[number] = self.stack[-1]  # type: ignore[attr-defined]

    def load_put(self) -> None:
        number = int(self.readline()[:-1])  # type: ignore[attr-defined]
        if not 0 <= number <= untrusted.INSTRUCTIONS:
            raise pickle.UnpicklingError(f"an object numbered {number}")
        self.memo[number] = self.stack[-1]  # type: ignore[attr-defined]

    def load_tuple(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        self.append(_nested(items))  # type: ignore[attr-defined]

    def load_few(self, count: int) -> None:
        self.stack[-count:] = [_nested(self.stack[-count:])]  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        **pickle._Unpickler.dispatch,
        pickle.FRAME[0]: load_frame,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.LONG_BINPUT[0]: load_long_binput,
        pickle.PUT[0]: load_put,
        pickle.TUPLE[0]: load_tuple,
        pickle.TUPLE1[0]: lambda self: self.load_few(1),
        pickle.TUPLE2[0]: lambda self: self.load_few(2),
        pickle.TUPLE3[0]: lambda self: self.load_few(3),
    }


def survey(content: io.BytesIO | mmap.mmap, size: int, count: int = 1) -> Survey:
    """Survey a sequence of pickles in a file.

    Args:
        content: content of the file, positioned at the first pickle.
        size: bytes of the whole file.
        count: number of pickles.

    Returns:
        The survey of the last pickle.

    Raises:
        pickle.UnpicklingError: a pickle is damaged, or asks for more than its file can hold.
    """
    file = _File(content)
    try:
        for _ in range(count):
            found = Survey(file, size)
            found.load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise pickle.UnpicklingError(f"{type(error).__name__} {error}"[:160]) from None
    return found


def _nested(items: Iterable[Any]) -> _Tuple:
    made = _Tuple(items)
    depth = 1 + max((getattr(item, "depth", 0) for item in made), default=0)
    if depth > untrusted.PICKLE_DEPTH:
        raise pickle.UnpicklingError(f"tuples in tuples, more than {untrusted.PICKLE_DEPTH} deep")
    made.depth = depth
    return made


def _product(values: Iterable[Any]) -> int:
    numbers = [abs(value) for value in values if isinstance(value, int)]
    return math.prod(numbers) if numbers else 0
