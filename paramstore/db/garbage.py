"""What no snapshot holds, and what one scope holds: the queries behind expire, gc and du.

Finds and never deletes. EXCEPT and IN everywhere: nothing has an index on what it refers to, and
without one NOT EXISTS takes for ever on one database or the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    CompoundSelect,
    Select,
    bindparam,
    case,
    column,
    func,
    or_,
    select,
    table,
    union,
)

from paramstore.db.reading import Fetch
from paramstore.db.schema import (
    blobs,
    constraint_blobs,
    constraints,
    extra_blobs,
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
)

# Rows as one text: a database limits how many values a statement may have.
GONE: Final = select(func.json_each(bindparam("gone")).table_valued("value").c.value)
"""The rows of a statement's parameter ``gone``, which `as_text` makes."""

_held = select(snapshot_params.c.param_version_id)


def _blobs_of(*, left: bool) -> tuple[Select[Any], ...]:
    """The blobs that snapshots refer to: those that are not ``gone``, or all."""
    held, by_extras = _held, select(extra_blobs.c.blob_id)
    if left:
        held = held.where(snapshot_params.c.snapshot_id.not_in(GONE))
        by_extras = by_extras.where(extra_blobs.c.snapshot_id.not_in(GONE))
    of_held = param_versions.c.id.in_(held)
    specs = select(param_versions.c.constraint_id).where(of_held)
    return (
        select(param_versions.c.blob_id).where(of_held),
        by_extras,
        select(constraint_blobs.c.blob_id).where(constraint_blobs.c.constraint_id.in_(specs)),
    )


_FREE_BLOBS = select(func.count(), func.coalesce(func.sum(blobs.c.nbytes), 0)).where(
    blobs.c.id.in_(select(blobs.c.id).except_(*_blobs_of(left=False)))
)
_of_all = union(*_blobs_of(left=False)).subquery()
_SET_FREE = select(func.coalesce(func.sum(blobs.c.nbytes), 0)).where(
    blobs.c.id.in_(select(_of_all.c.blob_id).except_(*_blobs_of(left=True)))
)
_FREE_VERSIONS = select(func.count()).select_from(
    select(param_versions.c.id).except_(_held).subquery()
)

_whole_constraints = select(constraints.c.id).except_(
    select(constraint_blobs.c.constraint_id)
    .outerjoin_from(constraint_blobs, blobs, blobs.c.id == constraint_blobs.c.blob_id)
    .where(blobs.c.id.is_(None))
)
_whole_params = (
    select(func.count())
    .join_from(
        snapshot_params,
        param_versions,
        param_versions.c.id == snapshot_params.c.param_version_id,
    )
    .join(blobs, blobs.c.id == param_versions.c.blob_id)
    .where(snapshot_params.c.snapshot_id == snapshots.c.id)
    .where(param_versions.c.constraint_id.in_(_whole_constraints))
    .scalar_subquery()
)
_lost_extras = (
    select(extra_blobs.c.snapshot_id)
    .outerjoin_from(extra_blobs, blobs, blobs.c.id == extra_blobs.c.blob_id)
    .where(blobs.c.id.is_(None))
)
_LACKING = (
    select(scopes.c.name, snapshots.c.version)
    .outerjoin_from(snapshots, scopes, scopes.c.id == snapshots.c.scope_id)
    .where(or_(snapshots.c.params != _whole_params, snapshots.c.id.in_(_lost_extras)))
    .order_by(snapshots.c.id)
)

# The snapshot that stored such a value first still exists, and does not hold it: its rows were made
# to name another one, and salvage knows from this very row what they named.
_DISOWNING = (
    select(scopes.c.name, snapshots.c.version)
    .join_from(param_versions, params, params.c.id == param_versions.c.param_id)
    .join(
        snapshots,
        (snapshots.c.scope_id == params.c.scope_id)
        & (snapshots.c.version == param_versions.c.version),
    )
    .join(scopes, scopes.c.id == snapshots.c.scope_id)
    .where(param_versions.c.id.in_(select(param_versions.c.id).except_(_held)))
    .order_by(snapshots.c.id)
)

