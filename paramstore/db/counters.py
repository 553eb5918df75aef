"""Numbers that count up, ids and versions: what is wrong with them in the rows of a database.

Reads and never writes, one short query at a time; never looks at the bytes of a tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import BindParameter, bindparam, func, literal, null, or_, select, union_all
from sqlalchemy import column as column_of
from sqlalchemy import table as table_of

from paramstore.damage import Problem
from paramstore.db.engine import Database
from paramstore.db.schema import (
    CHUNK_BITS,
    blobs,
    metadata,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
)
from paramstore.db.soundness import LAST_VALUE, VALUES, places

_RANGE: Final = 50_000
"""Values in one query."""
_SNAPSHOTS: Final = 100
"""Snapshots in one query of those that go through what each holds."""

_sequence = table_of("sqlite_sequence", column_of("name"), column_of("seq"))
_tables = table_of("sqlite_master", column_of("name"), column_of("type"))
_NUMBERED: Final = [
    table for table in metadata.tables.values() if table.dialect_options["sqlite"]["autoincrement"]
]
# In one statement, so that no commit falls in between. The parent of a snapshot was one, too.
_COUNTERS = union_all(
    select(_sequence.c.name, _sequence.c.seq, null().label("newest")),
    *(select(literal(t.name), null(), func.max(t.c.id)) for t in _NUMBERED),
    select(literal(snapshots.name), null(), func.max(snapshots.c.parent_id)),
)
_TABLES = select(_tables.c.name).where(_tables.c.type == "table")

_first: BindParameter[Any] = bindparam("first")
_last: BindParameter[Any] = bindparam("last")
_LAST_SNAPSHOT = select(func.max(snapshots.c.id))
_NO_VERSIONS = VALUES.where(param_versions.c.id.between(_first, _last)).where(
    or_(
        func.typeof(param_versions.c.version) != "integer",
        param_versions.c.version < 1,
        param_versions.c.version > scopes.c.head_version,
    )
)
_HELD_BEFORE = (
    select(
        params.c.name,
        scopes.c.name.label("scope"),
        param_versions.c.version,
        func.min(snapshots.c.version).label("held"),
    )
    .join_from(snapshots, snapshot_params, snapshot_params.c.snapshot_id == snapshots.c.id)
    .join(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .join(
        params,
        (params.c.id == param_versions.c.param_id) & (params.c.scope_id == snapshots.c.scope_id),
    )
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .where(snapshots.c.id.between(_first, _last))
    .where(param_versions.c.version > snapshots.c.version)
    .group_by(param_versions.c.id)
)


def check_ids(database: Database) -> Iterator[Problem]:
    """Look for tables of which SQLite does not know the newest id that they ever had."""
    counted: dict[str, list[Any]] = {}
    newest: Counter[str] = Counter()
    for name, seq, row_id in database.fetch(_COUNTERS):
        if row_id is not None:
            newest[name] = max(newest[name], row_id)
        elif seq is not None:
            counted.setdefault(name, []).append(seq)
    for table in _NUMBERED:
        seqs = counted.pop(table.name, [])
        if wrong := _wrong_counter(table.name, seqs, newest[table.name]):
            yield _counter_problem(f"{wrong}: ids of {table.name!r} may be used twice")
    existing = {name for (name,) in database.fetch(_TABLES)}
    for name in counted:
        if name not in existing:  # of another program's tables nothing is known
            yield _counter_problem(f"sqlite_sequence counts ids of {name!r}, which is no table")


def _wrong_counter(name: str, seqs: list[Any], newest: int) -> str | None:
    if len(seqs) != 1:
        return f"sqlite_sequence has {len(seqs)} rows of {name!r}" if seqs or newest else None
    (seq,) = seqs
    most = (1 << (63 - CHUNK_BITS)) - 1 if name == blobs.name else (1 << 63) - 1
    if isinstance(seq, int) and newest <= seq <= most:
        return None
    return f"the newest id that {name!r} ever had is {newest} or more, sqlite_sequence says {seq!r}"


def _counter_problem(message: str) -> Problem:
    return Problem(
        kind="row",
        message=message,
        advice="what is stored is not affected; store.backup(path) first, then write the highest "
        "id into sqlite_sequence, or let paramstore.salvage(path, into) make a new file",
    )


def check_version_numbers(database: Database) -> Iterator[Problem]:
    """Look for values that no version of their scope can have stored, or one after it had them."""
    for span in _spans(database, LAST_VALUE, _RANGE):
        found = {row.id: row for row in database.fetch(_NO_VERSIONS, span)}
        for row_id, (names, refs) in places(database, param_versions.c.id, found).items():
            _, name, scope, version = found[row_id]
            if refs:  # what no snapshot holds waits for gc, maybe as salvage left it
                yield _version_problem(
                    f"a value of {name!r} is said to be of {scope}@{version}, and there never was "
                    f"one",
                    names,
                    refs,
                )
    for span in _spans(database, _LAST_SNAPSHOT, _SNAPSHOTS):
        for name, scope, version, held in database.fetch(_HELD_BEFORE, span):
            yield _version_problem(
                f"a value of {name!r} is said to be of {scope}@{version}, and {scope}@{held} has "
                f"it already",
                (str(name),),
                (f"{scope}@{held}",),
            )


def _spans(database: Database, last: Any, size: int) -> Iterator[dict[str, int]]:
    ((end,),) = database.fetch(last)
    for first in range(1, (end or 0) + 1, size):
        yield {"first": first, "last": first + size - 1}


def _version_problem(message: str, names: tuple[str, ...], refs: tuple[str, ...]) -> Problem:
    return Problem(
        kind="history",
        message=message,
        params=names,
        snapshots=refs,
        advice="since_version in its history is wrong; the values themselves are not",
    )
