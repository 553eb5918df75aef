"""Tensors on their way into the database: encoded, hashed and described in batches.

Reads tensors and never changes one; knows nothing of scopes and snapshots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from torch import Tensor

from paramstore import tensors
from paramstore.db.repository import NewEntry
from paramstore.statistics import describe

if TYPE_CHECKING:
    from torch.distributions.transforms import Transform

    from paramstore.snapshot import Statistics
    from paramstore.working_set import Item

BATCH_BYTES: Final = 8 << 20
"""Tensors hashed and handed over together; the first write waits for one such batch."""
BATCH_TENSORS: Final = 4096


class Job:
    """One tensor that may have to be written; a `NewBlob` once it is hashed.

    **Ownership**: keeps the tensor; a copy of one that is strided, or on another device, until
    it is written.
    """

    __slots__ = (
        "_encoded",
        "_fingerprint",
        "blob_id",
        "digest",
        "dtype",
        "header",
        "item",
        "name",
        "nbytes",
        "seq",
        "shape",
        "statistics",
        "tensor",
    )

    def __init__(self, name: str, tensor: Tensor, item: Item | None = None, seq: int = -1) -> None:
        """Encode a tensor.

        Raises:
            UnsupportedTensorError: it has no stored form.
        """
        encoded = tensors.encode(tensor, name=name)
        self._encoded: tensors.Encoded | None = encoded
        self._fingerprint: bytes | None = None
        self.name = name
        self.tensor = tensor
        self.item = item
        """The parameter that it is the value of; None for any other tensor."""
        self.seq = seq
        """Its place among the tensors of the extras."""
        self.digest = b""
        """Its address, once it is hashed."""
        self.header = encoded.header
        self.nbytes = encoded.nbytes
        """Bytes that it takes in the database."""
        self.dtype = encoded.dtype
        self.shape = encoded.shape
        self.statistics: Statistics | None = None
        self.blob_id = 0
        """Its row, once it is written."""

    @property
    def encoded(self) -> tensors.Encoded:
        """The encoded tensor, made again where the copy has been released."""
        return self._encoded or tensors.encode(self.tensor, name=self.name)

    def fingerprint(self) -> bytes:
        """Make the fingerprint, once: what a tensor that has not changed is known by."""
        if self._fingerprint is None:
            self._fingerprint = self.encoded.fingerprint()
        return self._fingerprint

    def hash(self) -> bytes:
        """Make the digest, once."""
        if not self.digest:
            self.digest = self.encoded.digest()
        return self.digest

    def chunks(self) -> list[memoryview]:
        """The bytes behind the header, in chunks."""
        return self.encoded.chunks()

    def content(self) -> tuple[bytes, int]:
        """What tells whether two tensors are the same."""
        return self.fingerprint(), self.nbytes

    @property
    def copied(self) -> int:
        """Bytes of a copy that waits to be written; none for a view of the live tensor."""
        if self._encoded is None or self._encoded.owner is self.tensor:
            return 0
        return self.nbytes

    def written(self, blob_id: int) -> None:
        """Take note of its row, and let go of a copy; a view costs nothing."""
        self.blob_id = blob_id
        if self._encoded and self._encoded.owner is not self.tensor:
            self._encoded = None

    def entry(self, item: Item, spec_blobs: tuple[int, ...]) -> NewEntry:
        """Describe the parameter, now that its tensor and its constraint's are written."""
        shape, transform = self.shape, item.transform
        return NewEntry(
            self.name,
            self.blob_id,
            self.digest,
            self.nbytes,
            self.dtype,
            shape,
            item.spec.text,
            spec_blobs,
            item.kind,
            item.requires_grad,
            shape if transform is None else _value_shape(transform, shape),
            self.statistics,
        )


def batched(jobs: Iterable[Job]) -> Iterator[list[Job]]:
    """Hash jobs, and cut them into batches that are worth a statement and soon there."""
    batch: list[Job] = []
    nbytes = 0
    for job in jobs:
        job.hash()  # now, while a look at its fingerprint has left it in the processor's cache
        batch.append(job)
        nbytes += job.nbytes
        if nbytes >= BATCH_BYTES or len(batch) >= BATCH_TENSORS:
            yield batch
            batch, nbytes = [], 0
    if batch:
        yield batch


def values_of(batch: list[Job]) -> list[tuple[Tensor, Transform | None]]:
    """What :func:`describe_all` needs, held before a copy is released."""
    return [(job.encoded.owner, job.item.transform if job.item else None) for job in batch]


def describe_all(batch: list[Job], values: list[tuple[Tensor, Transform | None]]) -> None:
    """Make the statistics of a batch."""
    for job, statistics in zip(batch, describe(values), strict=True):
        job.statistics = statistics


def nbytes_of(every: list[Tensor]) -> int:
    """Bytes of the elements of tensors."""
    # Not nbytes: a sparse tensor has none, and has yet to be refused by name.
    return sum(tensor.numel() * tensor.element_size() for tensor in every)


def pays_for_a_thread(nbytes: int, count: int) -> bool:
    """Whether hashing and writing should overlap: with small tensors both hold the interpreter."""
    return nbytes > max(BATCH_BYTES, count << 14)


def _value_shape(transform: Transform, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(transform.forward_shape(shape))
