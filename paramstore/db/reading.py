"""Snapshots as a whole: read, compared with their digest, and traced from a damaged row.

Reads and never writes; must never look inside a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from blake3 import blake3
from sqlalchemy import BindParameter, Connection, Executable, bindparam, select

from paramstore.db.blobs import parse_shape
from paramstore.db.catalogue import time_text
from paramstore.db.engine import Database
from paramstore.db.manifest import Header, entry_line, snapshot_digest
from paramstore.db.records import Entry, Manifest
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
)
from paramstore.errors import CorruptError, SnapshotNotFoundError
from paramstore.snapshot import Snapshot

_id: BindParameter[Any] = bindparam("id")
_HEADER = (
    select(
        scopes.c.name,
        snapshots.c.version,
        snapshots.c.parent_id,
        snapshots.c.step,
        snapshots.c.created_at,
        snapshots.c.message,
        snapshots.c.kind,
        snapshots.c.params,
        snapshots.c.changed,
        snapshots.c.nbytes,
        snapshots.c.added_nbytes,
        snapshots.c.digest,
        scopes.c.id,
    )
    .join_from(snapshots, scopes)
    .where(snapshots.c.id == _id)
)
_METRICS = select(metrics.c.name, metrics.c.value).where(metrics.c.snapshot_id == _id)
_EXTRAS = select(extras.c.kind, extras.c.name, extras.c.skeleton).where(extras.c.snapshot_id == _id)
_EXTRA_BLOBS = (
    select(extra_blobs.c.blob_id, blobs.c.digest, blobs.c.nbytes)
    .outerjoin_from(extra_blobs, blobs, blobs.c.id == extra_blobs.c.blob_id)
    .where(extra_blobs.c.snapshot_id == _id)
    .order_by(extra_blobs.c.seq)
)
VALUE: Final = (
    param_versions.c.version,
    param_versions.c.blob_id,
    blobs.c.digest,
    blobs.c.nbytes,
    blobs.c.dtype,
    blobs.c.shape,
    param_versions.c.constraint_id,
    constraints.c.spec,
    param_versions.c.kind,
    param_versions.c.requires_grad,
    param_versions.c.shape,
)
"""What `entry_of` reads behind the parameter's name and id and the value's id."""
# Outer joins, so that a row that leads nowhere is found and not left out.
_ENTRIES = (
    select(params.c.name, snapshot_params.c.param_id, snapshot_params.c.param_version_id, *VALUE)
    .outerjoin_from(snapshot_params, params, params.c.id == snapshot_params.c.param_id)
    .outerjoin(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .outerjoin(blobs, blobs.c.id == param_versions.c.blob_id)
    .outerjoin(constraints, constraints.c.id == param_versions.c.constraint_id)
    .where(snapshot_params.c.snapshot_id == _id)
)


# Who first stored each value, and what its constraint's digest says: looked at once a snapshot is
# known to be damaged, to tell where.
_owners = params.alias("owners")
_SUSPICIONS = (
    select(
        params.c.name,
        _owners.c.name.label("owner"),
        constraints.c.spec,
        constraints.c.digest.label("spec_digest"),
        blobs.c.id.label("blob_id"),
    )
    .outerjoin_from(snapshot_params, params, params.c.id == snapshot_params.c.param_id)
    .outerjoin(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .outerjoin(_owners, _owners.c.id == param_versions.c.param_id)
    .outerjoin(blobs, blobs.c.id == param_versions.c.blob_id)
    .outerjoin(constraints, constraints.c.id == param_versions.c.constraint_id)
    .where(snapshot_params.c.snapshot_id == _id)
)

_OF_PARAMS = (
    select(scopes.c.name, snapshots.c.version)
    .join_from(
        param_versions,
        snapshot_params,
        snapshot_params.c.param_version_id == param_versions.c.id,
    )
    .join(snapshots, snapshots.c.id == snapshot_params.c.snapshot_id)
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .outerjoin(constraint_blobs, constraint_blobs.c.constraint_id == param_versions.c.constraint_id)
    .where((param_versions.c.blob_id == _id) | (constraint_blobs.c.blob_id == _id))
    .order_by(scopes.c.name, snapshots.c.version)  # Python does not order cells of all types
    .distinct()
)
_OF_EXTRAS = (
    select(scopes.c.name, snapshots.c.version)
    .join_from(extra_blobs, snapshots, snapshots.c.id == extra_blobs.c.snapshot_id)
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .where(extra_blobs.c.blob_id == _id)
    .order_by(scopes.c.name, snapshots.c.version)
    .distinct()
)
_HOLDERS = (_OF_PARAMS, _OF_EXTRAS)


Fetch = Callable[[Executable, Mapping[str, Any]], Sequence[Any]]
"""Runs one query to its end: ``Database.fetch``, or ``inside`` a transaction."""


class Rows(NamedTuple):
    """All rows of one snapshot, as they are."""

    header: Any
    metrics: Sequence[Any]
    extras: Sequence[Any]
    extra_blobs: Sequence[Any]
    entries: Sequence[Any]

    @property
    def stored_digest(self) -> bytes:
        """The digest that was computed at the commit."""
        return bytes(self.header.digest)

    def digest(self, entries: Iterable[Entry]) -> bytes:
        """Compute the digest of these rows with ``entries`` as the parameters."""
        return snapshot_digest(
            Header(*self.header[: len(Header._fields)]),
            {name: math.nan if value is None else value for name, value in self.metrics},
            [tuple(row) for row in self.extras],
            [row.digest for row in self.extra_blobs],
            [entry.line for entry in sorted(entries)],
        )

    def checked(self) -> list[Entry] | None:
        """Return the parameters; None where a row is not what was committed."""
        try:
            entries = sorted(entry_of(self.header.id, row) for row in self.entries)
            intact = (
                self.digest(entries) == self.stored_digest
                and len(entries) == self.header.params
                and sum(entry.nbytes for entry in entries) == self.header.nbytes
            )
        # A row leads nowhere, has bytes or text for a number, or is no shape.
        except (TypeError, ValueError, AttributeError, CorruptError):
            return None
        return entries if intact else None

    def describe(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot says what these rows do; it was found through indexes."""
        own = Header(*self.header[: len(Header._fields)])._replace(parent_id=None)
        found = {name: None if value is None else float(value) for name, value in self.metrics}
        return (own, found) == facts(snapshot)


