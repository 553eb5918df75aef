"""Everything in a database compared with what was written: rows, digests and bytes.

Reads and never writes, a few MiB at a time; must never look inside a tensor, which those who have
torch do with the bytes that pass here.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import groupby
from numbers import Real
from operator import itemgetter
from typing import Any, Final, NamedTuple

from blake3 import blake3
from sqlalchemy import BindParameter, bindparam, func, select

from paramstore.damage import Problem, Verified
from paramstore.db import blobs as blob_bytes
from paramstore.db import counters, soundness
from paramstore.db.bulk import VARIABLES, batched
from paramstore.db.engine import Database
from paramstore.db.garbage import free_blobs
from paramstore.db.schema import (
    blobs,
    constraint_blobs,
    constraints,
    extra_blobs,
    param_versions,
    scopes,
    snapshots,
)
from paramstore.db.stored import UNREADABLE, Check, StoredBlob
from paramstore.errors import CorruptError, InvalidInputError, NotADatabaseError
from paramstore.listing import some
from paramstore.progress import progress
from paramstore.snapshot import Statistics

_PAGE: Final = 1000  # rows in one query

Owner = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of parameters, references of snapshots."""

_last: BindParameter[Any] = bindparam("last")
_values: BindParameter[Any] = bindparam("values", expanding=True)
_BLOBS = select(blobs).where(blobs.c.id > _last).order_by(blobs.c.id).limit(_PAGE)
_SIZES = select(func.count(), func.coalesce(func.sum(blobs.c.nbytes), 0)).select_from(blobs)
_SNAPSHOTS = select(func.count()).select_from(snapshots)
_STILL = select(blobs.c.id).where(blobs.c.id.in_(_values))
_VALUES = (
    select(
        param_versions,
        blobs.c.nbytes,
        blobs.c.digest,
        blobs.c.dtype,
        blobs.c.shape.label("stored_shape"),
        constraints.c.spec,
    )
    .join_from(param_versions, blobs, blobs.c.id == param_versions.c.blob_id)
    .join(constraints, constraints.c.id == param_versions.c.constraint_id)
    .where(param_versions.c.id > _last)
    .order_by(param_versions.c.id)
    .limit(_PAGE)
)
_CONSTRAINTS_OF = select(constraint_blobs.c.blob_id, constraint_blobs.c.constraint_id).where(
    constraint_blobs.c.blob_id.in_(_values)
)
_SNAPSHOTS_OF = (
    select(extra_blobs.c.blob_id, scopes.c.name, snapshots.c.version)
    .join_from(extra_blobs, snapshots, snapshots.c.id == extra_blobs.c.snapshot_id)
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .where(extra_blobs.c.blob_id.in_(_values))
)


class StoredValue(NamedTuple):
    """One value of a parameter, and what was said of it when it was stored."""

    id: int
    blob: StoredBlob
    constraint_id: int
    spec: str
    """Constraint spec, canonical JSON."""
    shape: str
    """Shape of the constrained value, as it stands in the table."""
    statistics: Statistics | None


def verify(database: Database, *, sample: float = 1.0) -> Verified:
    """Check everything in a database that can be checked without torch.

    Args:
        database: where to look.
        sample: the fraction of the tensors to be read, chosen at random; all rows are checked.

    Raises:
        InvalidInputError: ``sample`` is not from 0 to 1.
        DatabaseError: the file cannot be read; never because of what is in it.
    """
    verification = Verification(database, sample=sample)
    verification.check_rows()
    verification.check_tensors()
    return verification.result()


def _check_sample(sample: object) -> None:
    if not isinstance(sample, Real) or not 0 <= float(sample) <= 1:
        raise InvalidInputError(f"sample is a fraction from 0 to 1, got {sample!r}")