_NEWEST_BLOB: Select[Any] = (
    select(column("seq")).select_from(table("sqlite_sequence")).where(column("name") == blobs.name)
)

_versions_of_scopes = (
    select(snapshots.c.scope_id, param_versions.c.blob_id)
    .join_from(snapshots, snapshot_params, snapshot_params.c.snapshot_id == snapshots.c.id)
    .join(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
)
_of_scopes: CompoundSelect[Any] = union(
    _versions_of_scopes,
    select(snapshots.c.scope_id, extra_blobs.c.blob_id).join_from(
        snapshots, extra_blobs, extra_blobs.c.snapshot_id == snapshots.c.id
    ),
    _versions_of_scopes.with_only_columns(
        snapshots.c.scope_id, constraint_blobs.c.blob_id, maintain_column_froms=True
    ).join(constraint_blobs, constraint_blobs.c.constraint_id == param_versions.c.constraint_id),
)


_used = _of_scopes.subquery()
_of_blobs = (
    select(
        _used.c.blob_id, func.min(_used.c.scope_id).label("scope_id"), func.count().label("scopes")
    )
    .group_by(_used.c.blob_id)
    .subquery()
)
_SCOPES = (
    select(_used.c.scope_id, func.sum(blobs.c.nbytes))
    .join_from(_used, blobs, blobs.c.id == _used.c.blob_id)
    .group_by(_used.c.scope_id)
)
_OWN = (
    select(
        _of_blobs.c.scope_id,
        func.sum(case((_of_blobs.c.scopes == 1, blobs.c.nbytes), else_=0)),
        func.sum(blobs.c.nbytes),
    )
    .join_from(_of_blobs, blobs, blobs.c.id == _of_blobs.c.blob_id)
    .group_by(_of_blobs.c.scope_id)
)


def as_text(rows: Iterable[int]) -> str:
    """Return rows as the parameter ``gone`` takes them."""
    return json.dumps(sorted(rows))


def free_blobs(fetch: Fetch) -> tuple[int, int]:
    """Count the blobs, and their bytes, that nothing refers to."""
    ((count, nbytes),) = fetch(_FREE_BLOBS, {})
    return count, nbytes


def set_free(fetch: Fetch, gone: Iterable[int]) -> int:
    """Add up the bytes of the blobs that nothing but some snapshots refers to."""
    ((nbytes,),) = fetch(_SET_FREE, {"gone": as_text(gone)})
    return int(nbytes)


def free_versions(fetch: Fetch) -> int:
    """Count the values of parameters that no snapshot holds."""
    ((count,),) = fetch(_FREE_VERSIONS, {})
    return int(count)


def lacking(fetch: Fetch) -> list[str]:
    """Return the snapshots that hold more, or less, or something else than the tables say."""
    rows = [row for query in (_LACKING, _DISOWNING) for row in fetch(query, {})]
    return list(dict.fromkeys(f"{row.name}@{row.version}" for row in rows))


def newest_blob(fetch: Fetch) -> int:
    """Return the largest row that a blob ever had: no chunk has one that is larger."""
    return max((row.seq for row in fetch(_NEWEST_BLOB, {})), default=0)


def held_by_scope(fetch: Fetch) -> dict[int, int]:
    """Add up the bytes of the blobs of each scope, by its row."""
    return dict(tuple(row) for row in fetch(_SCOPES, {}))


def held_by_one_scope(fetch: Fetch) -> tuple[dict[int, int], int]:
    """Add up the bytes of the blobs that one scope alone holds, by its row, and those of all."""
    rows = fetch(_OWN, {})
    return {row[0]: row[1] for row in rows}, sum(row[2] for row in rows)
