"""A whole scope gets another name, or goes, in one transaction.

What other scopes took from it stays theirs; must never leave a snapshot that its digest does not
fit.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, func, select

from paramstore.db import queries
from paramstore.db.engine import Database
from paramstore.db.manifest import Header
from paramstore.db.reading import intact
from paramstore.db.schema import (
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
from paramstore.errors import ScopeError, ScopeNotFoundError
from paramstore.progress import progress
from paramstore.refs import check_scope_name

_SCOPE_ID = select(scopes.c.id).where(scopes.c.name == bindparam("scope"))
_SNAPSHOTS = (
    select(snapshots.c.id, snapshots.c.version)
    .where(snapshots.c.scope_id == bindparam("scope_id"))
    .order_by(snapshots.c.id)
)
_parents = snapshots.alias("parents")
_CHILDREN = (
    select(snapshots.c.id, scopes.c.name, snapshots.c.version)
    .join_from(snapshots, _parents, _parents.c.id == snapshots.c.parent_id)
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .where(_parents.c.scope_id == bindparam("scope_id"))
    .where(snapshots.c.scope_id != bindparam("scope_id"))
    .order_by(snapshots.c.id)
)
# The first snapshot of another scope that holds a value which was first stored in this one.
_HELD = (
    select(snapshot_params.c.param_version_id, func.min(snapshot_params.c.snapshot_id).label("at"))
    .join_from(snapshot_params, snapshots, snapshots.c.id == snapshot_params.c.snapshot_id)
    .join(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .join(params, params.c.id == param_versions.c.param_id)
    .where(params.c.scope_id == bindparam("scope_id"))
    .where(snapshots.c.scope_id != bindparam("scope_id"))
    .group_by(snapshot_params.c.param_version_id)
    .subquery()
)
_HEIRS = (
    select(_HELD.c.param_version_id, snapshot_params.c.param_id, snapshots.c.version)
    .join_from(
        _HELD,
        snapshot_params,
        (snapshot_params.c.snapshot_id == _HELD.c.at)
        & (snapshot_params.c.param_version_id == _HELD.c.param_version_id),
    )
    .join(snapshots, snapshots.c.id == _HELD.c.at)
)
_of_scope = select(snapshots.c.id).where(snapshots.c.scope_id == bindparam("scope_id"))
_DROP: Final = (
    delete(tags).where(tags.c.scope_id == bindparam("scope_id")),
    *(
        delete(table).where(table.c.snapshot_id.in_(_of_scope))
        for table in (snapshot_params, metrics, extras, extra_blobs)
    ),
    delete(snapshots).where(snapshots.c.scope_id == bindparam("scope_id")),
    delete(param_versions).where(
        param_versions.c.param_id.in_(
            select(params.c.id).where(params.c.scope_id == bindparam("scope_id"))
        )
    ),
    delete(params).where(params.c.scope_id == bindparam("scope_id")),
    delete(scopes).where(scopes.c.id == bindparam("scope_id")),
)


def rename_scope(database: Database, old: str, new: str) -> int:
    """Give a scope another name; its snapshots get new digests, after the old ones were compared.

    Returns:
        How many snapshots it has.

    Raises:
        ScopeNotFoundError: there is none.
        ScopeError: there is one of the new name.
        InvalidNameError: not the name of a scope.
        CorruptError: a snapshot of it is damaged; nothing is changed.
        ReadOnlyError, StoreBusyError, DatabaseError: it could not be written.
    """
    queries.log(database, old, 1)  # or the error that says which scopes there are
    with database.write() as connection:
        scope_id = _scope_id(connection, database, old)
        check_free(connection, database, new)
        found = connection.execute(_SNAPSHOTS, {"scope_id": scope_id}).all()
        with progress("renaming snapshots", len(found)) as advance:
            for row in found:
                _rewrite(connection, row.id, f"{old}@{row.version}", scope=new)
                advance(1)
        connection.execute(scopes.update().where(scopes.c.id == scope_id).values(name=new))
    return len(found)


def drop_scope(database: Database, scope: str) -> int:
    """Forget a scope with all of its snapshots and tags; ``collect`` frees what they held.

    A snapshot of another scope that continues one of them has no parent afterwards.

    Returns:
        How many snapshots it had.

    Raises:
        ScopeNotFoundError: there is none.
        CorruptError: a snapshot that continues one of its is damaged; nothing is changed.
        ReadOnlyError, StoreBusyError, DatabaseError: it could not be written.
    """
    queries.log(database, scope, 1)
    with database.write() as connection:
        key = {"scope_id": _scope_id(connection, database, scope)}
        count = len(connection.execute(_SNAPSHOTS, key).all())
        for row in connection.execute(_CHILDREN, key).all():
            _rewrite(connection, row.id, f"{row.name}@{row.version}", parent_id=None)
        for row in connection.execute(_HEIRS, key).all():
            held = param_versions.c.id == row.param_version_id
            heir = {"param_id": row.param_id, "version": row.version}
            connection.execute(param_versions.update().where(held).values(heir))
        for statement in _DROP:
            connection.execute(statement, key)
    return count


def children(database: Database, scope: str) -> list[str]:
    """Return references of the snapshots of other scopes that continue one of a scope."""
    rows = database.fetch(_SCOPE_ID, {"scope": scope})
    key = {"scope_id": rows[0].id if rows else 0}
    return [f"{row.name}@{row.version}" for row in database.fetch(_CHILDREN, key)]


def check_free(connection: Connection, database: Database, scope: str) -> None:
    """Refuse a name that cannot be a scope's, or that one has.

    Raises:
        InvalidNameError, ScopeError: it is not free.
    """
    if connection.execute(_SCOPE_ID, {"scope": check_scope_name(scope)}).first() is not None:
        raise ScopeError(f"{database.name} has a scope {scope!r} already; choose another name")


def _scope_id(connection: Connection, database: Database, scope: str) -> int:
    row = connection.execute(_SCOPE_ID, {"scope": scope}).first()
    if row is None:
        raise gone(database, scope)
    return int(row.id)


def gone(database: Database, scope: str) -> ScopeNotFoundError:
    """Return the error for a scope that was there a moment ago."""
    return ScopeNotFoundError(
        f"{database.name} has no scope {scope!r} any more: another process has renamed or dropped "
        f"it just now"
    )


def _rewrite(connection: Connection, snapshot_id: int, ref: str, **changes: Any) -> None:
    """Change a snapshot's own fields, and its digest, once it is known to be intact."""
    rows, entries = intact(connection, snapshot_id, ref)
    header = Header(*rows.header[: len(Header._fields)])._replace(**changes)
    values = {"parent_id": header.parent_id, "digest": rows._replace(header=header).digest(entries)}
    connection.execute(snapshots.update().where(snapshots.c.id == snapshot_id).values(values))