def facts(snapshot: Snapshot) -> tuple[Header, dict[str, float | None]]:
    """Return what a snapshot says of itself as its rows do, the parent left out."""
    header = Header(
        scope=snapshot.scope,
        version=snapshot.version,
        parent_id=None,
        step=snapshot.step,
        created_at=time_text(snapshot.created_at),
        message=snapshot.message,
        kind=snapshot.kind,
        params=snapshot.params,
        changed=snapshot.changed,
        nbytes=snapshot.nbytes,
        added_nbytes=snapshot.added_nbytes,
    )
    numbers = snapshot.metrics.items()
    return header, {name: None if math.isnan(value) else value for name, value in numbers}


def read_rows(fetch: Fetch, snapshot_id: int) -> Rows | None:
    """Read all rows of a snapshot; None where it is gone."""
    key = {"id": snapshot_id}
    header = fetch(_HEADER, key)
    if not header:
        return None
    queries = (_METRICS, _EXTRAS, _EXTRA_BLOBS, _ENTRIES)
    return Rows(header[0], *(fetch(query, key) for query in queries))


def inside(connection: Connection) -> Fetch:
    """Run queries in a transaction, which sees its own rows; in memory nobody else can ask."""
    return lambda statement, parameters: connection.execute(statement, parameters).all()


