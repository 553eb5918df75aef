"""Makes a sound store of rows that were read out of a damaged one.

What is whole stays as it is; what is left of the rest moves to scopes whose names say so. Must
never let a snapshot keep its name that does not hold what was committed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, Executable, bindparam, func, select

from paramstore.damage import Loss
from paramstore.db import bulk, tidying
from paramstore.db.engine import Database
from paramstore.db.manifest import Header
from paramstore.db.placeholders import UNKNOWN_TIME, put_placeholders
from paramstore.db.reading import VALUE, Rows, entry_of, read_rows
from paramstore.db.records import Entry
from paramstore.db.schema import (
    blobs,
    constraint_blobs,
    constraints,
    extra_blobs,
    extras,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
)
from paramstore.db.soundness import is_time
from paramstore.errors import CorruptError, InvalidNameError
from paramstore.progress import progress
from paramstore.refs import check_param_name, check_scope_name

SALVAGED: Final = "salvaged"
"""In the name of a scope: what is there is as it was committed, and something is lost."""
DOUBTFUL: Final = "doubtful"
"""In the name of a scope: the rows were altered, so that anything may be."""
_LONGEST: Final = 180  # characters of a scope's name that are kept in front of these words

_values: BindParameter[Any] = bindparam("values", expanding=True)
_FIRST_STORED = select(params.c.scope_id, param_versions.c.version, param_versions.c.id).join_from(
    param_versions, params, params.c.id == param_versions.c.param_id
)
_ENTRIES = (
    select(params.c.name, params.c.id, param_versions.c.id, *VALUE)
    .join_from(param_versions, params, params.c.id == param_versions.c.param_id)
    .join(blobs, blobs.c.id == param_versions.c.blob_id)
    .join(constraints, constraints.c.id == param_versions.c.constraint_id)
    .where(param_versions.c.id.in_(_values))
)
_ARGUMENTS = select(constraint_blobs.c.constraint_id).where(constraint_blobs.c.blob_id.in_(_values))


@dataclass(slots=True)
class Mended:
    """What became of the snapshots."""

    whole: int = 0
    """Snapshots that are as they were committed."""
    tensors: int = 0
    """Stored tensors that are left."""
    losses: list[Loss] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else is lost."""


def mend(database: Database, damaged: set[int], *, suspicious: bool) -> Mended:
    """Bring a database of salvaged rows in order.

    Args:
        database: the new one.
        damaged: stored tensors whose bytes are not whole; their rows are there, and go.
        suspicious: whether rows may be missing without a trace.
    """
    with database.write(foreign_keys=False) as connection:
        notes = put_placeholders(connection, suspicious=suspicious)
        mending = _Mending(connection, damaged)
        mended = mending.run()
        tidying.forget_statistics(connection, mending.scopes_of(DOUBTFUL))
        notes += tidying.move_tags(connection)
        tidying.move_heads(connection)
        tidying.clean(connection, damaged)
        mended.notes += notes
        mended.tensors = connection.execute(select(func.count()).select_from(blobs)).scalar_one()
        return mended


