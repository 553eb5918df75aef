"""Tensors to safetensors bytes and back, bit for bit, with their fingerprint and digest.

Each tensor becomes a valid safetensors file of its own, cut into chunks. This module must never
import SQL, and never reads a byte of memory through anything but the tensor that owns it.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import torch
from blake3 import blake3
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from xxhash import xxh3_128_digest

from paramstore.errors import CorruptError, UnsupportedTensorError
from paramstore.header import (
    DTYPES,
    NAMES,
    Layout,
    check_shape,
    data_bytes,
    dtype_name,
    layout,
    parse_header,
    torch_dtype,
)
from paramstore.modes import outside_modes

__all__ = [
    "CHUNK",
    "Encoded",
    "Filler",
    "check_storable",
    "copy_into",
    "decode",
    "dtype_name",
    "empty",
    "encode",
    "fill",
    "from_data",
    "outside_modes",
    "parse_header",
    "shares_memory",
    "torch_dtype",
    "unfillable",
    "unstorable",
    "view",
]

if sys.byteorder != "little":
    raise ImportError("paramstore copies tensors byte by byte, and its format is little-endian")

CHUNK: Final = 1 << 20
"""Bytes of tensor data in one chunk; the first chunk carries the header as well."""

_PLAIN: Final = (Tensor, torch.nn.Parameter)
_STRIDED: Final = torch.strided
_NOTHING: Final = memoryview(bytearray())


class Encoded:
    """A tensor as bytes: a safetensors header and a view of the data. Treat it as immutable.

    **Ownership**: ``data`` is the tensor's own memory where that is contiguous and on the CPU,
    else one copy; it and its slices keep that memory alive, not its content. Take ``fingerprint``,
    ``digest`` and ``chunks`` before the tensor is trained any further.
    """

    __slots__ = ("_hasher", "_seed", "data", "dtype", "header", "nbytes", "owner", "shape")

    def __init__(self, layout: Layout, data: memoryview, owner: Tensor) -> None:
        self.header, self._seed, self._hasher, self.dtype, self.shape = layout
        """Length and JSON of the safetensors header, padded so that data is 8-byte aligned; name of
        the dtype, ``C128`` for complex128; shape of the tensor."""
        self.data = data
        """The tensor's bytes."""
        self.nbytes = len(self.header) + len(data)
        """Bytes of header and data."""
        self.owner = owner
        """The tensor whose memory ``data`` is: the one that was given, or its copy."""

    def fingerprint(self) -> bytes:
        """Hash dtype, shape and data with XXH3-128 (16 bytes); fast, and not an address.

        The header enters as the seed, so that equal bytes in another shape differ.
        """
        return xxh3_128_digest(self.data, self._seed)

    def digest(self) -> bytes:
        """Hash header and data with BLAKE3-256 (32 bytes)."""
        return self._hasher.copy().update(self.data).digest()

    def chunks(self) -> list[memoryview]:
        """Give views of the data, ``CHUNK`` bytes each, one empty view where there is none.

        Joined behind the header they are a valid safetensors file.
        """
        data = self.data
        if len(data) <= CHUNK:
            return [data]
        return [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]


def encode(tensor: Tensor, *, name: str) -> Encoded:
    """Encode a dense tensor of any device, shape and strides.

    Args:
        tensor: Conjugate and negative views, expanded and inference tensors are fine.
        name: What errors call it.

    Raises:
        UnsupportedTensorError: a sparse, quantised, nested, meta, fake, sharded or other wrapped
            tensor, or a dtype without a stored form.
    """
    return view(tensor) or _encode_odd(tensor, name)


def view(tensor: Tensor) -> Encoded | None:
    """Encode a tensor whose memory can be read as it is; None where that would take a copy."""
    # A commit encodes every parameter, so the common case asks as little as it can (each question
    # to a tensor costs 50 ns) and everything odd, exceptions included, goes the long way.
    if type(tensor) in _PLAIN and tensor.layout is _STRIDED and tensor.is_contiguous():
        dtype, views = tensor.dtype, tensor.is_conj() or tensor.is_neg() or tensor.is_nested
        if tensor.is_cpu and dtype in NAMES and not views:
            pointer = _pointer(tensor)
            if pointer:
                return Encoded(layout(dtype, tensor.shape), _memory(tensor, pointer), tensor)
    return None


def _memory(tensor: Tensor, pointer: int) -> memoryview:
    """View the memory of a tensor as bytes; every slice of the view keeps the tensor alive."""
    array = _array(tensor.nbytes).from_address(pointer)
    array.tensor = tensor
    return memoryview(array).cast("B")


