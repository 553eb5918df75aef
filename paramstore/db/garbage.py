"""What no snapshot holds, and what one scope holds: the queries behind expire, gc and du.

Finds and never deletes. EXCEPT and IN everywhere: nothing has an index on what it refers to, and
without one NOT EXISTS takes for ever on one database or the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import CompoundSelect, bindparam, case, column, func, select, table, union

from paramstore.db.reading import Fetch
from paramstore.db.schema import (
    blobs,
    constraint_blobs,
    extra_blobs,
    param_versions,
    snapshot_params,
    snapshots,
)

# Rows as one text: a database limits how many values a statement may have.
GONE: Final = select(func.json_each(bindparam("gone")).table_valued("value").c.value)
"""The rows of a statement's parameter ``gone``, which `as_text` makes."""

_held = select(snapshot_params.c.param_version_id).where(snapshot_params.c.snapshot_id.not_in(GONE))
_of_held = param_versions.c.id.in_(_held)
_blobs_of_held = (
    select(param_versions.c.blob_id).where(_of_held),
    select(extra_blobs.c.blob_id).where(extra_blobs.c.snapshot_id.not_in(GONE)),
    select(constraint_blobs.c.blob_id).where(
        constraint_blobs.c.constraint_id.in_(select(param_versions.c.constraint_id).where(_of_held))
    ),
)
_FREE_BLOBS = select(func.count(), func.coalesce(func.sum(blobs.c.nbytes), 0)).where(
    blobs.c.id.in_(select(blobs.c.id).except_(*_blobs_of_held))
)
_FREE_VERSIONS = select(func.count()).select_from(
    select(param_versions.c.id).except_(_held).subquery()
)

_NEWEST_BLOB = (
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


def free_blobs(fetch: Fetch, gone: Iterable[int] = ()) -> tuple[int, int]:
    """Count the blobs, and their bytes, that nothing refers to once some snapshots are gone."""
    ((count, nbytes),) = fetch(_FREE_BLOBS, {"gone": as_text(gone)})
    return count, nbytes


def free_versions(fetch: Fetch) -> int:
    """Count the values of parameters that no snapshot holds."""
    ((count,),) = fetch(_FREE_VERSIONS, {"gone": as_text(())})
    return int(count)


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
