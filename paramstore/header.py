"""The header of a stored tensor: its dtype and shape in safetensors' own form, strictly read.

Format: https://github.com/huggingface/safetensors, `safetensors/src/tensor.rs`. This module must
never touch the data of a tensor, and never ask for memory on the word of a header.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Final, NoReturn

import torch
from blake3 import blake3
from xxhash import xxh64_intdigest

from paramstore.errors import CorruptError, UnsupportedTensorError

DTYPES: Final = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F4": torch.float4_e2m1fn_x2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
    "C128": torch.complex128,  # safetensors lacks it: its real view [..., 2] as F64, marked
}
"""safetensors' name of each dtype that can be stored, and one of our own."""
NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
"""The other way round."""
Layout = tuple[bytes, int, blake3, str, tuple[int, ...]]
_MAX_HEADER: Final = 1 << 16  # thousands of dimensions


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a dtype (``F32``), or ``C128``.

    Raises:
        UnsupportedTensorError: a dtype without a stored form.
    """
    try:
        return NAMES[dtype]
    except KeyError:
        raise UnsupportedTensorError(f"{dtype} has no stored form: safetensors lacks it") from None


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype of that safetensors name.

    Raises:
        CorruptError: no such name.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise CorruptError(f"{name!r} is not the name of a stored dtype") from None


@lru_cache(maxsize=8192)
def layout(dtype: torch.dtype, shape: torch.Size) -> Layout:
    """Return what tensors that are alike share.

    The header; as a seed for fingerprints, a 64-bit hash of it; what hashes digests, the header
    taken in; safetensors' name of the dtype; the shape.
    """
    name, sizes = NAMES[dtype], tuple(shape)
    header = _header(name, sizes)
    return header, xxh64_intdigest(header), blake3(header), name, sizes


def _header(name: str, shape: tuple[int, ...]) -> bytes:
    entry: dict[str, object] = {"dtype": name, "shape": list(shape)}
    entry["data_offsets"] = [0, data_bytes(name, shape)]
    fields: dict[str, object] = {"value": entry}
    if name == "C128":
        entry |= {"dtype": "F64", "shape": [*shape, 2]}
        fields = {"__metadata__": {"dtype": "C128"}, **fields}
    elif name == "F4":  # two elements in each byte; safetensors counts elements, torch bytes
        entry["shape"] = [*shape[:-1], 2 * shape[-1]]
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def data_bytes(name: str, shape: tuple[int, ...]) -> int:
    """Return how many bytes of data a tensor of that dtype name and shape has."""
    return math.prod(shape) * DTYPES[name].itemsize


def parse_header(first_chunk: bytes | memoryview) -> tuple[str, tuple[int, ...], int]:
    """Read dtype name, shape and the offset of the data from the first chunk of a blob.

    Only a header exactly as :func:`encode` writes it passes, so nothing in it can surprise; the
    caller still has to compare the length that it implies with the bytes it has.

    Raises:
        CorruptError: anything else.
    """
    size = int.from_bytes(first_chunk[:8], "little")
    if len(first_chunk) < 8 or not 0 < size <= min(_MAX_HEADER, len(first_chunk) - 8):
        _refuse_header("its length does not fit")
    name, shape = _parsed(bytes(first_chunk[: 8 + size]))
    return name, shape, 8 + size


@lru_cache(maxsize=8192)
def _parsed(header: bytes) -> tuple[str, tuple[int, ...]]:
    try:
        name, shape = _read_fields(json.loads(header[8:].decode()))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise CorruptError(f"not the header of a stored tensor: {error!r}") from error
    check_shape(name, shape)
    if _header(name, shape) != header:
        _refuse_header("it is not in the form that paramstore writes")
    return name, shape


def _read_fields(fields: dict[str, dict[str, object]]) -> tuple[str, tuple[int, ...]]:
    name, sizes = fields["value"]["dtype"], fields["value"]["shape"]
    if not isinstance(sizes, list) or not set(map(type, sizes)) <= {int}:
        raise ValueError("no shape")
    if "__metadata__" in fields:
        name, sizes = fields["__metadata__"]["dtype"], sizes[:-1]
    if name == "F4":
        sizes = [*sizes[:-1], sizes[-1] // 2]
    if not isinstance(name, str) or name not in DTYPES:
        raise ValueError("no dtype")
    return name, tuple(sizes)


def check_shape(name: str, shape: tuple[int, ...]) -> None:
    """Check that torch can have a tensor of that dtype name and shape.

    Raises:
        CorruptError: otherwise.
    """
    possible = all(size >= 0 for size in shape) and data_bytes(name, shape) < 2**63
    if possible and 0 in shape:
        try:
            torch.empty(shape)  # takes no memory, and knows which of these shapes are possible
        except (RuntimeError, TypeError, OverflowError):
            possible = False
    if not possible:
        raise CorruptError(f"a stored tensor cannot have the shape {shape!s:.200}")


def _refuse_header(why: str) -> NoReturn:
    raise CorruptError(f"not the header of a stored tensor: {why}")
