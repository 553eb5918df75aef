"""Questions that a person asks about a whole scope or snapshot, and a program about one name.

Reads and never writes; every answer is a plain value.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, false, func, literal, or_, select, true
from sqlalchemy.sql.functions import coalesce

from paramstore.condition import SIGNS, Condition, Junction, Negation
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
_NUMBERS: Final = {name: param_versions.c[name] for name in ("norm", "mean", "std", "min", "max")}
_NUMBERS.update(nan=param_versions.c.nan_count, inf=param_versions.c.inf_count)
"""What a condition may speak of that one row knows."""


def param_names(database: Database, scope: str) -> list[str]:
    """Return the names that parameters of a scope have or had, sorted; none without the scope."""
    return [name for (name,) in database.fetch(_PARAM_NAMES, {"scope": scope})]


def candidates(database: Database, scope: str, condition: Condition) -> set[str]:
    """Return the parameters of a scope that may have a version for which a condition holds.

    Looks at what one row knows of a value, in one pass: reading the history of every name takes
    hundreds of times as long. The others have no such version.
    """
    known = select(param_versions.c.param_id).where(_possible(condition))
    return {
        name
        for (name,) in database.fetch(_PARAM_NAMES.where(params.c.id.in_(known)), {"scope": scope})
    }


def _possible(condition: Condition, *, negated: bool = False) -> ColumnElement[bool]:
    """A condition, or its opposite, with true in place of each comparison that no row decides."""
    if isinstance(condition, Negation):
        return _possible(condition.part, negated=not negated)
    if isinstance(condition, Junction):
        parts = [_possible(part, negated=negated) for part in condition.parts]
        return and_(*parts) if (condition.word == "and") != negated else or_(*parts)
    left, right = _term(condition.left), _term(condition.right)
    if left is None or right is None:
        return true()
    holds = coalesce(SIGNS[condition.sign](left, right), false())
    return ~holds if negated else holds


def _term(term: str | float) -> ColumnElement[Any] | None:
    return _NUMBERS.get(term) if isinstance(term, str) else literal(term)


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