class Verification:
    """One look at everything. Beside a running experiment: what is expired meanwhile is no problem.

    **Threads**: one.

    **Ownership**: uses the database; keeps a bit for each stored tensor, and what is wrong.
    """

    def __init__(self, database: Database, *, sample: float = 1.0) -> None:
        _check_sample(sample)
        self.database = database
        self.problems: list[Problem] = []
        self.statistics: int | None = None
        """Values whose statistics were computed again, by who has torch."""
        self._sample = sample
        # Not from a generator that a run may use, and the same answer each time a tensor is met.
        self._salt = os.urandom(16)
        self._below = int(sample * 2.0**64)
        self._seen = bytearray()
        self._damaged: dict[int, str] = {}
        self._snapshots = self._tensors = self._nbytes = 0

    # -- rows ----------------------------------------------------------------------

    def check_rows(self) -> None:
        """Check the file's pages, the manifest of every snapshot, and what else rows say."""
        database = self.database
        self._collect(soundness.check_file(database))
        self._collect(soundness.check_references(database))
        total = 0
        with self._reading():
            ((total,),) = database.fetch(_SNAPSHOTS)
        with progress("checking snapshots", total) as advance:

            def done(count: int) -> None:
                self._snapshots += count
                advance(count)

            self._collect(soundness.check_snapshots(database, done))
        self._collect(soundness.check_versions(database))
        self._collect(soundness.check_tags(database))
        self._collect(soundness.check_constraints(database))
        self._collect(soundness.check_first_versions(database))
        self._collect(counters.check_version_numbers(database))
        self._collect(counters.check_ids(database))

    def _collect(self, found: Iterator[Problem]) -> None:
        with self._reading():
            self.problems.extend(found)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Let rows that SQLite cannot read be one problem."""
        try:
            yield
        except (CorruptError, NotADatabaseError) as error:
            problem = Problem(
                kind="file",
                message=str(error),
                params=getattr(error, "params", ()),
                snapshots=getattr(error, "snapshots", ()),
                advice=soundness.RESTORE,
            )
            if problem not in self.problems:
                self.problems.append(problem)

    # -- bytes ---------------------------------------------------------------------

    def expected_nbytes(self) -> int:
        """How many bytes the sample has, more or less."""
        total = 0
        with self._reading():
            ((_, total),) = self.database.fetch(_SIZES)
        return int(total * self._sample)

    def stored_values(self) -> Iterator[list[StoredValue]]:
        """Yield the values whose bytes are in the sample, those of a few MiB at a time."""
        batch: list[StoredValue] = []
        nbytes = 0
        with self._reading():
            for row in soundness.pages(self.database, _VALUES):
                if not self._is_chosen(row.blob_id) or not _is_length(row.nbytes):
                    continue
                batch.append(_stored_value(row))
                nbytes += row.nbytes
                if nbytes >= blob_bytes.BUFFER or len(batch) >= _PAGE:
                    yield batch
                    batch, nbytes = [], 0
        if batch:
            yield batch

    def check_tensors(self) -> None:
        """Compare the bytes of all tensors in the sample that have not been read yet."""
        left = max(self.expected_nbytes() - self._nbytes, 0)
        with (
            progress("checking tensors", left, unit="bytes") as advance,
            self._reading(),
        ):
            for batch in self._unread():
                for _ in self.read(batch):
                    """`read` compares them."""
                advance(sum(blob.nbytes for blob in batch))

    def _unread(self) -> Iterator[list[StoredBlob]]:
        batch: list[StoredBlob] = []
        nbytes = 0
        for row in soundness.pages(self.database, _BLOBS):
            if self._is_seen(row.id) or not self._is_chosen(row.id):
                continue
            if not _is_length(row.nbytes):
                self._damaged[row.id] = "its row holds no length"
                continue
            batch.append(StoredBlob(*row))
            nbytes += row.nbytes
            if nbytes >= blob_bytes.BUFFER or len(batch) >= _PAGE:
                yield batch
                batch, nbytes = [], 0
        if batch:
            yield batch

    def read(self, batch: Sequence[StoredBlob]) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Yield the row and the chunks of tensors, whose digests are compared as they pass.

        What the caller leaves of the chunks is compared too. Once the next is asked for, or none is
        left, :meth:`is_damaged` knows.
        """
        rows = {blob.id: blob for blob in batch}
        checks: dict[int, Check] = {}
        unread = False
        try:
            found = blob_bytes.read(self.database, {blob.id: blob.nbytes for blob in batch})
            for row_id, group in groupby(found, key=itemgetter(0)):
                checks[row_id] = check = Check()
                chunks = check.through(chunk for _, _, chunk in group)
                yield row_id, chunks
                deque(chunks, maxlen=0)
                self._conclude(rows[row_id], check.verdict(rows[row_id]))
                unread |= check.failed
        except CorruptError:
            unread = True
        for blob in batch:
            if blob.id in checks:
                continue
            if unread and len(batch) > 1:
                yield from self.read([blob])
            else:
                self._conclude(blob, UNREADABLE if unread else "its bytes are gone")

    def is_damaged(self, blob_id: int) -> bool:
        """Whether a tensor that was read is not what was written."""
        return blob_id in self._damaged

    def _conclude(self, blob: StoredBlob, verdict: str | None) -> None:
        if not self._is_seen(blob.id):
            self._tensors += 1
            self._nbytes += blob.nbytes
        self._see(blob.id)
        if verdict and self.database.fetch(_STILL, {"values": [blob.id]}):
            self._damaged[blob.id] = verdict

    def _is_chosen(self, blob_id: int) -> bool:
        hashed = blake3(self._salt + blob_id.to_bytes(8, "little", signed=True)).digest(8)
        return int.from_bytes(hashed, "little") < self._below

    def _is_seen(self, blob_id: int) -> bool:
        return blob_id >> 3 < len(self._seen) and bool(
            self._seen[blob_id >> 3] & 1 << (blob_id & 7)
        )

    def _see(self, blob_id: int) -> None:
        if blob_id >> 3 >= len(self._seen):
            self._seen.extend(bytes((blob_id >> 3) + 1 - len(self._seen)))
        self._seen[blob_id >> 3] |= 1 << (blob_id & 7)

    # -- what was found ------------------------------------------------------------

    def result(self) -> Verified:
        """Say what was found."""
        stored = orphans = orphan_nbytes = 0
        with self._reading():
            self.problems.extend(self._altered_tensors())
        with self._reading():
            ((stored, _),) = self.database.fetch(_SIZES)
            orphans, orphan_nbytes = free_blobs(self.database.fetch)
        return Verified(
            where=str(self.database.path or self.database.name),
            sample=self._sample,
            snapshots=self._snapshots,
            tensors=self._tensors,
            stored_tensors=stored,
            nbytes=self._nbytes,
            statistics=self.statistics,
            orphans=orphans,
            orphan_nbytes=orphan_nbytes,
            problems=tuple(self.problems),
        )

    def _altered_tensors(self) -> Iterator[Problem]:
        owners = self._owners()
        for blob_id, verdict in sorted(self._damaged.items()):
            names, refs = owners[blob_id]
            whose = f"of {some(map(repr, names))}" if names else "of an extra or attached state"
            advice = soundness.RESTORE
            if not refs:
                whose = "of no snapshot"
                advice = "free it with gc(), before a commit of the same tensor refers to it"
            yield Problem(
                kind="bytes",
                message=f"a stored tensor {whose} is altered: {verdict}",
                params=names,
                snapshots=refs,
                advice=advice,
            )

    def holders(self, value_ids: Iterable[int]) -> dict[int, Owner]:
        """Find the names and snapshots that hold some values, by row of the value."""
        found: dict[int, Owner] = {}
        with self._reading():
            found |= soundness.places(self.database, param_versions.c.id, value_ids)
        return found

    def _owners(self) -> dict[int, Owner]:
        """The parameters and snapshots that hold each damaged tensor."""
        database, damaged = self.database, sorted(self._damaged)
        found = soundness.places(database, param_versions.c.blob_id, damaged)
        of_constraints: dict[int, list[int]] = {}
        for batch in batched(damaged, VARIABLES):
            for blob_id, constraint_id in database.fetch(_CONSTRAINTS_OF, {"values": batch}):
                of_constraints.setdefault(constraint_id, []).append(blob_id)
        column = param_versions.c.constraint_id
        for constraint_id, (names, refs) in soundness.places(
            database, column, of_constraints
        ).items():
            for blob_id in of_constraints[constraint_id]:
                found[blob_id] = _joined(found[blob_id], names, refs)
        for batch in batched(damaged, VARIABLES):
            for blob_id, scope, version in database.fetch(_SNAPSHOTS_OF, {"values": batch}):
                found[blob_id] = _joined(found[blob_id], (), (f"{scope}@{version}",))
        return found


def _stored_value(row: Any) -> StoredValue:
    cells = {field.name: getattr(row, field.name) for field in fields(Statistics)}
    statistics = None
    if any(cell is not None for cell in cells.values()):  # or none were taken
        statistics = Statistics(**cells | {"unconstrained": bool(cells["unconstrained"])})
    blob = StoredBlob(row.blob_id, row.digest, row.nbytes, row.dtype, row.stored_shape)
    return StoredValue(row.id, blob, row.constraint_id, row.spec, row.shape, statistics)


def _is_length(nbytes: object) -> bool:
    return isinstance(nbytes, int) and nbytes >= 0


def _joined(owner: Owner, names: Iterable[str], refs: Iterable[str]) -> Owner:
    return tuple(sorted({*owner[0], *names})), tuple(dict.fromkeys([*owner[1], *refs]))
