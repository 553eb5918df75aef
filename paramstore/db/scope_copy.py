"""A scope with all of its snapshots, copied within a database or into another one.

Versions, times, tags and values stay as they are; must never write a value whose bytes do not have
the digest that was committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any, Final, NamedTuple

from blake3 import blake3
from sqlalchemy import BindParameter, Connection, bindparam, select

from paramstore.db import blobs as blob_bytes
from paramstore.db import bulk, queries
from paramstore.db.engine import Database
from paramstore.db.manifest import Header
from paramstore.db.reading import Fetch, Rows, affected, altered, inside, read_rows
from paramstore.db.records import Entry
from paramstore.db.schema import (
    blobs,
    constraint_blobs,
    constraints,
    extra_blobs,
    extras,
    metrics,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
    tags,
)
from paramstore.db.scope_changes import check_free, gone
from paramstore.errors import CorruptError, ExpiredError
from paramstore.progress import progress

_values: BindParameter[Any] = bindparam("values", expanding=True)
_SCOPE = select(scopes).where(scopes.c.name == bindparam("scope"))
_SNAPSHOTS = (
    select(snapshots.c.id, snapshots.c.version, snapshots.c.origin)
    .where(snapshots.c.scope_id == bindparam("scope_id"))
    .order_by(snapshots.c.id)
)
_PARAMS = (
    select(params.c.id, params.c.name)
    .where(params.c.scope_id == bindparam("scope_id"))
    .order_by(params.c.id)
)
_TAGS = select(tags.c.name, tags.c.snapshot_id).where(tags.c.scope_id == bindparam("scope_id"))
_EXISTING = select(snapshots.c.id).where(snapshots.c.id == bindparam("id"))
_VERSIONS = select(param_versions).where(param_versions.c.id.in_(_values))
_BLOBS = select(blobs).where(blobs.c.id.in_(_values))
_ARGUMENTS = (
    select(constraint_blobs.c.blob_id)
    .where(constraint_blobs.c.constraint_id == bindparam("id"))
    .order_by(constraint_blobs.c.seq)
)
_CONSTRAINT = select(constraints.c.id).where(constraints.c.digest == bindparam("digest"))


class Copied(NamedTuple):
    """What was copied."""

    snapshots: int
    """How many snapshots."""
    nbytes: int
    """Bytes of the tensors that had to be written for them."""


def copy_scope(source: Database, scope: str, target: Database, new: str) -> Copied:
    """Copy a scope with all of its snapshots into a new one, all of it or nothing.

    Versions, steps, times, messages, metrics, tags, extras and states are the same; a snapshot
    whose parent is in another scope keeps it only within one database.

    Args:
        source: where it is.
        scope: its name there.
        target: where the copy goes; the same object for a copy within one database.
        new: the name of the copy.

    Raises:
        ScopeNotFoundError: there is no such scope.
        ScopeError: there is one of the new name.
        InvalidNameError: not the name of a scope.
        CorruptError: something in it is damaged.
        ExpiredError: another process has freed what was still to be copied.
        ReadOnlyError, StoreBusyError, StorageError: the target could not be written.
    """
    queries.log(source, scope, 1)  # or the error that says which scopes there are
    with target.write() as connection:
        check_free(connection, target, new)
        return _Copy(source, connection, within=source is target).run(scope, new)


class _Copy:
    """One copy, inside the write transaction of the target.

    **Threads**: one.

    **Ownership**: borrows the connection. Knows which row became which.
    """

    def __init__(self, source: Database, connection: Connection, *, within: bool) -> None:
        self._source = source
        self._connection = connection
        self._within = within
        """Whether values are shared instead of copied."""
        self._fetch: Fetch = inside(connection) if within else source.fetch
        self._snapshots: dict[int, int] = {}
        self._scope_id = 0
        self._own: set[int] = set()
        """The parameters of the scope, there."""
        self._params: dict[str, int] = {}
        """Those of the copy, by name: another process may rename one, or commit a new one."""
        self._versions: dict[int, int] = {}
        self._blobs: dict[int, int] = {}
        self._constraints: dict[int, int] = {}
        self._nbytes = 0

    def run(self, scope: str, new: str) -> Copied:
        """Copy everything."""
        rows = self._fetch(_SCOPE, {"scope": scope})
        if not rows:
            raise gone(self._source, scope)
        (old,) = rows
        key = {"scope_id": old.id}
        (self._scope_id,) = bulk.next_ids(self._connection, scopes, 1)
        row = (self._scope_id, new, old.head_version, old.created_at)
        bulk.insert(self._connection, scopes, [row])
        names = self._fetch(_PARAMS, key)
        self._own = {found.id for found in names}
        self._add_params([found.name for found in names])
        head = self._copy_snapshots(self._fetch(_SNAPSHOTS, key), scope, new)
        here = scopes.update().where(scopes.c.id == self._scope_id)
        self._connection.execute(here.values(head_version=head))
        tagged = [(self._scope_id, t.name, self._snapshots.get(t.snapshot_id)) for t in
                  self._fetch(_TAGS, key)]  # fmt: skip
        bulk.insert(self._connection, tags, [row for row in tagged if row[2] is not None])
        return Copied(len(self._snapshots), self._nbytes)

    def _add_params(self, names: Iterable[str]) -> None:
        added = [name for name in names if name not in self._params]
        ids = bulk.next_ids(self._connection, params, len(added))
        rows = [(row_id, self._scope_id, name) for row_id, name in zip(ids, added, strict=True)]
        bulk.insert(self._connection, params, rows)
        self._params |= zip(added, ids, strict=True)

    def _copy_snapshots(self, found: Sequence[Any], scope: str, new: str) -> int:
        head = 0
        with progress("copying snapshots", len(found)) as advance:
            for row in found:
                advance(1)
                ref = f"{scope}@{row.version}"
                read = self._read(row.id, ref)
                if read is not None:
                    self._add_params(entry.name for entry in read[1])
                    self._copy_values(*read, row.id, ref)
                    self._append(*read, new, row)
                    head = row.version
                elif row is found[-1]:  # without it the copy would end before its scope does
                    raise _expired(ref)
        return head

    def _read(self, snapshot_id: int, ref: str) -> tuple[Rows, list[Entry]] | None:
        """Read a snapshot; None where another process has expired it since it was listed."""
        for _ in range(2):  # another process may rename or expire between two of the queries
            rows = read_rows(self._fetch, snapshot_id)
            if rows is None:
                return None
            entries = rows.checked()
            if entries is not None:
                return rows, entries
        raise altered(self._fetch, snapshot_id, ref)

    # -- one snapshot --------------------------------------------------------------

    def _append(self, rows: Rows, entries: list[Entry], new: str, found: Any) -> None:
        (snapshot_id,) = bulk.next_ids(self._connection, snapshots, 1)
        header = Header(*rows.header[: len(Header._fields)])
        header = header._replace(
            scope=new,
            parent_id=self._parent(header.parent_id),
            added_nbytes=0 if self._within else header.added_nbytes,
        )
        digest = rows._replace(header=header).digest(entries)
        row = (snapshot_id, self._scope_id, *header[1:], digest, found.origin)
        bulk.insert(self._connection, snapshots, [row])
        self._snapshots[found.id] = snapshot_id
        held = [
            (snapshot_id, self._params[e.name], self._version(e.param_version_id)) for e in entries
        ]
        of_snapshot: list[tuple[Any, Iterable[tuple[Any, ...]]]] = [
            (metrics, map(tuple, rows.metrics)),
            (extras, map(tuple, rows.extras)),
            (
                extra_blobs,
                [(seq, self._blob(b.blob_id)) for seq, b in enumerate(rows.extra_blobs)],
            ),
        ]
        bulk.insert(self._connection, snapshot_params, sorted(held))
        for table, values in of_snapshot:
            bulk.insert(self._connection, table, [(snapshot_id, *value) for value in values])

    def _parent(self, parent_id: int | None) -> int | None:
        if parent_id is None or parent_id in self._snapshots:
            return None if parent_id is None else self._snapshots[parent_id]
        # Of another scope; one that has been expired is nobody's parent here.
        known = self._within and self._fetch(_EXISTING, {"id": parent_id})
        return parent_id if known else None

    def _version(self, row_id: int) -> int:
        return row_id if self._within else self._versions[row_id]

    def _blob(self, row_id: int) -> int:
        return row_id if self._within else self._blobs[row_id]

    # -- values, into another database ---------------------------------------------

    def _copy_values(self, rows: Rows, entries: list[Entry], snapshot_id: int, ref: str) -> None:
        if self._within:
            return
        try:
            self._copy_missing(rows, entries)
        except CorruptError as error:
            if self._fetch(_EXISTING, {"id": snapshot_id}):
                raise
            raise _expired(ref) from error

    def _copy_missing(self, rows: Rows, entries: list[Entry]) -> None:
        new = {e.param_version_id: e for e in entries if e.param_version_id not in self._versions}
        specs = {e.constraint_id: e.spec for e in new.values()}
        unknown = {i: spec for i, spec in specs.items() if i not in self._constraints}
        arguments = {
            i: [row.blob_id for row in self._fetch(_ARGUMENTS, {"id": i})] for i in unknown
        }
        names = {
            blob_id: entry.name
            for entry in new.values()
            for blob_id in (entry.blob_id, *arguments.get(entry.constraint_id, ()))
        }
        needed = names.keys() | {row.blob_id for row in rows.extra_blobs}
        self._copy_blobs(needed - self._blobs.keys(), names)
        for row_id, spec in unknown.items():
            self._copy_constraint(row_id, spec, arguments[row_id])
        self._copy_versions(new, rows.header.version)

    def _copy_blobs(self, ids: set[int], names: Mapping[int, str]) -> None:
        stored = [
            _Stored(self._source, row, names.get(row.id))
            for batch in bulk.batched(sorted(ids), bulk.VARIABLES)
            for row in self._fetch(_BLOBS, {"values": batch})
        ]
        _check_all_found(stored, ids)
        rows, added = blob_bytes.put(self._connection, stored)
        self._blobs |= {blob.row_id: rows[blob.digest] for blob in stored}
        self._nbytes += sum(added.values())

    def _copy_constraint(self, row_id: int, spec: str, arguments: list[int]) -> None:
        digest = blake3(spec.encode()).digest()
        found = self._connection.execute(_CONSTRAINT, {"digest": digest}).first()
        if found is not None:
            self._constraints[row_id] = found.id
            return
        (new_id,) = bulk.next_ids(self._connection, constraints, 1)
        bulk.insert(self._connection, constraints, [(new_id, digest, spec)])
        links = [(new_id, seq, self._blobs[blob_id]) for seq, blob_id in enumerate(arguments)]
        bulk.insert(self._connection, constraint_blobs, links)
        self._constraints[row_id] = new_id

    def _copy_versions(self, new: Mapping[int, Entry], version: int) -> None:
        """Copy values; one that another scope stored first is said to be first stored here."""
        found = [
            row
            for batch in bulk.batched(sorted(new), bulk.VARIABLES)
            for row in self._fetch(_VERSIONS, {"values": batch})
        ]
        _check_all_found(found, new)
        ids = bulk.next_ids(self._connection, param_versions, len(found))
        values = []
        for row_id, row in zip(ids, found, strict=True):
            entry = new[row.id]
            own = row.param_id in self._own
            self._versions[row.id] = row_id
            changed = {
                "id": row_id,
                "param_id": self._params[entry.name],
                "version": row.version if own else version,
                "blob_id": self._blobs[row.blob_id],
                "constraint_id": self._constraints[row.constraint_id],
            }
            values.append(tuple((row._asdict() | changed).values()))
        bulk.insert(self._connection, param_versions, values)


def _check_all_found(found: Sized, wanted: Sized) -> None:
    if len(found) < len(wanted):
        raise CorruptError("what a snapshot holds is missing; nothing was copied")


def _expired(ref: str) -> ExpiredError:
    return ExpiredError(
        f"another process has expired {ref} while it was copied; nothing was copied, copy again"
    )


class _Stored:
    """A blob of the source on its way into the target, compared with its digest as it is read."""

    header: Final = b""  # it is in the first chunk

    def __init__(self, source: Database, row: Any, name: str | None) -> None:
        self.row_id: int = row.id
        self.digest = bytes(row.digest)
        self.nbytes: int = row.nbytes
        self.dtype: str = row.dtype
        self.shape = blob_bytes.parse_shape(row.shape)
        self._source = source
        self._name = name
        """The parameter that it belongs to; None for extras."""

    def chunks(self) -> Iterator[bytes]:
        """Yield its rows in their order.

        Raises:
            CorruptError: they are not those that were committed.
        """
        hasher = blake3()
        for _, _, chunk in blob_bytes.read(self._source, {self.row_id: self.nbytes}):
            hasher.update(chunk)
            yield chunk
        if hasher.digest() != self.digest:
            refs = affected(self._source, self.row_id)
            raise CorruptError(
                f"the stored bytes of {'an extra' if self._name is None else repr(self._name)} are "
                f"missing or altered; snapshots that hold them: {', '.join(refs[:5])}. Nothing was "
                f"copied",
                params=[] if self._name is None else [self._name],
                snapshots=refs,
            )
