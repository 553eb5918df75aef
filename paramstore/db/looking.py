"""Questions that a person asks about a whole scope or snapshot, and a program about one name.

Reads and never writes; every answer is a plain value.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import bindparam, false, func, select
from sqlalchemy.sql.functions import coalesce

from paramstore.db.engine import Database
from paramstore.db.schema import (
    param_versions,
    params,
    scopes,
    snapshot_params,
    snapshots,
    tags,
)
from paramstore.snapshot import Snapshot, Statistics

_SCOPE: Final = scopes.c.name == bindparam("scope")
_PARAM_NAMES = select(params.c.name).join_from(scopes, params).where(_SCOPE).order_by(params.c.name)
_TAG_NAMES = select(tags.c.name).join_from(scopes, tags).where(_SCOPE).order_by(tags.c.name)
_COUNTS = (
    select(scopes.c.name, func.count(), func.max(snapshots.c.created_at))
    .join_from(scopes, snapshots)
    .group_by(scopes.c.id)
)
_STATISTICS = (
    select(
        params.c.name,
        param_versions.c.norm,
        param_versions.c.mean,
        param_versions.c.std,
        param_versions.c.min,
        param_versions.c.max,
        param_versions.c.nan_count,
        param_versions.c.inf_count,
        param_versions.c.value,
        coalesce(param_versions.c.unconstrained, false()).label("unconstrained"),
    )
    .join_from(snapshot_params, params, params.c.id == snapshot_params.c.param_id)
    .join(param_versions, param_versions.c.id == snapshot_params.c.param_version_id)
    .where(snapshot_params.c.snapshot_id == bindparam("id"))
    .where(param_versions.c.nan_count.is_not(None))
)


def param_names(database: Database, scope: str) -> list[str]:
    """Return the names that parameters of a scope have or had, sorted; none without the scope."""
    return [name for (name,) in database.fetch(_PARAM_NAMES, {"scope": scope})]


def tag_names(database: Database, scope: str) -> list[str]:
    """Return the tags of a scope, sorted; none without the scope."""
    return [name for (name,) in database.fetch(_TAG_NAMES, {"scope": scope})]


def counts(database: Database) -> dict[str, tuple[int, str]]:
    """Return how many snapshots each scope has, and when its newest was committed, as stored."""
    return {name: (count, newest) for name, count, newest in database.fetch(_COUNTS)}


def statistics(database: Database, snapshot: Snapshot) -> dict[str, Statistics]:
    """Return the statistics of the parameters of a snapshot that have them, by name."""
    rows = [row._asdict() for row in database.fetch(_STATISTICS, {"id": snapshot.id})]
    return {row.pop("name"): Statistics(**row) for row in rows}
