"""Copies of tensors, taken in one go into memory that is kept and filled again.

The first copy into fresh pages takes 5 to 30 times as long as one into pages used before. Must
never hand out a copy that is still being made, and never look at what it copies.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from ctypes import memmove
from typing import Any, Final

import torch
from torch import Tensor

from paramstore.header import DTYPES, NAMES
from paramstore.sharing import share
from paramstore.tensors import check_storable, copy_into, is_plain_memory

_PLAIN: Final = (Tensor, torch.nn.Parameter)
_WITHOUT_COPY: Final = DTYPES["F4"]
"""A dtype that ``copy_`` does not know."""
_PIECE: Final = 1 << 20
"""Bytes that one thread copies at a time of a large tensor."""
_Piece = tuple[int, int, int]
"""Addresses to copy to and from, and how many bytes."""
_as_plain = torch._C.DisableTorchFunctionSubclass
"""Keeps subclasses of Tensor from having a say: their bytes are copied, whatever they do."""


class Staging:
    """Memory for the copies of pending commits.

    **Threads**: one copies; any may release.

    **Ownership**: keeps the memory of released copies for the next ones, as many as were ever held
    at once. A tensor that the next copy in that memory does not have gives its part up.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Copies] = []
        self._all: list[Copies] = []

    @property
    def nbytes(self) -> int:
        """Bytes of memory for copies, in use or kept."""
        with self._lock:
            return sum(copies.nbytes for copies in self._all)

    def copy(self, sources: Mapping[Any, Tensor]) -> Copies:
        """Copy tensors of any device and strides; all copies are whole when it returns.

        Args:
            sources: Tensors by keys; the memory of a key is used again where dtype and shape fit.

        Raises:
            UnsupportedTensorError: a tensor without a stored form, named by its key.
        """
        with self._lock:
            if not self._free:
                self._free.append(Copies())
                self._all += self._free
            copies = self._free.pop()
        try:
            copies.fill(sources)
        except BaseException:
            self.release(copies)
            raise
        return copies

    def release(self, copies: Copies) -> None:
        """Take memory back; nothing may read those copies any more."""
        with self._lock:
            self._free.append(copies)


class Copies:
    """Copies of tensors: contiguous, on the CPU, without a gradient."""

    def __init__(self) -> None:
        self.tensors: dict[Any, Tensor] = {}
        """By the key of what they are copies of."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def fill(self, sources: Mapping[Any, Tensor]) -> None:
        """Replace all copies."""
        kept = self.tensors
        self.tensors = {key: _slot(kept.get(key), key, t) for key, t in sources.items()}
        pieces: list[_Piece] = []
        issued, odd = [], []
        for slot, tensor in zip(self.tensors.values(), sources.values(), strict=True):
            if type(tensor) in _PLAIN and is_plain_memory(tensor):
                pieces += _pieces(slot, tensor)
            elif tensor.dtype != _WITHOUT_COPY and (tensor.is_cpu or tensor.is_cuda):
                issued.append((slot, tensor))
            else:  # there is no way to wait for its copy, among many that are under way
                odd.append((slot, tensor))
        with torch.no_grad(), _as_plain():
            if issued:  # first, because a GPU makes them while the CPU makes the others
                slots, tensors = map(list, zip(*issued, strict=True))
                torch._foreach_copy_(slots, tensors, non_blocking=True)
            share(_move, pieces, sum(nbytes for _, _, nbytes in pieces))
            for slot, tensor in odd:
                copy_into(slot, tensor)
            for device in {tensor.device for tensor in sources.values() if tensor.is_cuda}:
                torch.cuda.current_stream(device).synchronize()


def _pieces(slot: Tensor, tensor: Tensor) -> Iterator[_Piece]:
    """Cut a tensor, so that several threads copy a large one."""
    to, source, nbytes = slot.data_ptr(), tensor.data_ptr(), slot.nbytes
    for start in range(0, nbytes, _PIECE):
        yield to + start, source + start, min(_PIECE, nbytes - start)


def _move(pieces: Sequence[_Piece]) -> Sequence[_Piece]:
    # Torch would share every tensor among all its threads and wait for each: one core that somebody
    # else is using, a loader of data, holds up every copy (268 MB: 35 ms became 120, or seconds).
    for piece in pieces:
        memmove(*piece)
    return pieces


def _slot(kept: Tensor | None, key: object, source: Tensor) -> Tensor:
    """Find memory for a copy."""
    if not _is_dense(source):
        check_storable(source, repr(key))
    if kept is not None and kept.dtype == source.dtype and kept.shape == source.shape:
        return kept
    # Pinned, or the copies from a GPU would be made one after the other.
    return torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=source.is_cuda)


def _is_dense(tensor: Tensor) -> bool:
    """Tell of most tensors that there is no need for the many questions of `check_storable`."""
    return bool(
        type(tensor) in _PLAIN
        and tensor.layout is torch.strided
        and tensor.dtype in NAMES
        and (tensor.is_cpu or tensor.is_cuda)
        and not tensor.is_nested
        and (tensor.data_ptr() or not tensor.numel())
    )
