"""One snapshot on its way into the tables, in a transaction that only appends.

Inserts rows for tensors that are already stored; must never change a row, the head of the scope
and a tag that moves excepted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

from blake3 import blake3
from sqlalchemy import BindParameter, Connection, bindparam, select, update

from paramstore.db import bulk
from paramstore.db.blobs import digests, shape_text
from paramstore.db.manifest import Header, entry_line, snapshot_digest
from paramstore.db.origin import origin
from paramstore.db.records import Draft, Entry, NewEntry, StaleEntries
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
from paramstore.errors import ConflictError, CorruptError
from paramstore.refs import check_param_name
from paramstore.snapshot import Snapshot, Statistics

_numbers = attrgetter("norm", "mean", "std", "min", "max", "nan_count", "inf_count", "value")
_values: BindParameter[Any] = bindparam("values", expanding=True)
_SCOPE = select(scopes.c.id, scopes.c.head_version).where(scopes.c.name == bindparam("name"))
_HEAD = (
    _SCOPE.add_columns(snapshots.c.id.label("head_id"))
    .select_from(scopes)
    .outerjoin(
        snapshots,
        (snapshots.c.scope_id == scopes.c.id) & (snapshots.c.version == scopes.c.head_version),
    )
)
# By the rows themselves: the concatenation keeps SQLite from using the index of the names.
_SAME_SCOPE = select(scopes.c.id, scopes.c.head_version).where(
    scopes.c.name.concat("") == bindparam("name")
)
_MOVE_HEAD = (
    scopes.update().where(scopes.c.id == bindparam("row")).values(head_version=bindparam("version"))
)
_PARENT = (
    select(scopes.c.name, snapshots.c.version)
    .join_from(snapshots, scopes)
    .where(snapshots.c.id == bindparam("id"))
)
_PARENT_VERSIONS = select(snapshot_params.c.param_version_id).where(
    snapshot_params.c.snapshot_id == bindparam("id")
)
_PARAMS = select(params.c.name, params.c.id).where(params.c.scope_id == bindparam("scope_id"))
_VERSIONS = (
    select(param_versions.c.id)
    .join(blobs, blobs.c.id == param_versions.c.blob_id)
    .where(param_versions.c.id.in_(_values))
)
_CONSTRAINTS = select(constraints.c.digest, constraints.c.id, constraints.c.spec).where(
    constraints.c.digest.in_(_values)
)
_MEND_CONSTRAINT = (
    update(constraints)
    .where(constraints.c.id == bindparam("row_id"))
    .values(spec=bindparam("spec"))
)


def head_version(connection: Connection, scope: str) -> int:
    """Return the version of the newest snapshot of a scope; 0 where there is none."""
    row = connection.execute(_SCOPE, {"name": scope}).first()
    return row.head_version if row else 0


class Catalogue:
    """Appends one draft.

    **Threads**: one, that of the write transaction whose connection it was given.

    **Ownership**: borrows the connection for one call of `append`.

    **Durability**: nothing is stored before the transaction commits.
    """

    def __init__(self, connection: Connection, draft: Draft, written: Mapping[int, bytes]) -> None:
        self._connection = connection
        self._draft = draft
        self._written = written
        """Digests of the blobs that this very transaction wrote or found, by row."""
        self._new = {n: e for n, e in draft.entries.items() if isinstance(e, NewEntry)}
        self._kept = {n: e for n, e in draft.entries.items() if isinstance(e, Entry)}

    def append(self, added_nbytes: int) -> tuple[Snapshot, dict[str, Entry]]:
        """Write the rows and return the snapshot and all of its entries, sorted by name.

        Raises:
            ConflictError: the head of the scope is not the one that the draft saw.
            StaleEntries: rows that the draft refers to are gone.
        """
        draft = self._draft
        now = datetime.now(UTC)
        scope_id, version = self._move_head(now)
        parent = self._parent()
        self._check_blobs()
        restored = self._check_kept() if self._kept else 0
        entries = self._entries(scope_id, version)
        header = Header(
            scope=draft.scope,
            version=version,
            parent_id=draft.parent_id if parent else None,  # it may be gone
            step=draft.step,
            created_at=time_text(now),
            message=draft.message,
            kind=draft.kind,
            params=len(entries),
            # Where the parent has been expired nobody knows what it held.
            changed=len(self._new) + (restored if parent or draft.parent_id is None else 0),
            nbytes=sum(entry.nbytes for entry in entries.values()),
            added_nbytes=added_nbytes,
        )
        snapshot_id = self._insert_snapshot(scope_id, header, entries)
        snapshot = self._snapshot(snapshot_id, header, parent, now)
        return snapshot, entries

    # -- what the draft rests on ---------------------------------------------------

    def _move_head(self, now: datetime) -> tuple[int, int]:
        draft = self._draft
        row = self._connection.execute(_HEAD, {"name": draft.scope}).first()
        found = row.head_version if row else 0
        is_other = row is not None and draft.seen_id not in (None, row.head_id)
        if (found != draft.seen_head or is_other) and not draft.append:
            raise ConflictError(draft.scope, seen=draft.seen_head, found=found)
        version = found + 1
        if row is None:
            if self._connection.execute(_SAME_SCOPE, {"name": draft.scope}).first():
                raise CorruptError(
                    f"scope {draft.scope!r} is there and its index does not know it; salvage the "
                    f"file, or restore it from a backup"
                )
            (scope_id,) = bulk.next_ids(self._connection, scopes, 1)
            new = (scope_id, draft.scope, version, time_text(now))
            bulk.insert(self._connection, scopes, [new])
            return scope_id, version
        self._connection.execute(_MOVE_HEAD, {"row": row.id, "version": version})
        return row.id, version

    def _parent(self) -> str | None:
        """Return the reference of the parent; None where there is none, or it is gone."""
        if self._draft.parent_id is None:
            return None
        row = self._connection.execute(_PARENT, {"id": self._draft.parent_id}).first()
        return row and f"{row.name}@{row.version}"

    def _check_blobs(self) -> None:
        """Refuse blobs that are gone; those that this transaction saw cannot be."""
        of_extras = dict(self._draft.extra_blobs)
        needed = {entry.blob_id for entry in self._new.values()}
        needed.update(of_extras, *(e.spec_blobs for e in self._new.values() if e.spec_blobs))
        found = self._written
        if unseen := needed - found.keys():
            found = {**found, **digests(self._connection, unseen)}
        lost = unseen - found.keys()
        names = [
            name
            for name, entry in self._new.items()
            if found.get(entry.blob_id) != entry.digest or not lost.isdisjoint(entry.spec_blobs)
        ]
        gone = [row_id for row_id, digest in of_extras.items() if found.get(row_id) != digest]
        if names or gone:
            raise StaleEntries(names, gone)

    def _check_kept(self) -> int:
        """Refuse unchanged values whose rows are gone; those that the parent holds cannot be.

        Returns:
            How many of them the parent does not hold: values of another snapshot.
        """
        key = {"id": self._draft.parent_id}
        rows = self._connection.execute(_PARENT_VERSIONS, key).all()
        of_parent = {row_id for (row_id,) in rows}
        others = {
            name: entry.param_version_id
            for name, entry in self._kept.items()
            if entry.param_version_id not in of_parent
        }
        stored = bulk.select_in(self._connection, _VERSIONS, set(others.values()))
        found = {row_id for (row_id,) in stored}
        gone = [name for name, row_id in others.items() if row_id not in found]
        if gone:
            raise StaleEntries(gone)
        return len(others)

    # -- rows ----------------------------------------------------------------------

    def _entries(self, scope_id: int, version: int) -> dict[str, Entry]:
        """Insert what is new and return all entries, sorted by name."""
        param_ids = self._param_ids(scope_id)
        constraint_ids = self._constraint_ids()
        entries = {
            name: _as_member(entry, name, scope_id, param_ids[name])
            for name, entry in self._kept.items()
        }
        rows = []
        ids = bulk.next_ids(self._connection, param_versions, len(self._new))
        for row_id, (name, new) in zip(ids, self._new.items(), strict=True):
            entry = _stored(
                new, name, scope_id, param_ids[name], row_id, version, constraint_ids[new.spec]
            )
            entries[name] = entry
            rows.append(_version_row(entry, new.statistics))
        for length in set(map(len, rows)):
            same = [row for row in rows if len(row) == length]
            bulk.insert(self._connection, param_versions, same)
        return {name: entries[name] for name in sorted(entries)}

    def _param_ids(self, scope_id: int) -> dict[str, int]:
        # All names are read, even those known from entries: another process may have renamed one.
        stored: Sequence[Any] = self._connection.execute(_PARAMS, {"scope_id": scope_id}).all()
        known: dict[str, int] = dict(stored)
        # In the draft's order, not the manifest's: a run that continues finds its parameters in the
        # order in which it first made them.
        new = [check_param_name(name) for name in self._draft.entries if name not in known]
        ids = bulk.next_ids(self._connection, params, len(new))
        added = dict(zip(new, ids, strict=True))
        rows = [(row_id, scope_id, name) for name, row_id in added.items()]
        bulk.insert(self._connection, params, rows)
        return known | added

    def _constraint_ids(self) -> dict[str, int]:
        of_spec = {entry.spec: entry for entry in self._new.values()}
        wanted = {blake3(spec.encode()).digest(): entry for spec, entry in of_spec.items()}
        found = {}
        for digest, row_id, spec in bulk.select_in(self._connection, _CONSTRAINTS, wanted):
            found[digest] = row_id
            if spec != wanted[digest].spec:  # damaged since, and what it was is at hand
                mended = {"row_id": row_id, "spec": wanted[digest].spec}
                self._connection.execute(_MEND_CONSTRAINT, mended)
        new = {digest: entry for digest, entry in wanted.items() if digest not in found}
        ids = bulk.next_ids(self._connection, constraints, len(new))
        added = dict(zip(new, ids, strict=True))
        specs = [(row_id, digest, new[digest].spec) for digest, row_id in added.items()]
        bulk.insert(self._connection, constraints, specs)
        links = [
            (row_id, seq, blob_id)
            for digest, row_id in added.items()
            for seq, blob_id in enumerate(new[digest].spec_blobs)
        ]
        bulk.insert(self._connection, constraint_blobs, links)
        found |= added
        return {entry.spec: found[digest] for digest, entry in wanted.items()}

    def _insert_snapshot(self, scope_id: int, header: Header, entries: dict[str, Entry]) -> int:
        connection, draft = self._connection, self._draft
        digest = snapshot_digest(
            header,
            draft.metrics,
            draft.extras,
            [digest for _, digest in draft.extra_blobs],
            [entry.line for entry in entries.values()],
        )
        (snapshot_id,) = bulk.next_ids(connection, snapshots, 1)
        row = (snapshot_id, scope_id, *header[1:], digest, origin())
        bulk.insert(connection, snapshots, [row])
        # In the order of the key, so that they go to the end of the table.
        rows = [(snapshot_id, e.param_id, e.param_version_id) for e in entries.values()]
        bulk.insert(connection, snapshot_params, sorted(rows))
        of_snapshot: list[tuple[Any, list[tuple[Any, ...]]]] = [
            (metrics, [(n, _null(v)) for n, v in sorted(draft.metrics.items())]),
            (extras, sorted(draft.extras)),
            (extra_blobs, [(seq, blob_id) for seq, (blob_id, _) in enumerate(draft.extra_blobs)]),
        ]
        for table, found in of_snapshot:
            bulk.insert(connection, table, [(snapshot_id, *row) for row in found])
        set_tags(connection, scope_id, snapshot_id, draft.tags)
        return snapshot_id

    def _snapshot(
        self, snapshot_id: int, header: Header, parent: str | None, now: datetime
    ) -> Snapshot:
        draft = self._draft
        return Snapshot(
            id=snapshot_id,
            scope=header.scope,
            version=header.version,
            parent=parent,
            step=header.step,
            created_at=now,
            message=header.message,
            kind=header.kind,
            metrics={name: draft.metrics[name] for name in sorted(draft.metrics)},
            tags=tuple(sorted(set(draft.tags))),
            params=header.params,
            changed=header.changed,
            nbytes=header.nbytes,
            added_nbytes=header.added_nbytes,
            origin=origin(),
        )


def set_tags(connection: Connection, scope_id: int, snapshot_id: int, names: Iterable[str]) -> None:
    """Make tags of a scope point to a snapshot, wherever they pointed before."""
    for name in sorted(set(names)):
        here = (tags.c.scope_id == scope_id) & (tags.c.name == name)
        connection.execute(tags.delete().where(here))
        bulk.insert(connection, tags, [(scope_id, name, snapshot_id)])


def time_text(moment: datetime) -> str:
    """Return a UTC time as it stands in the tables."""
    return f"{moment:%Y-%m-%dT%H:%M:%S.%fZ}"


def _as_member(entry: Entry, name: str, scope_id: int, param_id: int) -> Entry:
    """Return the entry as that of another scope, after a fork, or name, after a rename."""
    if entry.name != name:
        line = entry_line(
            name, entry.digest, entry.spec, entry.kind, requires_grad=entry.requires_grad
        )
        entry = entry._replace(name=name, line=line)
    if (entry.scope_id, entry.param_id) != (scope_id, param_id):
        entry = entry._replace(scope_id=scope_id, param_id=param_id)
    return entry


def _stored(
    new: NewEntry, name: str, scope_id: int, param_id: int, row_id: int, version: int, spec_id: int
) -> Entry:
    # Unpacked at once: a named tuple gives out each field at the price of a call.
    (
        _, blob_id, digest, nbytes, dtype, stored_shape, spec, _, kind, requires_grad, shape, _,
    ) = new  # fmt: skip
    return Entry(
        name,
        scope_id,
        param_id,
        row_id,
        version,
        blob_id,
        digest,
        nbytes,
        dtype,
        stored_shape,
        spec_id,
        spec,
        kind,
        requires_grad,
        shape,
        entry_line(name, digest, spec, kind, requires_grad=requires_grad),
    )


def _version_row(entry: Entry, found: Statistics | None) -> tuple[Any, ...]:
    row = (
        entry.param_version_id,
        entry.param_id,
        entry.since_version,
        entry.blob_id,
        entry.constraint_id,
        entry.kind,
        int(entry.requires_grad),
        shape_text(entry.shape),
    )
    return row if found is None else (*row, *_numbers(found), int(found.unconstrained))


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value