class _Mending:
    """One pass over all snapshots, inside a write transaction.

    **Threads**: one.

    **Ownership**: borrows the connection.
    """

    def __init__(self, connection: Connection, damaged: set[int]) -> None:
        self._connection = connection
        self._damaged = damaged
        self._lost_constraints: set[int] = set()
        """Those whose tensors are damaged."""
        self._first_stored: dict[tuple[int, int], list[int]] | None = None
        self._new_scopes: dict[tuple[int, str], tuple[int, str]] = {}
        self._versions: dict[int, set[int]] = defaultdict(set)
        self._params: dict[tuple[int, str], int] = {}
        self._mended = Mended()

    def run(self) -> Mended:
        """Look at every snapshot, and move those that are not whole."""
        for some in bulk.batched(self._damaged, bulk.VARIABLES):
            found = self._fetch(_ARGUMENTS, {"values": some})
            self._lost_constraints.update(row_id for (row_id,) in found)
        ids = self._fetch(select(snapshots.c.id).order_by(snapshots.c.id))
        with progress("mending snapshots", len(ids)) as advance:
            for (snapshot_id,) in ids:
                self._mend(snapshot_id)
                advance(1)
        return self._mended

    def scopes_of(self, word: str) -> list[int]:
        """The scopes that were made for what is salvaged, or doubtful."""
        return [scope_id for (_, kind), (scope_id, _) in self._new_scopes.items() if kind == word]

    def _fetch(
        self, statement: Executable, parameters: Mapping[str, Any] | None = None
    ) -> Sequence[Any]:
        return self._connection.execute(statement, parameters or {}).all()

    def _read(self, snapshot_id: int) -> Rows:
        rows = read_rows(self._fetch, snapshot_id)
        assert rows is not None  # every scope has a row by now
        return rows

    def _mend(self, snapshot_id: int) -> None:
        rows = self._read(snapshot_id)
        entries = rows.checked() or self._rebuilt(snapshot_id, rows)
        is_doubtful = entries is None
        if entries is None:
            entries = self._left(rows)
        kept = {entry.name: entry for entry in entries if self._is_whole(entry)}
        names = {entry.name for entry in entries}
        names |= {row.name for row in rows.entries if row.name is not None}
        lost_extras = self._drop_extras(snapshot_id, rows, is_doubtful=is_doubtful)
        if not (is_doubtful or names - kept.keys() or lost_extras):
            self._versions[rows.header.id].add(rows.header.version)
            self._mended.whole += 1
            return
        self._mended.losses.append(
            Loss(
                snapshot=f"{rows.header.name}@{rows.header.version}",
                kept_as=self._move(snapshot_id, rows.header, kept, is_doubtful=is_doubtful),
                params=tuple(sorted(names - kept.keys())),
                extras=lost_extras,
                kept=len(kept),
                is_doubtful=is_doubtful,
            )
        )

    # -- what is left --------------------------------------------------------------

    def _rebuilt(self, snapshot_id: int, rows: Rows) -> list[Entry] | None:
        """Put together what a snapshot must have held; None where its digest says otherwise.

        Its parent, with the values that it stored first itself.
        """
        scope_id, own = rows.header.id, self._stored_first(rows)
        found = {entry.name: entry for entry in own}
        if rows.header.parent_id is not None:
            parent = read_rows(self._fetch, rows.header.parent_id)
            entries = parent.checked() if parent is not None else None
            for entry in entries or ():
                found.setdefault(entry.name, entry)
        entries = [found[name] for name in sorted(found)]
        try:
            if rows.digest(entries) != rows.stored_digest or not entries:
                return None
        except (TypeError, AttributeError):
            return None
        self._put_entries(snapshot_id, scope_id, entries)
        return entries

    def _left(self, rows: Rows) -> list[Entry]:
        """What can be believed of a snapshot whose rows are not those that were committed."""
        found = [_plausible(rows.header.id, row) for row in rows.entries]
        named = {entry.name: entry for entry in found if entry is not None}
        for entry in self._stored_first(rows):
            named.setdefault(entry.name, entry)
        return [named[name] for name in sorted(named)]

    def _stored_first(self, rows: Rows) -> list[Entry]:
        """The values that a snapshot was the first to store, whether it still names them or not."""
        if self._first_stored is None:
            self._first_stored = defaultdict(list)
            for scope_id, version, row_id in self._fetch(_FIRST_STORED):
                self._first_stored[scope_id, version].append(row_id)
        scope_id = rows.header.id
        ids = self._first_stored.get((scope_id, rows.header.version), ())
        found = bulk.select_in(self._connection, _ENTRIES, ids)
        entries = (_plausible(scope_id, row) for row in found)
        return [entry for entry in entries if entry is not None]

    def _is_whole(self, entry: Entry) -> bool:
        return (
            entry.blob_id not in self._damaged and entry.constraint_id not in self._lost_constraints
        )

    def _drop_extras(self, snapshot_id: int, rows: Rows, *, is_doubtful: bool) -> tuple[str, ...]:
        """Delete the extras and states whose tensors are lost; return their names."""
        lost = any(row.digest is None or row.blob_id in self._damaged for row in rows.extra_blobs)
        places = set().union(*(_places(row.skeleton) for row in rows.extras))
        # Where a row in between is lost, the others have moved up: no place is right any more.
        if not lost and not (is_doubtful and places != set(range(len(rows.extra_blobs)))):
            return ()
        of_snapshot = extras.c.snapshot_id == snapshot_id
        dropped = [row for row in rows.extras if _places(row.skeleton)]
        for row in dropped:
            one = of_snapshot & (extras.c.kind == row.kind) & (extras.c.name == row.name)
            tidying.delete(self._connection, extras, one)
        of_snapshot = extra_blobs.c.snapshot_id == snapshot_id
        tidying.delete(self._connection, extra_blobs, of_snapshot)
        return tuple(row.name for row in dropped)

    # -- where it goes -------------------------------------------------------------

    def _move(
        self, snapshot_id: int, old: Any, kept: Mapping[str, Entry], *, is_doubtful: bool
    ) -> str:
        """Let a snapshot be one of another scope; return its new reference."""
        scope_id, scope = self._new_scope(old, DOUBTFUL if is_doubtful else SALVAGED)
        version = old.version
        if version < 1 or version in self._versions[scope_id]:
            version = max(self._versions[scope_id], default=0) + 1
        self._versions[scope_id].add(version)
        self._put_entries(snapshot_id, scope_id, kept.values(), first_stored_at=old.version)
        has_parent = old.parent_id is not None and old.parent_id < snapshot_id
        header = Header(
            scope=scope,
            version=version,
            parent_id=old.parent_id if has_parent else None,
            step=old.step,
            created_at=old.created_at if is_time(old.created_at) else UNKNOWN_TIME,
            message=old.message,
            kind=old.kind,
            params=len(kept),
            changed=min(old.changed, len(kept)),
            nbytes=sum(entry.nbytes for entry in kept.values()),
            added_nbytes=old.added_nbytes,
        )
        values = {**header._asdict(), "scope_id": scope_id}
        del values["scope"]
        here = snapshots.update().where(snapshots.c.id == snapshot_id)
        self._connection.execute(here.values(**values))
        digest = self._read(snapshot_id).digest(kept.values())
        self._connection.execute(here.values(digest=digest))
        return f"{scope}@{version}"

    def _put_entries(
        self,
        snapshot_id: int,
        scope_id: int,
        entries: Iterable[Entry],
        *,
        first_stored_at: int | None = None,
    ) -> None:
        """Let a snapshot hold these; what it stored first at that version goes with it."""
        here = snapshot_params.c.snapshot_id == snapshot_id
        tidying.delete(self._connection, snapshot_params, here)
        rows = []
        for entry in entries:
            param_id = self._param(scope_id, entry.name)
            rows.append((snapshot_id, param_id, entry.param_version_id))
            if entry.since_version == first_stored_at:
                self._connection.execute(
                    param_versions.update()
                    .where(param_versions.c.id == entry.param_version_id)
                    .where(param_versions.c.param_id == entry.param_id)
                    .values(param_id=param_id)
                )
        bulk.insert(self._connection, snapshot_params, sorted(rows))

    def _new_scope(self, old: Any, word: str) -> tuple[int, str]:
        key = (old.id, word)
        if key not in self._new_scopes:
            taken = {name for (name,) in self._fetch(select(scopes.c.name))}
            base = f"{_as_scope(old.name, old.id)[:_LONGEST]} ({word}"
            names = (f"{base})" if n == 1 else f"{base} {n})" for n in range(1, len(taken) + 2))
            name = next(name for name in names if name not in taken)
            (scope_id,) = bulk.next_ids(self._connection, scopes, 1)
            bulk.insert(self._connection, scopes, [(scope_id, name, 0, UNKNOWN_TIME)])
            self._new_scopes[key] = scope_id, name
        return self._new_scopes[key]

    def _param(self, scope_id: int, name: str) -> int:
        if (scope_id, name) not in self._params:
            here = (params.c.scope_id == scope_id) & (params.c.name == name)
            found = self._connection.execute(select(params.c.id).where(here)).scalar()
            if found is None:
                (found,) = bulk.next_ids(self._connection, params, 1)
                bulk.insert(self._connection, params, [(found, scope_id, name)])
            self._params[scope_id, name] = found
        return self._params[scope_id, name]


def _plausible(scope_id: int, row: Sequence[Any]) -> Entry | None:
    try:
        entry = entry_of(scope_id, row)
        check_param_name(entry.name)
    except (TypeError, AttributeError, CorruptError, InvalidNameError):
        return None
    return entry


def _as_scope(name: str, scope_id: int) -> str:
    try:
        return check_scope_name(name)
    except InvalidNameError:
        return f"lost scope {scope_id}"


def _places(skeleton: str) -> set[int]:
    """The numbers of the stored tensors that an extra has data in."""
    found: set[int] = set()
    try:
        _collect(json.loads(skeleton), found)
    except (ValueError, RecursionError):
        found.add(-1)  # none that there is, because nobody can read it
    return found


def _collect(node: Any, found: set[int]) -> None:
    if isinstance(node, list):
        for item in node:
            _collect(item, found)
    elif isinstance(node, dict):
        for key, content in node.items():
            data = content.get("data") if isinstance(content, dict) else content
            if key in ("$tensor", "$array", "$bytes") and isinstance(data, int):
                found.add(data)
            else:
                _collect(content, found)
