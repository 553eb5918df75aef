"""How long a parameter kept each of its values, for pictures that must not guess it.

Reads and never writes; every answer is a plain value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import bindparam, select

from paramstore.db.engine import Database
from paramstore.db.schema import params, scopes, snapshot_params, snapshots
from paramstore.snapshot import ParamVersion

# Rows of its own for scope and name, so that nothing is left for SQLite to order.
_SCOPE_ID: Final = select(scopes.c.id).where(scopes.c.name == bindparam("scope")).scalar_subquery()
_PARAM_ID: Final = (
    select(params.c.id)
    .where(params.c.scope_id == _SCOPE_ID, params.c.name == bindparam("name"))
    .scalar_subquery()
)
PRESENCE: Final = (
    select(snapshots.c.version, snapshots.c.step, snapshot_params.c.param_version_id)
    .outerjoin_from(
        snapshots,
        snapshot_params,
        (snapshot_params.c.snapshot_id == snapshots.c.id)
        & (snapshot_params.c.param_id == _PARAM_ID),
    )
    .where(snapshots.c.scope_id == _SCOPE_ID, snapshots.c.version >= bindparam("first"))
    .order_by(snapshots.c.version)
)


def with_spans(database: Database, history: Sequence[ParamVersion]) -> list[ParamVersion]:
    """Return the versions of one parameter, oldest first, each knowing up to when it was kept.

    What changed in every snapshot is not asked for.
    """
    if not history:
        return []
    following = [row.version for row in history[1:]]
    gaps = (row for row, after in zip(history, following, strict=False) if after - row.version > 1)
    first = next(gaps, history[-1])
    known = {"scope": first.scope, "name": first.name, "first": first.version}
    spans = _spans(database.fetch(PRESENCE, known), {row.version for row in history})
    return [
        row if row.version not in spans else _with_span(row, *spans[row.version]) for row in history
    ]


def _spans(presence: Sequence[Any], starts: set[int]) -> dict[int, tuple[int, int | None, bool]]:
    """The last version and step of each value, and whether the parameter was gone after that."""
    spans: dict[int, tuple[int, int | None, bool]] = {}
    start = held = None
    for version, step, row in presence:
        if version in starts:
            start, held = version, row
        elif start is not None and row != held:
            if row is None:
                spans[start] = (*spans[start][:2], True)
            start = None
        if start is not None:
            spans[start] = (version, step, False)
    return spans


def _with_span(row: ParamVersion, version: int, step: int | None, removed: bool) -> ParamVersion:  # noqa: FBT001  # a column
    return replace(row, until_version=version, until_step=step, removed=removed)
