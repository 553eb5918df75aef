"""What is wrong with the rows of a database: each check yields problems, and none for a sound one.

Reads and never writes, one short query at a time, so that a run beside it goes on; never looks at
the bytes of a tensor.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

from blake3 import blake3
from sqlalchemy import BindParameter, Executable, bindparam, func, select, text

from paramstore.damage import Problem
from paramstore.db.bulk import VARIABLES, batched
from paramstore.db.engine import Database
from paramstore.db.reading import altered, read_rows
from paramstore.db.schema import (
    blobs,
    chunks,
    constraint_blobs,
    constraints,
    metadata,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
    tags,
)
from paramstore.errors import CorruptError, InvalidNameError
from paramstore.listing import some
from paramstore.refs import check_tag_name

SALVAGE: Final = "paramstore.salvage(path, into) writes what is whole into a new file"
RESTORE: Final = f"restore other snapshots, or the file from a backup; {SALVAGE}"

_AT_ONCE: Final = 256 << 20
"""Bytes of a file that is checked in one query; of a larger one the pages of tensors are not."""
_PAGE: Final = 1000
"""Rows in one query of those that go through a table."""
_RANGE: Final = 50_000
"""Ids in one query of those that join several tables."""

_last: BindParameter[Any] = bindparam("last")
_FILE_SIZE = text("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
_FOREIGN_KEYS = text(
    'SELECT "table" AS child, parent, count(*) AS rows FROM pragma_foreign_key_check '
    'GROUP BY "table", parent'
)
_SNAPSHOTS = (
    select(snapshots.c.id, snapshots.c.scope_id, snapshots.c.version, scopes.c.name)
    .join_from(snapshots, scopes)
    .where(snapshots.c.id > _last)
    .order_by(snapshots.c.id)
    .limit(_PAGE)
)
_EXISTS = select(snapshots.c.id).where(snapshots.c.id == bindparam("id"))
_PARAM_IDS = select(params.c.id).where(params.c.scope_id == bindparam("scope_id"))
_HEADS = (
    select(
        scopes.c.name,
        scopes.c.head_version,
        scopes.c.created_at,
        func.max(snapshots.c.version).label("newest"),
        func.count(snapshots.c.id).label("kept"),
    )
    .outerjoin_from(scopes, snapshots)
    .group_by(scopes.c.id)
)
_parents = snapshots.alias("parents")
_LOST_PARENTS = (
    select(scopes.c.name, snapshots.c.version, snapshots.c.id, snapshots.c.parent_id)
    .join_from(snapshots, scopes)
    .outerjoin(_parents, _parents.c.id == snapshots.c.parent_id)
    .where(snapshots.c.parent_id.is_not(None), _parents.c.id.is_(None))
)
_TAGS = (
    select(scopes.c.name, tags.c.name.label("tag"))
    .join_from(tags, scopes)
    .outerjoin(snapshots, snapshots.c.id == tags.c.snapshot_id)
    .where(snapshots.c.scope_id.is_distinct_from(tags.c.scope_id))
)
_TAG_NAMES = select(scopes.c.name, tags.c.name.label("tag")).join_from(tags, scopes)
_CONSTRAINTS = (
    select(constraints).where(constraints.c.id > _last).order_by(constraints.c.id).limit(_PAGE)
)
_LOST_ARGUMENTS = (
    select(constraint_blobs.c.constraint_id)
    .distinct()
    .outerjoin_from(constraint_blobs, blobs, blobs.c.id == constraint_blobs.c.blob_id)
    .where(blobs.c.id.is_(None))
)
LAST_VALUE = select(func.max(param_versions.c.id))
VALUES = (
    select(
        param_versions.c.id, params.c.name, scopes.c.name.label("scope"), param_versions.c.version
    )
    .join_from(param_versions, params, params.c.id == param_versions.c.param_id)
    .join(scopes, scopes.c.id == params.c.scope_id)
)
"""Every stored value with its parameter and scope."""
NOT_WHERE_FIRST_STORED = (
    VALUES.join(
        snapshots,
        (snapshots.c.scope_id == params.c.scope_id)
        & (snapshots.c.version == param_versions.c.version),
    )
    .outerjoin(
        snapshot_params,
        (snapshot_params.c.snapshot_id == snapshots.c.id)
        & (snapshot_params.c.param_id == params.c.id),
    )
    .where(param_versions.c.id.between(_last, bindparam("end")))
    .where(snapshot_params.c.param_version_id.is_distinct_from(param_versions.c.id))
)


# -- the file ----------------------------------------------------------------------


def check_file(database: Database) -> Iterator[Problem]:
    """Let SQLite check its pages and indexes, without those of tensors where they are many."""
    ((size,),) = database.fetch(_FILE_SIZE)
    if size <= _AT_ONCE:
        yield from _integrity(database, "")
        return
    # Of one table at a time, so that nobody waits for long; the pages that are free with the first.
    for name in ("sqlite_schema", *metadata.tables):
        if name != chunks.name:
            yield from _integrity(database, f"({name})")


def _integrity(database: Database, table: str) -> Iterator[Problem]:
    for (found,) in database.fetch(text(f"PRAGMA integrity_check{table}")):
        if found != "ok":
            yield Problem(kind="file", message=found, advice=f"restore a backup; {SALVAGE}")


def check_references(database: Database) -> Iterator[Problem]:
    """Look for rows that name a scope or a snapshot that does not exist."""
    for child, parent, count in database.fetch(_FOREIGN_KEYS):
        yield Problem(
            kind="row",
            message=f"{count} rows of {child!r} name a row of {parent!r} that does not exist",
            advice=f"no snapshot that is listed needs them; {SALVAGE}",
        )


# -- snapshots ---------------------------------------------------------------------


def check_snapshots(database: Database, done: Callable[[int], None]) -> Iterator[Problem]:
    """Compare the rows of every snapshot with its digest; ``done`` is told of each."""
    newest: dict[int, int] = {}
    known: dict[int, set[int]] = {}
    for row in pages(database, _SNAPSHOTS):
        ref = f"{row.name}@{row.version}"
        done(1)
        if row.version <= newest.get(row.scope_id, 0):
            yield Problem(
                kind="version",
                message=f"{ref} was committed after a snapshot with a higher version",
                snapshots=(ref,),
                advice=RESTORE,
            )
        newest[row.scope_id] = row.version
        yield from _check_snapshot(database, row, ref, known)


def _check_snapshot(
    database: Database, row: Any, ref: str, known: dict[int, set[int]]
) -> Iterator[Problem]:
    try:
        entries = _entries(database, row.id, ref)
    except CorruptError as error:
        yield Problem(
            kind="snapshot",
            message=f"the rows of {ref} are not those that were committed",
            params=error.params,
            snapshots=(ref,),
            advice=f"look at its parameters with care; {RESTORE}",
        )
        return
    ids = {entry.param_id for entry in entries}
    if ids - known.get(row.scope_id, set()):
        found = database.fetch(_PARAM_IDS, {"scope_id": row.scope_id})
        known[row.scope_id] = {param_id for (param_id,) in found}
    strangers = [e.name for e in entries if e.param_id not in known.get(row.scope_id, ())]
    if strangers and database.fetch(_EXISTS, {"id": row.id}):
        yield Problem(
            kind="history",
            message=f"{some(map(repr, strangers))} of {ref} stand under names of another scope, so "
            f"that history() lacks them there",
            params=tuple(strangers),
            snapshots=(ref,),
            advice="restore() and at() give the right values",
        )


def _entries(database: Database, snapshot_id: int, ref: str) -> list[Any]:
    """Return what a snapshot holds; nothing where it has been expired meanwhile.

    Raises:
        CorruptError: it is not what was committed.
    """
    for _ in range(3):  # an expiry, or a rename, may fall between two of the queries
        rows = read_rows(database.fetch, snapshot_id)
        if rows is None:
            return []
        entries = rows.checked()
        if entries is not None:
            return entries
    if not database.fetch(_EXISTS, {"id": snapshot_id}):
        return []
    raise altered(database.fetch, snapshot_id, ref)


def check_versions(database: Database) -> Iterator[Problem]:
    """Look for heads that are not the newest snapshot, and for parents that never were expired."""
    for name, head, created_at, newest, _ in database.fetch(_HEADS):
        if not is_time(created_at):
            yield Problem(
                kind="row",
                message=f"scope {name!r} was begun at {created_at!r}, which is no time",
                advice=SALVAGE,
            )
        if newest != head:
            yield Problem(
                kind="version",
                message=f"the newest snapshot of scope {name!r} should be {name}@{head}, and is "
                f"{'not there' if newest is None else f'{name}@{newest}'}",
                snapshots=(f"{name}@{head}",),
                advice=RESTORE,
            )
    for ref in _orphaned(database) and _orphaned(database):  # an expiry may fall in between
        yield Problem(
            kind="parent",
            message=f"the parent of {ref} does not exist, and has not been expired",
            snapshots=(ref,),
            advice=f"{ref} itself is whole, unless it is listed; {SALVAGE}",
        )


def _orphaned(database: Database) -> list[str]:
    """Find snapshots whose parent does not exist, although it cannot have been expired."""
    lost = database.fetch(_LOST_PARENTS)
    expired = sum(row.head_version - row.kept for row in database.fetch(_HEADS))
    # More of them than versions that are missing, or one that would be younger.
    if len({row.parent_id for row in lost}) <= expired:
        lost = [row for row in lost if row.parent_id >= row.id]
    return [f"{row.name}@{row.version}" for row in lost]


def check_tags(database: Database) -> Iterator[Problem]:
    """Look for tags that name no snapshot of their scope, or are no names of tags."""
    for scope, tag in database.fetch(_TAGS):
        yield Problem(
            kind="tag",
            message=f"tag {tag!r} of scope {scope!r} points nowhere",
            advice=f"let it point to a snapshot with store.tag({tag!r}, '{scope}@N', move=True), "
            f"or remove it with store.untag({tag!r}, scope={scope!r})",
        )
    for scope, tag in database.fetch(_TAG_NAMES):
        try:
            check_tag_name(tag)
        except InvalidNameError as error:
            yield Problem(
                kind="tag",
                message=f"a tag of scope {scope!r} has a name that none can have: {error}",
                advice=f"set the tag again that is missing; {SALVAGE}",
            )


# -- values ------------------------------------------------------------------------


def check_constraints(database: Database) -> Iterator[Problem]:
    """Compare every constraint spec with its digest."""
    damaged = [row.id for row in pages(database, _CONSTRAINTS) if not _is_intact(row)]
    damaged += [row_id for (row_id,) in database.fetch(_LOST_ARGUMENTS)]
    for row_id, (names, refs) in places(database, param_versions.c.constraint_id, damaged).items():
        yield Problem(
            kind="constraint",
            message=f"constraint {row_id}, of {some(map(repr, names)) or 'no parameter'}, is "
            f"altered or lacks a tensor",
            params=names,
            snapshots=refs,
            advice=RESTORE,
        )


def _is_intact(row: Any) -> bool:
    try:
        json.loads(row.spec)
        return bool(blake3(row.spec.encode()).digest() == row.digest)
    except (ValueError, TypeError, AttributeError):
        return False


def check_first_versions(database: Database) -> Iterator[Problem]:
    """Look for values that the snapshot which is said to have stored them does not hold."""
    ((end,),) = database.fetch(LAST_VALUE)
    for first in range(1, (end or 0) + 1, _RANGE):
        span = {"last": first, "end": first + _RANGE - 1}
        for _, name, scope, version in database.fetch(NOT_WHERE_FIRST_STORED, span):
            yield Problem(
                kind="history",
                message=f"a value of {name!r} is said to be of {scope}@{version}, and is not",
                params=(name,),
                snapshots=(f"{scope}@{version}",),
                advice="since_version in its history is wrong; the values themselves are not",
            )


# -- shared ------------------------------------------------------------------------


def pages(database: Database, statement: Executable) -> Iterator[Any]:
    """Yield the rows of a query that asks for some ``id`` after ``last`` at a time."""
    last = 0
    while rows := database.fetch(statement, {"last": last}):
        yield from rows
        last = rows[-1].id


def places(
    database: Database, column: Any, ids: Iterable[int]
) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Find which parameters of which snapshots use rows that a column of their values names.

    Returns:
        For each id the names, and the references of the snapshots.
    """
    found: dict[int, tuple[set[str], dict[str, None]]] = {i: (set(), {}) for i in ids}
    statement = (
        select(column, params.c.name, scopes.c.name, snapshots.c.version)
        .join_from(
            snapshot_params,
            param_versions,
            param_versions.c.id == snapshot_params.c.param_version_id,
        )
        .join(params, params.c.id == snapshot_params.c.param_id)
        .join(snapshots, snapshots.c.id == snapshot_params.c.snapshot_id)
        .join(scopes, scopes.c.id == snapshots.c.scope_id)
        .where(column.in_(bindparam("values", expanding=True)))
        .order_by(scopes.c.name, snapshots.c.version)  # Python does not order cells of all types
    )
    for batch in batched(found, VARIABLES):
        for row_id, name, scope, version in database.fetch(statement, {"values": batch}):
            found[row_id][0].add(str(name))
            found[row_id][1][f"{scope}@{version}"] = None
    return {row_id: (tuple(sorted(names)), tuple(refs)) for row_id, (names, refs) in found.items()}


def is_time(text: object) -> bool:
    """Whether what stands in the tables is a time."""
    try:
        datetime.fromisoformat(str(text))
    except ValueError:
        return False
    return True
