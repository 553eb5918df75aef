"""Is everything as it was written? The verbs that check a store, and copy one.

Reads tensors and compares; must never repair, or change a working set.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from torch.distributions.transforms import Transform

from paramstore import tensors
from paramstore.constraints import from_spec, is_identity, transform_of
from paramstore.damage import Problem, Verified
from paramstore.db.backup import backup as copy_database
from paramstore.db.blobs import parse_shape, shape_text
from paramstore.db.repository import Repository
from paramstore.db.stored import StoredBlob
from paramstore.db.verification import StoredValue, Verification
from paramstore.errors import CorruptError, ParamStoreError
from paramstore.header import data_bytes
from paramstore.modes import outside_modes
from paramstore.progress import progress
from paramstore.rounding import Origin, differing
from paramstore.session import HasSession
from paramstore.snapshot import Statistics
from paramstore.statistics import describe

_TRANSFORMS: Final = 1000
"""Transforms kept, by row of their constraint."""

if TYPE_CHECKING:
    from torch import Tensor

    from paramstore.db.engine import Database


def verify(self: HasSession, *, sample: float = 1.0) -> Verified:
    """Check everything in the database: every row, every stored byte, every statistic.

    Beside a running experiment it holds no lock between its queries. It finds and never repairs;
    what is wrong comes back as values, each with what to do. ``sample`` is the fraction of the
    stored tensors that is read, chosen at random: with 0 none is; all rows are always checked.

    Raises:
        InvalidInputError: ``sample`` is not from 0 to 1.
        DatabaseError: the file cannot be read at all.
    """
    database = self._session.backend.database
    return outside_modes(lambda: verify_database(database, sample=sample))


def backup(self: HasSession, path: str | os.PathLike[str]) -> Path:
    """Copy the whole database into a new file, also while others commit to it.

    That file is there when the copy is complete and on the disk, or not at all. What is pending
    here is committed first. This is also how a store in memory is kept.

    Returns:
        The absolute path of the copy.

    Raises:
        InvalidInputError: the file exists already.
        StorageError: it cannot be written, or the disk is full.
        StoreBusyError: another process held the lock of the database for the whole timeout.
    """
    self._session.settle()
    return copy_database(self._session.backend.database, path)


def verify_database(database: Database, *, sample: float = 1.0) -> Verified:
    """Check everything as :func:`verify` does, where no store can be opened on the database.

    ``paramstore.db.verification.verify`` is the same without the statistics, and without torch.

    Raises:
        InvalidInputError: ``sample`` is not from 0 to 1.
        DatabaseError: the file cannot be read at all.
    """
    verification = Verification(database, sample=sample)
    verification.check_rows()
    _Recount(verification, Repository(database)).run()
    verification.check_tensors()
    return verification.result()


class _Recount:
    """Statistics and shapes of stored values, computed again from their bytes."""

    def __init__(self, verification: Verification, repository: Repository) -> None:
        self._verification = verification
        self._repository = repository
        self._transforms: dict[int, Transform | None] = {}
        self._differing: dict[int, list[str]] = {}

    def run(self) -> None:
        """Read every value in the sample, and report what differs."""
        verification = self._verification
        verification.statistics = 0
        with progress("checking values", verification.expected_nbytes(), unit="bytes") as advance:
            for batch in verification.stored_values():
                self._compare(batch)
                advance(sum(value.blob.nbytes for value in batch))
        verification.problems += self._problems()

    def _compare(self, batch: Sequence[StoredValue]) -> None:
        known = [(value, *self._transform(value)) for value in batch]
        described = [(value, transform) for value, is_known, transform in known if is_known]
        blobs = {value.blob.id: value.blob for value, _ in described}
        found: dict[int, Tensor] = {}
        for blob_id, chunks in self._verification.read(list(blobs.values())):
            tensor = _tensor(blobs[blob_id], chunks)
            if tensor is not None:
                found[blob_id] = tensor
        whole = [
            (value, transform, found[value.blob.id])
            for value, transform in described
            if value.blob.id in found and not self._verification.is_damaged(value.blob.id)
        ]
        recounted = describe([(tensor, _described(v, transform)) for v, transform, tensor in whole])
        for (value, transform, tensor), now in zip(whole, recounted, strict=True):
            wrong = _wrong(value, transform, tensor, now)
            if wrong:
                self._differing[value.id] = wrong
        assert self._verification.statistics is not None
        self._verification.statistics += len(whole)

    def _transform(self, value: StoredValue) -> tuple[bool, Transform | None]:
        """The transform to the constrained value; not known where its constraint is not."""
        if value.constraint_id not in self._transforms:
            try:
                constraint = from_spec(value.spec, lambda digest: self._argument(value, digest))
                transform = None if is_identity(constraint) else transform_of(constraint)
            except ParamStoreError:  # damaged, which others find, or of a kind that is not known
                return False, None
            if len(self._transforms) >= _TRANSFORMS:
                self._transforms.clear()
            self._transforms[value.constraint_id] = transform
        return True, self._transforms[value.constraint_id]

    def _argument(self, value: StoredValue, digest: str) -> Tensor:
        return tensors.decode(self._repository.constraint_blob(value.constraint_id, digest))

    def _problems(self) -> Iterable[Problem]:
        for value_id, (names, refs) in self._verification.holders(self._differing).items():
            if refs:
                what = ", ".join(self._differing[value_id])
                yield Problem(
                    kind="statistics",
                    message=f"{what} of a value of {names[0]!r} are not what its bytes give",
                    params=names,
                    snapshots=refs,
                    advice="history() and the views show wrong numbers; restore() and at() are "
                    "right",
                )


def _tensor(blob: StoredBlob, chunks: Iterable[bytes]) -> Tensor | None:
    """Make the tensor of a blob; None where it is not what its row says."""
    try:
        shape = parse_shape(blob.shape)
        if not 0 < data_bytes(blob.dtype, shape) + 8 < blob.nbytes:
            return None
        tensor = tensors.empty(blob.dtype, shape)
    except (ParamStoreError, KeyError, RuntimeError, TypeError):
        return None
    return tensor if tensors.fill([tensors.Filler(tensor)], chunks, None) else None


def _described(value: StoredValue, transform: Transform | None) -> Transform | None:
    """The transform to what the stored statistics are of."""
    stored = value.statistics
    return None if stored is not None and stored.unconstrained else transform


def _wrong(
    value: StoredValue, transform: Transform | None, tensor: Tensor, now: Statistics
) -> list[str]:
    """Name what was stored about a value and is not so."""
    shape = tensor.shape if transform is None else transform.forward_shape(tensor.shape)
    wrong = [] if value.shape == shape_text(tuple(shape)) else ["shape"]
    stored = value.statistics
    if stored is None:
        return wrong
    if stored.unconstrained:
        if transform is None or not _can_be_unconstrained(now, tensor, transform):
            wrong.append("unconstrained")
        now = replace(now, unconstrained=True)
    described = _described(value, transform)
    numel = tensor.numel() if described is None else math.prod(shape)
    origin = Origin(dtype=tensor.dtype, numel=numel, transform=described)
    try:
        wrong += differing(stored, now, origin)
    except (TypeError, ValueError, CorruptError):  # something else where a number should be
        wrong.append("statistics")
    return wrong


def _can_be_unconstrained(now: Statistics, tensor: Tensor, transform: Transform) -> bool:
    """Whether the transform may have failed; where there are numbers, they tell it."""
    return now.norm is not None or describe([(tensor, transform)])[0].unconstrained
