"""How long a parameter kept each of its values, for pictures that must not guess it.

Reads and never writes; every answer is a plain value.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, func, select, union_all

from paramstore.db import bulk
from paramstore.db.engine import Database
from paramstore.db.schema import params, scopes, snapshot_params, snapshots


class Span(NamedTuple):
    """The last snapshot up to which a value was kept."""

    version: int
    """Its version."""
    step: int | None
    """Its step."""
    removed: bool
    """Whether the snapshot after it lacks the parameter."""


# Rows of its own for scope and name, so that nothing is left for SQLite to order.
_SCOPE_ID: Final = select(scopes.c.id).where(scopes.c.name == bindparam("scope")).scalar_subquery()
_PARAM_ID: Final = (
    select(params.c.id)
    .where(params.c.scope_id == _SCOPE_ID, params.c.name == bindparam("name"))
    .scalar_subquery()
)
_ENDS = union_all(
    select(snapshots.c.version.label("version")).where(
        snapshots.c.scope_id == _SCOPE_ID,
        snapshots.c.version.in_(bindparam("values", expanding=True)),
    ),
    select(scopes.c.head_version + 1).where(scopes.c.name == bindparam("scope")),
).subquery("ends")
_held, _earlier = snapshots.alias("held"), snapshots.alias("earlier")
_there, _then = snapshot_params.alias("there"), snapshot_params.alias("then")
_before_end = (_earlier.c.scope_id == _SCOPE_ID) & (_earlier.c.version < _ENDS.c.version)
_previous = select(func.max(_earlier.c.version)).where(_before_end).correlate(_ENDS)
_last_held = (
    select(_earlier.c.id)
    .where(_before_end, _there.c.snapshot_id == _earlier.c.id, _there.c.param_id == _PARAM_ID)
    .order_by(_earlier.c.version.desc())
    .limit(1)
    .correlate(_ENDS)
)
# Looked for from the end of each value backwards, where it still is unless the parameter was gone:
# what changes rarely is not to pay for every snapshot in between.
HELD: Final = (
    select(
        _held.c.version,
        _held.c.step,
        _then.c.param_version_id,
        _previous.scalar_subquery().label("previous"),
    )
    .select_from(_ENDS)
    .where(
        _held.c.id == _last_held.scalar_subquery(),
        _then.c.snapshot_id == _held.c.id,
        _then.c.param_id == _PARAM_ID,
    )
)


def spans(database: Database, rows: Sequence[Any]) -> dict[int, Span]:
    """Return up to when a parameter kept its values, by the version in which each appeared.

    What changed in the very next snapshot is not asked for, and not in the answer.

    Args:
        database: Where to look.
        rows: Its history, oldest first.
    """
    if not rows:
        return {}
    starts = [row.version for row in rows]
    known = {"scope": rows[0].scope, "name": rows[0].name}
    ends = [end for start, end in pairwise(starts) if end - start > 1]
    found = {}
    # What the newest snapshot holds has no end to name: it is asked for along with the others.
    for batch in list(bulk.batched(ends, bulk.VARIABLES)) or [[]]:
        for end in database.fetch(HELD, known | {"values": batch}):
            start = rows[bisect_right(starts, end.version) - 1]
            # Another process may have committed or expired since the history was read.
            if start.param_version_id == end.param_version_id:
                removed = end.version != end.previous
                found[start.version] = Span(end.version, end.step, removed)
    return found
