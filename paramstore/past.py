"""Looking at the snapshots of a database from the scope that is current.

Reads, and moves tags; must never change a working set.
"""

from __future__ import annotations

from paramstore.compare import compare
from paramstore.diff import Diff
from paramstore.modes import outside_modes
from paramstore.reader import SnapshotView
from paramstore.session import Reference, Session
from paramstore.snapshot import History, Log, Snapshot


def log(session: Session, scope: str | None, limit: int | None) -> Log:
    """The snapshots of a scope, newest first; none yet is no error for the current one."""
    current, scope = session.scope_name(), session.this(scope)
    if scope == current and not session.repository.head_version(current):
        return Log(())
    return Log(map(session.with_extras, session.repository.log(scope, limit)))


def latest(session: Session) -> Snapshot | None:
    """The newest snapshot of the current scope, interrupted ones apart."""
    found = session.repository.latest(session.scope_name())
    return None if found is None else session.with_extras(found)


def best(session: Session, metric: str, mode: str) -> Snapshot:
    """The snapshot of the current scope with the largest or smallest metric."""
    return session.with_extras(session.repository.best(session.scope_name(), metric, mode))


def history(session: Session, name: str, scope: str | None, limit: int | None) -> History:
    """The versions of one parameter in a scope, oldest first."""
    return History(session.repository.history(session.this(scope), name, limit))


def at(session: Session, reference: Reference) -> SnapshotView:
    """Look at one snapshot."""
    snapshot = session.resolve(reference)
    manifest = session.repository.manifest(snapshot)
    return SnapshotView(session.backend.reader, manifest, session.with_extras(snapshot))


def diff(session: Session, before: Reference, after: Reference) -> Diff:
    """What differs between two snapshots, and by how much."""
    return outside_modes(compare, at(session, before), at(session, after))


def tag(session: Session, name: str, reference: Reference | None, *, move: bool) -> None:
    """Name a snapshot: the newest of the current scope, pending ones included, or another."""
    repository = session.writable()
    session.settle()
    target = session.scope_name() if reference is None else reference
    repository.tag(session.resolve(target), name, move=move)


def untag(session: Session, name: str, scope: str | None) -> None:
    """Remove a tag of a scope."""
    repository = session.writable()
    session.settle()
    repository.untag(session.this(scope), name)
