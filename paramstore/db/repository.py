"""The one door of the SQL leg: everything that the store floor asks of a database.

Puts the parts together and gives out plain values; must never let a row or a connection out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from sqlalchemy import bindparam, select

from paramstore.db import blobs, bulk, changes, queries, reading, room
from paramstore.db.engine import Database
from paramstore.db.records import Draft, Entry, Manifest, NewBlob, NewEntry, StaleEntries
from paramstore.db.schema import blobs as blob_table
from paramstore.db.schema import constraint_blobs, param_versions, snapshots
from paramstore.db.transaction import Transaction
from paramstore.errors import CorruptError
from paramstore.refs import Ref
from paramstore.snapshot import ParamVersion, ScopeInfo, Snapshot

__all__ = [
    "Draft",
    "Entry",
    "Manifest",
    "NewBlob",
    "NewEntry",
    "Repository",
    "StaleEntries",
    "Transaction",
]

_MANIFESTS_KEPT: Final = 2  # a diff looks at two

_DIGEST = select(snapshots.c.digest).where(snapshots.c.id == bindparam("id"))
_EXISTS = select(snapshots.c.id).where(snapshots.c.id == bindparam("id"))
_VERSIONS = select(param_versions.c.id).where(
    param_versions.c.id.in_(bindparam("values", expanding=True))
)
_CONSTRAINT_BLOB = (
    select(blob_table.c.id, blob_table.c.nbytes)
    .join_from(constraint_blobs, blob_table, blob_table.c.id == constraint_blobs.c.blob_id)
    .where(constraint_blobs.c.constraint_id == bindparam("constraint_id"))
    .where(blob_table.c.digest == bindparam("digest"))
)


class Repository:
    """Snapshots, parameters and bytes in one database.

    **Threads**: any. Reads see every transaction that was committed before they began; two reads
    may see different ones.

    **Ownership**: uses the database and does not close it.

    **Durability**: that of the transactions of `Database.write`.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        """Where everything is."""
        self._unclaimed: dict[int, int] = {}
        """Bytes, by row, of blobs added here for a snapshot that is still to come."""
        self._checked: dict[int, Manifest] = {}
        """The manifests read last, by row of their snapshot: immutable, and checked once."""

    # -- writing -------------------------------------------------------------------

    @contextmanager
    def write(self) -> Iterator[Transaction]:
        """Run the block in one write transaction; it commits at the end, or leaves nothing.

        Raises:
            ReadOnlyError, StoreClosedError: it cannot be written, or no longer.
            StoreBusyError: another process held the lock for the whole timeout.
            StorageError: disk full, I/O error, no permission.
        """
        with self.database.write() as connection:
            unclaimed = dict(self._unclaimed)
            yield Transaction(connection, unclaimed)
        self._unclaimed = unclaimed

    def has_ample_room(self, nbytes: int) -> bool:
        """Whether so many bytes fit on the disk for sure; else ``check_room`` knows better.

        Raises:
            StorageError: the file is gone.
        """
        return room.is_ample(self.database, nbytes)

    def check_room(self, sizes: Mapping[bytes, int]) -> None:
        """Refuse what cannot fit on the disk.

        Args:
            sizes: bytes of what is to be written, by digest.

        Raises:
            StorageError: what of it is not stored yet is more than what is free.
        """
        room.check(self.database, sizes)

    def tag(self, snapshot: Snapshot, name: str, *, move: bool = False) -> None:
        """Let a tag point to a snapshot.

        Raises:
            InvalidNameError: not a tag's name, or, without ``move``, the tag of another snapshot.
            SnapshotNotFoundError: the snapshot is gone.
        """
        with self.database.write() as connection:
            changes.tag(connection, snapshot, name, move=move)

    def untag(self, scope: str, name: str) -> None:
        """Remove a tag; its snapshot stays.

        Raises:
            ScopeNotFoundError, TagNotFoundError: there is none.
        """
        with self.database.write() as connection:
            changes.untag(connection, scope, name)

    def rename(self, scope: str, old: str, new: str) -> None:
        """Give a parameter another name in every snapshot of a scope; its history stays.

        Raises:
            ScopeNotFoundError, ParamNotFoundError: there is none.
            InvalidNameError: not a name, or one that a snapshot of the scope has already.
            CorruptError: a snapshot that holds it is damaged; nothing is changed.
        """
        with self.database.write() as connection:
            changes.rename(connection, scope, old, new)
        self._checked = {}

    # -- scopes and snapshots ------------------------------------------------------

    def scopes(self) -> list[ScopeInfo]:
        """Return all scopes, sorted by name.

        Raises:
            CorruptError: the tables contradict each other about them.
        """
        return queries.list_scopes(self.database)

    def head(self, scope: str) -> Snapshot | None:
        """Return the newest snapshot of a scope; None where there is none.

        Raises:
            CorruptError: the tables contradict each other about it.
        """
        return queries.head(self.database, scope)

    def latest(self, scope: str) -> Snapshot | None:
        """Return the newest snapshot of a scope that an exception did not leave behind.

        Raises:
            CorruptError: the tables contradict each other about the newest.
        """
        return queries.latest(self.database, scope)

    def head_version(self, scope: str) -> int:
        """Return the version of the newest snapshot of a scope; 0 where there is none."""
        return queries.head_version(self.database, scope)

    def resolve(self, ref: Ref, scope: str) -> Snapshot:
        """Return the snapshot that a reference means, ``scope`` being the current one.

        Raises:
            ScopeNotFoundError, SnapshotNotFoundError, TagNotFoundError: there is none.
        """
        return queries.resolve(self.database, ref, scope)

    def log(self, scope: str, limit: int | None = None) -> list[Snapshot]:
        """Return the snapshots of a scope, newest first.

        Raises:
            ScopeNotFoundError: there is none.
        """
        return queries.log(self.database, scope, limit)

    def best(self, scope: str, metric: str, mode: str = "min") -> Snapshot:
        """Return the snapshot with the smallest or largest metric; of equals the newest.

        Raises:
            ScopeNotFoundError, SnapshotNotFoundError: there is none.
            InvalidInputError: ``mode`` is neither ``min`` nor ``max``.
        """
        return queries.best(self.database, scope, metric, mode)

    def history(self, scope: str, name: str, limit: int | None = None) -> list[ParamVersion]:
        """Return the versions of a parameter, oldest first; the last ``limit`` of them.

        Raises:
            ScopeNotFoundError, ParamNotFoundError: there is none.
        """
        return queries.history(self.database, scope, name, limit)

    def exists(self, snapshot: Snapshot) -> bool:
        """Tell whether a snapshot has not been expired since it was read."""
        return bool(self.database.fetch(_EXISTS, {"id": snapshot.id}))

    def any_exists(self, entries: Iterable[Entry]) -> bool:
        """Tell whether the value of one entry, at least, has not been freed."""
        ids = {entry.param_version_id for entry in entries}
        batches = bulk.batched(ids, bulk.VARIABLES)
        return any(self.database.fetch(_VERSIONS, {"values": batch}) for batch in batches)

    # -- content -------------------------------------------------------------------

    def manifest(self, snapshot: Snapshot) -> Manifest:
        """Read all that a snapshot holds, the bytes of its tensors excepted, and check it once.

        Raises:
            SnapshotNotFoundError: it is gone.
            CorruptError: its rows are not those that were committed.
        """
        found = self._checked.get(snapshot.id)
        if found is None or not self._is_still(found, snapshot):
            found = reading.manifest(self.database, snapshot)
            latest = list(self._checked.items())[1 - _MANIFESTS_KEPT :]
            self._checked = {**dict(latest), snapshot.id: found}
        return found

    def _is_still(self, found: Manifest, snapshot: Snapshot) -> bool:
        """Whether nobody has renamed the scope or a parameter since a manifest was read."""
        rows = self.database.fetch(_DIGEST, {"id": snapshot.id})
        same = [bytes(row.digest) for row in rows] == [found.digest]
        return same and reading.facts(found.snapshot) == reading.facts(snapshot)

    def read_blobs(
        self, ids: Iterable[int] | Mapping[int, int]
    ) -> Iterator[tuple[int, int, bytes]]:
        """Yield row, place and bytes of every chunk of some blobs, a few MiB at a time.

        One blob after the other, in order of place. A blob that does not exist yields nothing.

        Args:
            ids: rows of blobs; with their lengths in bytes where known, which saves a query.
        """
        return blobs.read(self.database, ids)

    def constraint_blob(self, constraint_id: int, digest: str) -> bytes:
        """Return the bytes of a tensor that a constraint spec names by its hexadecimal digest.

        Raises:
            CorruptError: they are gone.
        """
        key = {"constraint_id": constraint_id, "digest": _from_hex(digest)}
        rows = self.database.fetch(_CONSTRAINT_BLOB, key)
        data = b"".join(chunk for _, _, chunk in self.read_blobs(dict(rows)))
        if not data:
            raise CorruptError(f"an argument of a constraint is gone: tensor {digest}")
        return data

    def affected(self, blob_id: int) -> list[str]:
        """Return references of the snapshots that hold a blob.

        Looks at every row; for error texts.
        """
        return reading.affected(self.database, blob_id)


def _from_hex(digest: str) -> bytes:
    try:
        return bytes.fromhex(digest)
    except ValueError:
        return b""
