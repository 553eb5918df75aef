"""NumPy's arrays and scalars to bytes and back, where NumPy is there at all.

Only dtypes without Python objects and without fields pass; must never import NumPy unless a stored
array asks for it.
"""

from __future__ import annotations

import math
import re
import sys
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from paramstore.errors import UnsupportedExtraError

if TYPE_CHECKING:
    import numpy as np

_KINDS: Final = "biufcmM"  # numbers, booleans, times and time differences
_DTYPE: Final = re.compile(r"[<>|][biufcmMSU]\d{1,9}(\[\d{0,9}[A-Za-z]{1,2}\])?", re.ASCII)
_TEXT: Final = "SU"  # of a fixed length: exact in arrays; a scalar loses its trailing zeros


def is_array(value: object) -> bool:
    """Tell whether it is an array, and not of a subclass."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray


def is_scalar(value: object) -> bool:
    """Tell whether it is one of NumPy's own scalars."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def array_node(array: np.ndarray[Any, Any]) -> tuple[dict[str, object], Tensor] | None:
    """Describe an array, and give its bytes as a uint8 vector that shares its memory if it can.

    Returns None for a dtype that has no stored form.
    """
    if not _is_exact(array.dtype, _KINDS + _TEXT):
        return None
    node: dict[str, object] = {"dtype": array.dtype.str, "shape": list(array.shape)}
    if array.flags.f_contiguous and not array.flags.c_contiguous:
        node["order"] = "F"
        array = array.T
    flat = array.ravel()
    if not flat.flags.writeable:  # torch warns of memory that must not be written
        flat = flat.copy()
    return node, torch.from_numpy(flat.view("u1"))


def scalar_node(scalar: np.generic) -> tuple[dict[str, object], bytes] | None:
    """Describe a scalar, and give its bytes; None for a type that has no stored form."""
    dtype = scalar.dtype
    # longlong and int64 share a code, so that the first would come back as the second.
    if not _is_exact(dtype, _KINDS) or _numpy().dtype(dtype.str).type is not type(scalar):
        return None
    return {"dtype": dtype.str}, scalar.tobytes()


def array_of(node: dict[str, Any], data: bytes | memoryview) -> np.ndarray[Any, Any]:
    """Make the array of a description and its bytes.

    Raises:
        ValueError: they do not fit together.
        UnsupportedExtraError: NumPy is not installed.
    """
    dtype = _dtype(node["dtype"], _KINDS + _TEXT)
    shape, order = node["shape"], node.get("order", "C")
    if not all(type(size) is int and size >= 0 for size in shape) or order not in ("C", "F"):
        raise ValueError("not the shape of an array")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array of another length")
    flat = _numpy().empty(math.prod(shape), dtype)
    memoryview(flat.view("u1"))[:] = data
    array: np.ndarray[Any, Any] = flat.reshape(shape, order=order)
    return array


def scalar_of(node: dict[str, Any], data: bytes) -> np.generic:
    """Make the scalar of a description and its bytes.

    Raises:
        ValueError: they do not fit together.
        UnsupportedExtraError: NumPy is not installed.
    """
    _dtype(node["dtype"], _KINDS)
    scalar: Any = array_of({**node, "shape": []}, data)[()]
    return scalar  # type: ignore[no-any-return]  # NumPy has no type for it


def _dtype(text: str, kinds: str) -> np.dtype[Any]:
    # NumPy compiles a text of several dtypes, and has limits of its own for others.
    if _DTYPE.fullmatch(text) is None:
        raise ValueError(f"not the dtype of a stored array: {text:.99}")
    dtype: np.dtype[Any] = _numpy().dtype(text)
    if dtype.str != text or not _is_exact(dtype, kinds):
        raise ValueError(f"not the dtype of a stored array: {text}")
    return dtype


def _is_exact(dtype: np.dtype[Any], kinds: str) -> bool:
    """Tell whether the text of a dtype says all there is to it."""
    return dtype.kind in kinds and dtype.itemsize > 0 and _numpy().dtype(dtype.str) == dtype


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise UnsupportedExtraError(
            "the stored value holds a NumPy array, and NumPy is not installed: pip install numpy"
        ) from error
    return numpy
