"""The store's verbs that keep its database small: expire, gc, du.

Puts the store's own needs before the policy; must never change a working set.
"""

from __future__ import annotations

from contextlib import suppress

from paramstore.db import collection, expiry, occupancy
from paramstore.db.engine import Database
from paramstore.errors import ExpiredError
from paramstore.retention import Expired, Policy
from paramstore.session import HasSession, Session
from paramstore.usage import Collected, Usage
from paramstore.working_set import WorkingSet


def expire(
    self: HasSession, policy: Policy, *, scope: str | None = None, dry_run: bool = False
) -> Expired:
    """Forget the snapshots that a policy does not keep, in every scope; ``gc`` frees their bytes.

    ``store.expire(KeepLast(10) | KeepEvery(steps=1000) | KeepBest("elbo"))``. The head of each
    scope, the newest snapshot that no exception left behind, what has a tag, and what this store's
    working sets continue always stay. The policy looks at each scope by itself; with ``scope`` at
    that one only. ``dry_run`` only tells what would go, and why the rest stays.

    Raises:
        InvalidInputError: not a policy.
        ScopeNotFoundError: no such scope.
        ReadOnlyError: the store was opened with ``readonly=True``, and it is no dry run.
        DatabaseError: the database could not be written; nothing has changed.
    """
    session = self._session
    with session.lock:  # so that nothing is restored from what is about to go
        database = _settled(session, writes=not dry_run)
        held = {
            ws.parent.id: f"scope {ws.scope!r} of this store continues it"
            for ws in session.scopes.working_sets()
            if ws.parent is not None
        }
        return expiry.expire(database, policy, scope=scope, dry_run=dry_run, held=held)


def gc(self: HasSession, *, dry_run: bool = False, compact: bool = False) -> Collected:
    """Free what no snapshot holds, and give the space back to the file system.

    Runs beside other processes that train on the same file: a commit waits for a part of it. Killed
    at any point it loses nothing, and can be run again. ``dry_run`` only tells what would be freed.
    ``compact`` rewrites the whole file, which also frees the space inside pages that are partly
    full; it needs room for a second file, and nobody else can use the store meanwhile.

    Raises:
        ReadOnlyError: the store was opened with ``readonly=True``, and it is no dry run.
        CorruptError: rows of the store are lost or altered; nothing has changed.
        StorageError: no room to rewrite the file in; nothing has changed.
        DatabaseError: the database could not be written; run it again.
    """
    session = self._session
    database = _settled(session, writes=not dry_run)
    if not dry_run:
        _read_what_may_go(session)
    return collection.collect(database, dry_run=dry_run, compact=compact)


def du(self: HasSession) -> Usage:
    """Say what the store takes on the disk, what of it each scope, and what ``gc`` would free.

    Raises:
        DatabaseError: the database could not be read.
    """
    return occupancy.usage(_settled(self._session, writes=False))


def _settled(session: Session, *, writes: bool) -> Database:
    """The database, once nothing is pending."""
    if writes:
        session.check_writable()
    session.settle()
    return session.repository.database


def _read_what_may_go(session: Session) -> None:
    """Read the parameters that this store has not read yet and no snapshot holds for sure.

    Somebody else may have expired their snapshot, and afterwards nobody can read them.
    """
    with session.lock:
        for ws in session.scopes.working_sets():
            exists = ws.parent is not None and session.repository.exists(ws.parent)
            held = ws.parent_entries if exists else {}
            versions = {entry.param_version_id for entry in held.values()}
            unread = (ws.stored[name].entry for name in ws.params.unread())
            if any(entry.param_version_id not in versions for entry in unread):
                _read_what_is_left(ws)


def _read_what_is_left(ws: WorkingSet) -> None:
    try:
        ws.params.load()
    except ExpiredError:  # of one at least, and then none has been read
        for name in ws.params.unread():
            with suppress(ExpiredError):  # gone already; whoever touches it is told
                ws.params[name]