@lru_cache(maxsize=1024)
def _array(nbytes: int) -> Any:
    # The slot spares every array a dictionary.
    return type("_Array", (ctypes.c_ubyte * nbytes,), {"__slots__": ("tensor",)})


def _pointer(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, ValueError):  # no storage, or not initialised
        return 0


def _encode_odd(tensor: Tensor, name: str) -> Encoded:
    check_storable(tensor, repr(name))
    dense = tensor if is_plain_memory(tensor) else outside_modes(_dense_copy, tensor)
    return Encoded(layout(tensor.dtype, tensor.shape), _view(dense), dense)


def _dense_copy(tensor: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        copy_into(copy, tensor)  # resolves views, strides and device at once
    return copy


def copy_into(target: Tensor, source: Tensor) -> None:
    """Copy one tensor into another of the same dtype and shape, whatever their strides."""
    # A tensor made in inference mode can only be written there; leaving it switches gradients on.
    with torch.inference_mode(target.is_inference()), torch.no_grad():
        if target.dtype == DTYPES["F4"]:  # torch 2.13 has no kernel; those of all others are exact
            target, source = target.view(torch.uint8), source.view(torch.uint8)
        target.copy_(source)


def is_plain_memory(tensor: Tensor) -> bool:
    """Tell whether the elements lie in the CPU's memory as they are, one after the other."""
    if not (tensor.is_cpu and tensor.is_contiguous()) or tensor.is_conj() or tensor.is_neg():
        return False
    return bool(_pointer(tensor)) or not tensor.numel()  # a zero tensor has neither


def check_storable(tensor: Tensor, what: str) -> None:
    """Check that all elements of a tensor are in memory of its own, without copying it.

    Raises:
        UnsupportedTensorError: otherwise; the text begins with ``what``.
    """
    advice = _advice(tensor)
    if advice is not None:
        raise UnsupportedTensorError(f"{what} cannot be stored: it is {advice}")


def _advice(tensor: Tensor) -> str | None:
    kind, wrapper = type(tensor).__name__, is_traceable_wrapper_subclass(tensor)
    if kind in ("DTensor", "ShardedTensor"):
        return f"sharded ({kind}); store tensor.full_tensor(), or tensor.to_local() on each rank"
    if kind == "FakeTensor":
        return "a fake tensor without data; leave FakeTensorMode and store the real one"
    advice = unstorable(tensor)
    if advice is not None:
        return advice
    if wrapper:
        return f"a wrapper ({kind}); store the plain tensors that it is made of"
    return _memory_advice(tensor)


def unstorable(tensor: Tensor) -> str | None:
    """Say why no commit could ever store a tensor, as half a sentence; None where one could.

    What only :func:`check_storable` refuses (sharded, wrapped, without storage just now) may be
    trained, and be something else by the time of a commit.
    """
    if is_lazy(tensor):
        return "not initialised yet; run one batch through its module first"
    if tensor.is_nested:
        return "a nested tensor; store tensor.to_padded_tensor(…), or its parts one by one"
    if tensor.layout is not _STRIDED:
        return f"sparse or opaque ({tensor.layout}); store tensor.to_dense()"
    if tensor.is_meta:
        return "on the meta device, without data; give it some with module.to_empty(device=…)"
    return None


def _memory_advice(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype}); store tensor.dequantize(), or tensor.int_repr()"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "inside torch.func or vmap, where it has no value; store it outside"
    if tensor.dtype not in NAMES or (tensor.dtype == DTYPES["F4"] and not tensor.dim()):
        return f"of dtype {tensor.dtype}, which safetensors lacks; convert it with tensor.to(…)"
    zeros = tensor._is_zerotensor()
    if tensor.numel() and not zeros and not _pointer(tensor):
        return "without data: its storage is empty (FSDP does that, and storage.resize_(0))"
    return None


