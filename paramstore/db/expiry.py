"""Forgets snapshots: the rows that say what they held, in one transaction.

Frees nothing, which `paramstore.db.collection` does; must never touch what a policy keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from sqlalchemy import delete, select

from paramstore.db import queries
from paramstore.db.engine import Database
from paramstore.db.garbage import GONE, as_text, set_free
from paramstore.db.reading import Fetch, inside
from paramstore.db.schema import extra_blobs, extras, metrics, scopes, snapshot_params, snapshots
from paramstore.retention import Expired, Kept, Policy, decide
from paramstore.snapshot import Snapshot

_SCOPE_NAMES = select(scopes.c.name).order_by(scopes.c.name)
# What says something about a snapshot first, so that no key leads nowhere in between.
_DELETE = (
    *(
        delete(table).where(table.c.snapshot_id.in_(GONE))
        for table in (snapshot_params, metrics, extras, extra_blobs)
    ),
    delete(snapshots).where(snapshots.c.id.in_(GONE)),
)


class _Decision(NamedTuple):
    kept: list[Kept]
    gone: list[Snapshot]

    @property
    def rows(self) -> list[int]:
        return [snapshot.id for snapshot in self.gone]


def expire(
    database: Database,
    policy: Policy,
    *,
    scope: str | None = None,
    dry_run: bool = False,
    held: Mapping[int, str] | None = None,
) -> Expired:
    """Forget the snapshots that a policy does not keep; what they held is freed by ``collect``.

    The head of each scope, the newest snapshot that no exception left behind, and what has a tag
    always stay. The policy is asked again inside the transaction that deletes, so that a snapshot
    or tag that came in between counts.

    Args:
        database: where they are.
        policy: what to keep of each scope.
        scope: the only scope to look at; None is every one, each by itself.
        dry_run: only tell what would go.
        held: snapshots, by row, that the caller needs, and why.

    Raises:
        InvalidInputError: not a policy.
        ScopeNotFoundError: no such scope.
        ReadOnlyError, StoreBusyError, DatabaseError: it could not be written; nothing is changed.
    """
    if scope is not None:
        queries.log(database, scope, 1)  # or the error that says which scopes there are
    names = None if scope is None else [scope]
    found = _decide(database.fetch, policy, names, held or {})
    nbytes = set_free(database.fetch, found.rows)
    if found.gone and not dry_run:
        with database.write() as connection:
            fetch = inside(connection)
            now = _decide(fetch, policy, names, held or {})
            if now.rows != found.rows:
                nbytes = set_free(fetch, now.rows)
            found = now
            for statement in _DELETE:
                connection.execute(statement, {"gone": as_text(found.rows)})
    return Expired(
        kept=tuple(found.kept), expired=tuple(found.gone), nbytes=nbytes, dry_run=dry_run
    )


def _decide(
    fetch: Fetch, policy: Policy, names: Collection[str] | None, held: Mapping[int, str]
) -> _Decision:
    found = _Decision([], [])
    for name in [row.name for row in fetch(_SCOPE_NAMES, {})] if names is None else names:
        every = queries.snapshots_of(fetch, name)
        reasons = decide(policy, every)
        for snapshot in every:
            why = reasons.get(snapshot.version, ())
            if snapshot.id in held:
                why = (*why, held[snapshot.id])
            if why:
                found.kept.append(Kept(snapshot=snapshot, reasons=why))
            else:
                found.gone.append(snapshot)
    return found
