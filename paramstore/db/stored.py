"""The bytes of one stored tensor, and what its row says of them.

Reads a header strictly and hashes the rest; must never make a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from blake3 import blake3

from paramstore.db.blobs import parse_shape
from paramstore.errors import CorruptError

UNREADABLE: Final = "its pages cannot be read"


class StoredBlob(NamedTuple):
    """The row of a tensor's bytes."""

    id: int
    digest: bytes
    nbytes: int
    dtype: str
    shape: str


class Check:
    """The bytes of one tensor as they pass."""

    def __init__(self) -> None:
        self.failed = False
        """Whether they could not be read to their end."""
        self._hasher = blake3()
        self._first = b""
        self._nbytes = 0

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Hash chunks, and pass them on."""
        try:
            for chunk in chunks:
                self._first = self._first or chunk
                self._nbytes += len(chunk)
                self._hasher.update(chunk)
                yield chunk
        except CorruptError:
            self.failed = True

    def verdict(self, blob: StoredBlob) -> str | None:
        """Say what is wrong; None where nothing is."""
        if self.failed:
            return UNREADABLE
        if self._nbytes != blob.nbytes:
            return f"it has {self._nbytes} of {blob.nbytes} bytes"
        if self._hasher.digest() != blob.digest:
            return "its bytes have another digest"
        if not is_described(self._first, blob):
            return f"its row says {blob.dtype} {blob.shape}, its bytes do not"
        return None


def is_described(first_chunk: bytes, blob: StoredBlob) -> bool:
    """Whether dtype and shape in the header of a tensor are those of its row."""
    try:
        shape = parse_shape(blob.shape)
    except (CorruptError, TypeError):
        return False
    return described_by(first_chunk, blob.nbytes) == (blob.dtype, shape)


def described_by(first_chunk: bytes, nbytes: int) -> tuple[str, tuple[int, ...]] | None:
    """Return dtype and shape of a tensor of so many bytes; None where it has no such header."""
    end = 8 + int.from_bytes(first_chunk[:8], "little")
    try:
        header = json.loads(first_chunk[8:end])
        stored = header["value"]
        if stored["data_offsets"] != [0, nbytes - end]:
            return None
        return _described(header.get("__metadata__"), stored["dtype"], list(stored["shape"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return None


def _described(metadata: Any, dtype: str, shape: list[int]) -> tuple[str, tuple[int, ...]]:
    if metadata is not None:  # C128 as its real view, with a last dimension of 2
        dtype, shape = metadata["dtype"], shape[:-1]
    elif dtype == "F4":  # two elements in each byte
        shape[-1] //= 2
    return dtype, tuple(shape)