def shares_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor is expanded, so that several of its elements are one in memory."""
    strided = tensor.layout is torch.strided
    return strided and torch._debug_has_internal_overlap(tensor) == 1


def unfillable(tensor: Tensor) -> str | None:
    """Say why a :class:`Filler` refuses a tensor, as half a sentence; None where it does not."""
    advice = _advice(tensor)
    if advice is not None:
        return f"it is {advice}"
    return "its elements share memory; clone it first" if shares_memory(tensor) else None


def empty(dtype: str, shape: tuple[int, ...], *, device: torch.device | str = "cpu") -> Tensor:
    """Make an uninitialised contiguous tensor of that safetensors dtype name and shape.

    Raises:
        CorruptError: no such dtype.
    """
    return torch.empty(shape, dtype=torch_dtype(dtype), device=device)


class Filler:
    """Fills an existing tensor with the chunks of a blob, in order.

    A contiguous tensor on the CPU is written directly, so it is half full when something goes
    wrong in between; any other gets a staging copy, moved over by ``close``. The tensor stays the
    same object and its version counter says that it changed.
    """

    def __init__(self, target: Tensor) -> None:
        """Prepare to fill ``target``.

        Raises:
            UnsupportedTensorError: a tensor that could not have been stored, or an expanded one,
                whose elements share memory.
        """
        check_storable(target, "the tensor to fill")
        if shares_memory(target):
            raise UnsupportedTensorError(
                "the tensor to fill is expanded, so its elements share memory; clone it first"
            )
        self.touched = False
        """Whether any element of the tensor may have been written."""
        self._target = target
        self._header = layout(target.dtype, target.shape)[0]
        self._direct = is_plain_memory(target)
        self._buffer = target if self._direct else empty(NAMES[target.dtype], target.shape)
        self._view = _view(self._buffer)
        self._filled = -1  # nothing yet, not even the header

    def write(self, chunk: bytes | memoryview) -> None:
        """Append the next chunk; the first carries the header.

        Raises:
            CorruptError: a header of another dtype or shape, or more bytes than the tensor has.
        """
        data = memoryview(chunk)
        if self._filled < 0:
            data = data[self._check_header(chunk) :]
            self._filled = 0
            if self._direct:
                increment_version(self._target)  # before a memcpy that autograd does not see
        end = self._filled + len(data)
        if end > len(self._view):
            raise CorruptError(f"a stored tensor has at least {end} bytes, not {len(self._view)}")
        self._copy(data, chunk)
        self._filled = end

    def _copy(self, data: memoryview, chunk: bytes | memoryview) -> None:
        self.touched |= self._direct and bool(data)
        if isinstance(chunk, bytes) and data:
            # memmove lets other threads run, which the assignment to a memoryview does not.
            source = ctypes.cast(ctypes.c_char_p(chunk), ctypes.c_void_p).value or 0
            to = self._buffer.data_ptr() + self._filled
            ctypes.memmove(to, source + len(chunk) - len(data), len(data))
        else:
            self._view[self._filled : self._filled + len(data)] = data

    def close(self) -> None:
        """Finish; only now is a strided tensor or one on another device filled.

        Raises:
            CorruptError: fewer bytes than the tensor has.
        """
        if self._filled != len(self._view):
            raise CorruptError(
                f"a stored tensor has {max(self._filled, 0)} bytes, not {len(self._view)}"
            )
        if not self._direct:
            self.touched = True
            copy_into(self._target, self._buffer)

    def _check_header(self, chunk: bytes | memoryview) -> int:
        if chunk[: len(self._header)] == self._header:
            return len(self._header)
        dtype, shape, _ = parse_header(chunk)
        raise CorruptError(
            f"the stored tensor is {dtype} of shape {shape}, the one to fill is "
            f"{NAMES[self._target.dtype]} of shape {tuple(self._target.shape)}"
        )


def fill(fillers: Iterable[Filler], chunks: Iterable[bytes], digest: bytes | None) -> bool:
    """Fill tensors with one blob; tell whether it was whole and, if given, of that digest."""
    fillers, hasher = list(fillers), blake3()
    try:
        for chunk in chunks:
            for filler in fillers:
                filler.write(chunk)
            if digest is not None:
                hasher.update(chunk)
        for filler in fillers:
            filler.close()
    except CorruptError:
        return False
    return digest is None or hasher.digest() == digest


def _view(tensor: Tensor) -> memoryview:
    return _memory(tensor, tensor.data_ptr()) if tensor.numel() else _NOTHING


def decode(blob: bytes | memoryview) -> Tensor:
    """Make a tensor from the joined chunks of a blob, copying the bytes.

    Raises:
        CorruptError: bytes that :func:`encode` did not write.
    """
    dtype, shape, offset = parse_header(blob)
    return from_data(dtype, shape, memoryview(blob)[offset:])


def from_data(dtype: str, shape: tuple[int, ...], data: bytes | memoryview) -> Tensor:
    """Make a tensor of that dtype name and shape from its bytes alone, copying them.

    Raises:
        CorruptError: no such dtype or shape, or another number of bytes than they need.
    """
    torch_dtype(dtype)
    check_shape(dtype, shape)
    if len(data) != data_bytes(dtype, shape):  # checked before memory is asked for
        raise CorruptError(
            f"a stored tensor of dtype {dtype} and shape {shape} has {data_bytes(dtype, shape)} "
            f"bytes, found {len(data)}"
        )
    tensor = empty(dtype, shape)
    _view(tensor)[:] = data
    return tensor
