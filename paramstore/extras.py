"""Plain values and the state of optimisers to a JSON skeleton and tensors, and back, type-exact.

What JSON has stands for itself. Everything else is an object with one key that begins with ``$``:

    {"$tuple": [1, 2]}                            {"$dict": [[0, "a"], …]}  keys that are not text
    {"$float": "nan"}                             {"$odict": [[["a", 1], …]]}  OrderedDict
    {"$int": "0x…"}  beyond 64 bits               {"$counter": [["a", 2], …]}
    {"$complex": [0.0, 1.0]}                      {"$size": [2, 3]}  torch.Size
    {"$bytes": "<base64>"}                        {"$dtype": "float32"}, {"$device": "cpu"}
    {"$tensor": {"dtype": "F32", "shape": [2], "data": "<base64>"}}
    {"$array": {"dtype": "<f8", "shape": [2], "data": …}}, {"$scalar": {"dtype": "<f8", "data": …}}

Data of more than 4 KiB is an integer in its place: the number of a tensor that is stored beside the
skeleton. This module must never pickle, evaluate, or import what a text names.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from paramstore import tensors
from paramstore.arrays import array_node, is_array, is_scalar, scalar_node
from paramstore.errors import UnsupportedExtraError, UnsupportedTensorError
from paramstore.skeletons import decode, float_text, is_dense

__all__ = ["INLINE", "MAX_DEPTH", "Encoder", "decode"]

INLINE: Final = 4096
"""Bytes up to which data stands in the skeleton itself."""
MAX_DEPTH: Final = 100
"""How deep containers may be nested; a cycle is found by its ids long before."""

_KEYS: Final = (str, int, bool, type(None), float, tuple)


class Encoder:
    """Turns values into skeletons, and collects the large tensors of all of them.

    **Ownership**: ``tensors`` are the caller's own or share memory with the caller's arrays.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        """The tensors that the skeletons refer to by their index here."""
        self._numbers: dict[int, int] = {}  # id of such a tensor: its index
        self._path: list[str] = []
        self._open: set[int] = set()  # ids of the containers that the path goes through

    def encode(self, value: object, path: str) -> str:
        """Return the skeleton of a value.

        Args:
            value: None, bool, int, float, complex, str, bytes, list, tuple, dict, OrderedDict,
                Counter, tensors, torch's Size, dtype and device, NumPy's arrays and scalars.
            path: What errors call it, e.g. ``extras['epoch']``.

        Raises:
            UnsupportedExtraError: anything else, subclasses included, or a cycle; the text names
                the place, e.g. ``extras['a'][3]``.
        """
        self._path = [path]
        self._open = set()
        return json.dumps(self._node(value), separators=(",", ":"), allow_nan=False)

    def _node(self, value: Any) -> Any:
        # Exact types only: an IntEnum, a namedtuple or a defaultdict would come back as less.
        write = _WRITERS.get(type(value))
        if write is not None:
            return write(self, value)
        if is_array(value):
            return self._array(value)
        if is_scalar(value):
            return self._scalar(value)
        raise self._refuse(
            f"is of type {type(value).__module__}.{type(value).__qualname__}, which has no stored "
            f"form; give plain values, containers of them, or tensors"
        )

    # -- scalars -------------------------------------------------------------------

    def _plain(self, value: object) -> object:
        return value

    def _int(self, value: int) -> object:
        return value if -(2**63) <= value < 2**63 else {"$int": hex(value)}

    def _float(self, value: float) -> object:
        return value if math.isfinite(value) else {"$float": float_text(value)}

    def _complex(self, value: complex) -> object:
        return {"$complex": [self._float(value.real), self._float(value.imag)]}

    def _str(self, value: str) -> str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise self._refuse("holds a lone surrogate, which no text file can") from None
        return value

    def _bytes(self, value: bytes) -> object:
        if len(value) <= INLINE:
            return {"$bytes": _base64(value)}
        return {"$bytes": self._data(torch.frombuffer(bytearray(value), dtype=torch.uint8))}

    def _dtype(self, value: torch.dtype) -> object:
        return {"$dtype": str(value)}

    def _device(self, value: torch.device) -> object:
        return {"$device": str(value)}

    # -- containers ----------------------------------------------------------------

    @contextmanager
    def _inside(self, container: object) -> Iterator[None]:
        if id(container) in self._open:
            raise self._refuse("contains itself")
        if len(self._open) == MAX_DEPTH:
            raise self._refuse(f"is nested deeper than {MAX_DEPTH} containers")
        self._open.add(id(container))
        yield
        self._open.remove(id(container))

    def _item(self, step: object, value: object) -> Any:
        self._path.append(f"[{step!r}]")
        node = self._node(value)
        self._path.pop()
        return node

    def _list(self, value: Iterable[object]) -> list[object]:
        with self._inside(value):
            return [self._item(index, item) for index, item in enumerate(value)]

    def _tuple(self, value: tuple[object, ...]) -> object:
        return {"$tuple": self._list(value)}

    def _size(self, value: torch.Size) -> object:
        return {"$size": list(value)}

    def _dict(self, value: dict[Any, object]) -> object:
        if any(type(key) is not str or key.startswith("$") for key in value):
            return {"$dict": self._pairs(value)}
        with self._inside(value):
            return {self._key(key): self._item(key, item) for key, item in value.items()}

    def _odict(self, value: OrderedDict[Any, object]) -> object:
        content: list[object] = [self._pairs(value)]
        if attributes := vars(value):  # Module.state_dict keeps its versions in _metadata
            content.append(self._dict(attributes))
        return {"$odict": content}

    def _counter(self, value: Counter[Any]) -> object:
        return {"$counter": self._pairs(value)}

    def _pairs(self, value: dict[Any, Any]) -> list[Any]:
        with self._inside(value):
            return [[self._key(key), self._item(key, item)] for key, item in value.items()]

    def _key(self, key: object) -> Any:
        self._path.append(f"[{key!r}]")
        if type(key) not in _KEYS:
            raise self._refuse(
                f"is a key of type {type(key).__qualname__}, which has no stored form"
            )
        if type(key) is tuple:
            node: object = {"$tuple": [self._key(part) for part in key]}
        else:
            node = self._node(key)
        self._path.pop()
        return node

    # -- tensors and arrays --------------------------------------------------------

    def _data(self, tensor: Tensor) -> object:
        if tensor.nbytes <= INLINE:
            return _base64(tensors.encode(tensor, name="").data)
        number = self._numbers.setdefault(id(tensor), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
        return number

    def _tensor(self, value: Tensor) -> object:
        self._check(value)
        node: dict[str, object] = {
            "dtype": tensors.dtype_name(value.dtype),
            "shape": list(value.shape),
        }
        if value.requires_grad and value.is_leaf:
            node["requires_grad"] = True
        if type(value) is torch.nn.Parameter:
            node["parameter"] = True
        if not value.is_contiguous() and is_dense(value.shape, value.stride()):
            node["strides"] = list(value.stride())
        return {"$tensor": {**node, "data": self._data(value)}}

    def _check(self, value: Tensor) -> None:
        try:
            tensors.check_storable(value, "".join(self._path))
        except UnsupportedTensorError as error:
            raise UnsupportedExtraError(str(error)) from error

    def _array(self, value: Any) -> object:
        described = array_node(value)
        if described is None:
            raise self._refuse(f"is an array of dtype {value.dtype}, which has no stored form")
        node, data = described
        return {"$array": {**node, "data": self._data(data)}}

    def _scalar(self, value: Any) -> object:
        described = scalar_node(value)
        if described is None:
            raise self._refuse(f"is a scalar of {type(value)}, which has no stored form")
        node, data = described
        return {"$scalar": {**node, "data": _base64(data)}}

    def _refuse(self, why: str) -> UnsupportedExtraError:
        return UnsupportedExtraError(f"{''.join(self._path)} {why}")


def _base64(data: bytes | memoryview) -> str:
    return base64.b64encode(data).decode()


_WRITERS: Final[dict[type, Callable[[Encoder, Any], Any]]] = {
    type(None): Encoder._plain,
    bool: Encoder._plain,
    int: Encoder._int,
    float: Encoder._float,
    complex: Encoder._complex,
    str: Encoder._str,
    bytes: Encoder._bytes,
    list: Encoder._list,
    tuple: Encoder._tuple,
    dict: Encoder._dict,
    OrderedDict: Encoder._odict,
    Counter: Encoder._counter,
    Tensor: Encoder._tensor,
    torch.nn.Parameter: Encoder._tensor,
    torch.Size: Encoder._size,
    torch.dtype: Encoder._dtype,
    torch.device: Encoder._device,
}
