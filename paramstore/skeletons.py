"""Skeletons back to values; :mod:`paramstore.extras` has the format and writes them.

Reads text that anybody may have altered: must never pickle, evaluate, import what it names, or ask
for memory on its word.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from paramstore import tensors
from paramstore.arrays import array_of, scalar_of
from paramstore.errors import CorruptError, ParamStoreError

_DTYPES: Final = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}
_MALFORMED: Final = (
    AttributeError,
    KeyError,
    OverflowError,
    RuntimeError,  # RecursionError, and what torch raises
    TypeError,
    ValueError,
)


def decode(skeleton: str, fetch: Callable[[int], Tensor]) -> object:
    """Return the value of a skeleton; tensors on the CPU.

    Args:
        skeleton: What :class:`Encoder` returned.
        fetch: Returns the stored tensor of that number, a new one at each call.

    Raises:
        CorruptError: text that :class:`Encoder` did not write.
        UnsupportedExtraError: it holds an array, and NumPy is not installed.
    """
    try:
        return _Decoder(fetch).value(json.loads(skeleton))
    except ParamStoreError:
        raise
    except _MALFORMED as error:
        raise CorruptError(f"not the skeleton of a stored value: {skeleton:.200}") from error


class _Decoder:
    def __init__(self, fetch: Callable[[int], Tensor]) -> None:
        self._fetch = fetch

    def value(self, node: Any) -> Any:
        if type(node) is list:
            return [self.value(item) for item in node]
        if type(node) is not dict:
            return node
        if any(key.startswith("$") for key in node):
            ((tag, content),) = node.items()
            return _READERS[tag](self, content)
        return {key: self.value(item) for key, item in node.items()}

    def complex(self, content: Any) -> object:
        real, imag = map(self.value, content)
        return complex(real, imag)

    def tuple(self, content: Any) -> object:
        return tuple(map(self.value, content))

    def pairs(self, content: Any) -> dict[Any, Any]:
        pairs = {self.value(key): self.value(item) for key, item in content}
        if len(pairs) != len(content):
            raise ValueError("a key occurs twice")
        return pairs

    def odict(self, content: Any) -> object:
        pairs, *attributes = content
        found = OrderedDict(self.pairs(pairs))
        for values in attributes:
            vars(found).update(self.value(values))
        return found

    def counter(self, content: Any) -> object:
        return Counter(self.pairs(content))

    def tensor(self, content: Any) -> Tensor:
        dtype, shape = content["dtype"], sizes_of(content["shape"])
        data = content["data"]
        if type(data) is str:
            tensor = tensors.from_data(dtype, shape, _bytes_of(data))
        else:
            tensor = self._fetch(data)
            if tensors.dtype_name(tensor.dtype) != dtype or tensor.shape != shape:
                raise ValueError("a tensor of another dtype or shape")
        if "strides" in content:
            tensor = _restrided(tensor, sizes_of(content["strides"]))
        requires_grad = "requires_grad" in content
        if "parameter" in content:
            return torch.nn.Parameter(tensor, requires_grad)
        return tensor.requires_grad_(requires_grad)

    def data(self, content: Any) -> memoryview:
        if type(content) is str:
            return memoryview(_bytes_of(content))
        stored = self._fetch(content)
        if stored.dtype != torch.uint8 or stored.dim() != 1:
            raise ValueError("not bytes")
        return tensors.encode(stored, name="").data

    def array(self, content: Any) -> object:
        return array_of(content, self.data(content["data"]))

    def scalar(self, content: Any) -> object:
        return scalar_of(content, _bytes_of(content["data"]))


_READERS: Final[dict[str, Callable[[_Decoder, Any], Any]]] = {
    "$int": lambda _, content: int(content, 16),
    "$float": lambda _, content: float_of(content),
    "$complex": _Decoder.complex,
    "$bytes": lambda decoder, content: bytes(decoder.data(content)),
    "$tuple": _Decoder.tuple,
    "$dict": _Decoder.pairs,
    "$odict": _Decoder.odict,
    "$counter": _Decoder.counter,
    "$tensor": _Decoder.tensor,
    "$size": lambda _, content: torch.Size(sizes_of(content)),
    "$dtype": lambda _, content: _DTYPES[content],
    "$device": lambda _, content: torch.device(content),
    "$array": _Decoder.array,
    "$scalar": _Decoder.scalar,
}


# -- small forms ---------------------------------------------------------------------------------


def _bytes_of(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def float_text(value: float) -> str:
    """Return the text of a NaN, with its bits where they are not the usual ones, or of ±inf."""
    bits = struct.pack(">d", value).hex()
    return repr(value) if bits in _PLAIN_BITS else f"nan:{bits}"


def float_of(text: str) -> float:
    """Return the float of that text.

    Raises:
        ValueError: a text that :func:`float_text` does not give.
    """
    if text in ("nan", "inf", "-inf"):
        return float(text)
    prefix, _, bits = text.partition(":")
    data = bytes.fromhex(bits)
    if prefix != "nan" or len(data) != 8 or not math.isnan(struct.unpack(">d", data)[0]):
        raise ValueError("neither a NaN nor an infinity")
    value: float = struct.unpack(">d", data)[0]
    return value


_PLAIN_BITS: Final = {struct.pack(">d", float(text)).hex() for text in ("nan", "inf", "-inf")}


def sizes_of(content: Any) -> tuple[int, ...]:
    """Return the shape, or the strides, of a list of integers.

    Raises:
        ValueError: anything else, or an integer beyond 64 bits, which torch cannot even print.
    """
    if type(content) is not list or any(type(size) is not int for size in content):
        raise ValueError("not a shape")
    if not all(-(2**63) <= size < 2**63 for size in content):
        raise ValueError("a size beyond 64 bits")
    return tuple(content)


def is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Tell whether the elements fill one piece of memory, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _restrided(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if not is_dense(tuple(tensor.shape), strides):
        raise ValueError("strides that leave gaps")
    target = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    tensors.copy_into(target, tensor)
    return target