def intact(connection: Connection, snapshot_id: int, ref: str) -> tuple[Rows, list[Entry]]:
    """Read, in a transaction, all rows of a snapshot that is about to change.

    Raises:
        CorruptError: they are not those that were committed.
    """
    fetch = inside(connection)
    rows = read_rows(fetch, snapshot_id)
    entries = rows and rows.checked()
    if rows is None or entries is None:
        raise altered(fetch, snapshot_id, ref)
    return rows, entries


def manifest(database: Database, snapshot: Snapshot) -> Manifest:
    """Read all rows of a snapshot and compare them with its digest.

    Raises:
        SnapshotNotFoundError: it is gone.
        CorruptError: the rows are not those that were committed.
    """
    try:
        for _ in range(2):  # a rename by another process may fall between two of the queries
            rows = read_rows(database.fetch, snapshot.id)
            if rows is None:
                raise SnapshotNotFoundError(f"{snapshot.ref} is gone: it has been expired")
            entries = rows.checked()
            if entries is not None and rows.describe(snapshot):
                return _manifest(snapshot, rows, entries)
        raise altered(database.fetch, snapshot.id, snapshot.ref)
    except CorruptError as error:
        if error.snapshots:
            raise
        raise CorruptError(  # a page that SQLite itself cannot read
            f"{snapshot.ref} is damaged: {error}", snapshots=[snapshot.ref]
        ) from error


def _manifest(snapshot: Snapshot, rows: Rows, entries: list[Entry]) -> Manifest:
    return Manifest(
        snapshot=snapshot,
        digest=rows.stored_digest,
        entries={entry.name: entry for entry in entries},
        extras=tuple(sorted((row.kind, row.name, row.skeleton) for row in rows.extras)),
        extra_blobs=tuple((r.blob_id, r.digest, r.nbytes) for r in rows.extra_blobs),
    )


def entry_of(scope_id: int, row: Any) -> Entry:
    """Return one parameter of a snapshot, as its row says.

    Raises:
        TypeError, AttributeError, CorruptError: the row leads nowhere, or is no shape.
    """
    (
        name, param_id, param_version_id, since_version, blob_id, digest, nbytes, dtype,
        stored_shape, constraint_id, spec, kind, requires_grad, shape,
    ) = row  # fmt: skip
    if requires_grad is None:  # the digest knows two values
        raise CorruptError("a parameter of which nobody knows whether it is trained")
    return Entry(
        name,
        scope_id,
        param_id,
        param_version_id,
        since_version,
        blob_id,
        digest,
        nbytes,
        dtype,
        parse_shape(stored_shape),
        constraint_id,
        spec,
        kind,
        requires_grad,
        parse_shape(shape),
        entry_line(name, digest, spec, kind, requires_grad=requires_grad),
    )


# -- damage ------------------------------------------------------------------------


def affected(database: Database, blob_id: int) -> list[str]:
    """Return references of the snapshots that hold a blob.

    Looks at every row; for error texts.
    """
    rows = [row for query in _HOLDERS for row in database.fetch(query, {"id": blob_id})]
    return list(dict.fromkeys(f"{scope}@{version}" for scope, version in rows))


def altered(fetch: Fetch, snapshot_id: int, ref: str) -> CorruptError:
    """Return the error for a snapshot whose rows are not those that were committed."""
    names = sorted(_suspects(fetch(_SUSPICIONS, {"id": snapshot_id})))
    whom = f"; look at {', '.join(map(repr, names[:10]))}" if names else ""
    return CorruptError(
        f"{ref} is damaged: its rows are not those that were committed{whom}. Restore another "
        f"snapshot, or the database from a backup",
        params=names,
        snapshots=[ref],
    )


def _suspects(rows: Iterable[Any]) -> Iterable[str]:
    """Yield the names of rows that contradict each other."""
    for name, owner, spec, spec_digest, blob_id in rows:
        whole = blob_id is not None and all(isinstance(t, str) for t in (name, owner, spec))
        if not whole or owner != name or blake3(spec.encode()).digest() != spec_digest:
            yield name if name and isinstance(name, str) else "a parameter without a name"
