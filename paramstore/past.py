"""The store's verbs that look at the snapshots of its database.

Reads, and moves tags; must never change a working set.
"""

from __future__ import annotations

from paramstore.compare import compare
from paramstore.diff import Diff
from paramstore.history import History, Log
from paramstore.modes import outside_modes
from paramstore.reader import SnapshotView
from paramstore.session import HasSession, Reference
from paramstore.snapshot import ScopeInfo, Snapshot


def latest(self: HasSession) -> Snapshot | None:
    """The newest snapshot of the current scope in the database now, interrupted ones apart."""
    session = self._session
    found = session.repository.latest(session.scope_name())
    return None if found is None else session.with_extras(found)


def best(self: HasSession, metric: str, mode: str = "max") -> Snapshot:
    """The snapshot of the current scope with the largest (``"min"``: smallest) metric.

    Raises:
        SnapshotNotFoundError: no snapshot has that metric.
    """
    session = self._session
    return session.with_extras(session.repository.best(session.scope_name(), metric, mode))


def log(self: HasSession, scope: str | None = None, *, limit: int | None = None) -> Log:
    """The snapshots of a scope (default: the current one), newest first.

    Raises:
        ScopeNotFoundError: no such scope.
    """
    session = self._session
    current, scope = session.scope_name(), session.this(scope)
    if scope == current and not session.repository.head_version(current):
        return Log(())
    return Log(map(session.with_extras, session.repository.log(scope, limit)))


def history(
    self: HasSession, name: str, *, scope: str | None = None, limit: int | None = None
) -> History:
    """The versions of one parameter in a scope, oldest first; ``limit`` keeps the newest.

    Raises:
        ParamNotFoundError: no snapshot of the scope has such a parameter.
    """
    session = self._session
    return History(session.repository.history(session.this(scope), name, limit))


def at(self: HasSession, reference: Reference) -> SnapshotView:
    """Look at one snapshot; a tensor is read when it is asked for.

    Raises:
        NotFoundError, InvalidReferenceError: no such snapshot.
        CorruptError: its catalogue has been altered.
    """
    session = self._session
    snapshot = session.resolve(reference)
    manifest = session.repository.manifest(snapshot)
    return SnapshotView(session.backend.reader, manifest, session.with_extras(snapshot))


def diff(self: HasSession, before: Reference, after: Reference) -> Diff:
    """What was added, removed and changed between two snapshots, and by how much.

    Raises:
        NotFoundError, InvalidReferenceError: no such snapshot.
        CorruptError: a value that has to be read is missing or altered.
    """
    return outside_modes(compare, at(self, before), at(self, after))


def scopes(self: HasSession) -> list[ScopeInfo]:
    """The scopes that have snapshots."""
    return self._session.repository.scopes()


def tag(
    self: HasSession, name: str, reference: Reference | None = None, *, move: bool = False
) -> None:
    """Name a snapshot (default: the newest of the current scope).

    Raises:
        InvalidNameError: not a tag's name, or, without ``move``, one that is taken.
    """
    session = self._session
    repository = session.writable()
    session.settle()
    target = session.scope_name() if reference is None else reference
    repository.tag(session.resolve(target), name, move=move)


def untag(self: HasSession, name: str, *, scope: str | None = None) -> None:
    """Remove a tag of a scope (default: the current one); the snapshot stays.

    Raises:
        TagNotFoundError: no such tag.
    """
    session = self._session
    repository = session.writable()
    session.settle()
    repository.untag(session.this(scope), name)
