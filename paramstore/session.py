"""What connects the working sets of a store with its database: the verbs behind the face.

Keeps one current working set and the lock; never does arithmetic on tensors and never writes SQL.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakValueDictionary

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import binding, values
from paramstore.attached import check_attachable, rename
from paramstore.background import Background, PendingCommit
from paramstore.capture import Capture
from paramstore.db.engine import Database
from paramstore.db.repository import Manifest, Repository
from paramstore.db.sqlite import Journal
from paramstore.errors import (
    CorruptError,
    InvalidInputError,
    InvalidNameError,
    ParamNotFoundError,
    ReadOnlyError,
    ScopeError,
    StoreBusyError,
    StoreClosedError,
    UsageError,
)
from paramstore.lazy import UNREAD
from paramstore.modes import outside_modes
from paramstore.reader import MapLocation, Reader
from paramstore.refs import check_param_name, check_scope_name, parse_ref, suggest
from paramstore.request import OnFull, Request, check_queue
from paramstore.restore import Names, begin, bring, chosen, restore
from paramstore.scope import Scopes
from paramstore.snapshot import Snapshot
from paramstore.staging import Copies, Staging
from paramstore.working_set import WorkingSet, logger
from paramstore.writer import Writer, without_collector

Reference = Snapshot | int | str
"""A snapshot, a version in the current scope, or text such as ``main@warm``."""


_P = ParamSpec("_P")
_T = TypeVar("_T")

_sessions: WeakValueDictionary[int, Session] = WeakValueDictionary()
"""In the order in which they were made, which is the order in which a fork locks them."""
_forking = threading.RLock()
"""Taken before those of the sessions: one thread at a time forks."""
_held_for_fork: list[threading.RLock] = []


def _alone(verb: Callable[Concatenate[Session, _P], _T]) -> Callable[Concatenate[Session, _P], _T]:
    """Let a verb run under the session's lock, where no mode of the calling thread reaches.

    The thread that does the work takes the lock, which may not be the caller's: the hooks of
    modules and attached objects come back to the store from there.
    """

    @wraps(verb)
    def locked(session: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with session.lock:
            return verb(session, *args, **kwargs)

    @wraps(verb)
    def run(session: Session, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        # Where the caller has the lock it waits for the work, and nobody else comes in between.
        work = verb if session.lock._is_owned() else locked  # type: ignore[attr-defined]
        return outside_modes(work, session, *args, **kwargs)

    return run


class Backend:
    """A database with the objects that read and write it."""

    def __init__(self, database: Database, *, map_location: MapLocation, statistics: bool) -> None:
        self.database = database
        self.repository = Repository(database)
        self.reader = Reader(self.repository, map_location)
        self.writer = Writer(self.repository, statistics=statistics)


class HasSession(Protocol):
    """What a verb needs of a store. A module may define verbs, and the store's class lists them."""

    _session: Session


class Session:
    """The scopes of one store on one database; without one, a private database on demand.

    **Threads**: ``lock`` is held by every verb, so commits, restores and first reads take turns.
    A verb that may call other people's code is ``_alone``.

    **Ownership**: closes the database it was given.
    """

    def __init__(
        self,
        scope: str,
        start: Reference | None,
        database: Database | None,
        connect: Callable[[Database], Backend],
        *,
        readonly: bool,
    ) -> None:
        """Continue a scope of a database, or begin in memory; an error closes the database."""
        self.lock = threading.RLock()
        _sessions[id(self)] = self
        self.private = database is None
        self._connect = connect
        self._backend = None if database is None else connect(database)
        self._readonly = readonly
        self._closed = False
        self.background = Background()
        self._staging = Staging()
        self._told: set[tuple[str | None, str]] = set()
        """The scope and name of every parameter and module that a warning was given for."""
        try:
            base = self._opened(scope, start)
            self.scopes = Scopes(base, self._enterable, unnamed=not self.private)
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        path_or_url: str | os.PathLike[str] | None,
        *,
        scope: str,
        start: Reference | None,
        readonly: bool,
        create: bool,
        timeout: float,
        journal: Journal | None,
        connect: Callable[[Database], Backend],
    ) -> Session:
        """Open a database, or nothing; for the arguments see :func:`paramstore.open`."""
        check_scope_name(scope)
        database = None
        if path_or_url is not None:
            database = Database.open(
                path_or_url, readonly=readonly, create=create, timeout=timeout, journal=journal
            )
        elif start is not None or readonly or not create or journal is not None:
            raise InvalidInputError(
                "start=, readonly=, create= and journal= are about a database; give its path, or "
                "leave them out for a store in memory"
            )
        return cls(scope, start, database, connect, readonly=readonly)

    @property
    def current(self) -> WorkingSet:
        """The working set that the dictionary shows."""
        return self.scopes.current

    # -- the database --------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The database's parts; those of a private store are made now.

        Raises:
            StoreClosedError: after ``close``.
        """
        self._check_open()
        if self._backend is None:
            with self.lock:
                if self._backend is None:
                    self._backend = self._connect(Database.memory())
        return self._backend

    @property
    def repository(self) -> Repository:
        """The catalogue."""
        return self.backend.repository

    @property
    def reader(self) -> Reader | None:
        """What reads stored tensors; None where there is no database yet."""
        return None if self._backend is None else self._backend.reader

    def writable(self) -> Repository:
        """The catalogue, for writing.

        Raises:
            ReadOnlyError: the store was opened with ``readonly=True``.
        """
        self.check_writable()
        return self.repository

    def check_writable(self) -> None:
        """Raise what :meth:`writable` does, and make no private database for that."""
        self._check_open()
        if self._readonly:
            raise ReadOnlyError(
                "the store was opened with readonly=True; open it without, to write to it"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError("the store is closed; open it again with paramstore.open(…)")

    def close(self) -> None:
        """Finish what is pending and release the database; what is in memory stays."""
        with self.lock:
            self.background.close()
            self._closed = True
            self._staging = Staging()
            if self._backend is not None:
                self._backend.database.close()
        self.background.raise_error()

    def where(self) -> str:
        """The file, for people."""
        return "in memory" if self._backend is None else self._backend.database.name

    # -- the current scope ---------------------------------------------------------

    def named(self) -> WorkingSet:
        """The current working set, when it is that of a scope.

        Raises:
            ScopeError: a plain state is current, which has no snapshots.
        """
        if self.current.scope is None:
            raise ScopeError(
                "a plain state lives in memory only and has no snapshots; leave it, or enter a "
                "named scope with store.scope('name')"
            )
        return self.current

    def scope_name(self) -> str:
        """The name of the current scope."""
        name = self.named().scope
        assert name is not None
        return name

    def this(self, scope: str | None) -> str:
        """The scope that an argument names; None is the current one."""
        return self.scope_name() if scope is None else scope

    def resolve(self, reference: Reference) -> Snapshot:
        """Find the snapshot that a reference means."""
        return self.repository.resolve(parse_ref(reference), self.scope_name())

    def with_extras(self, snapshot: Snapshot) -> Snapshot:
        """The same snapshot, whose extras are read when they are looked at."""
        return replace(snapshot, extras=self.backend.reader.lazy_extras(snapshot))

    def clear(self) -> None:
        """Empty the current working set; its snapshots stay."""
        with self.lock:
            self.background.wait()
            ws = self.current
            if ws.head is not None and len(ws.params):
                logger.info(
                    "cleared the working set of scope %r; its %d snapshots are untouched and "
                    "resume() brings the newest back",
                    ws.scope,
                    ws.head.version,
                )
            ws.clear()
            self._told = {key for key in self._told if key[0] != ws.scope}

    # -- first reads ---------------------------------------------------------------

    def _opened(self, scope: str, start: Reference | None = None) -> WorkingSet:
        """The working set of a scope as the database has it; nothing but names is read."""
        ws = WorkingSet(scope, self._read)
        if self._backend is None:
            return ws
        head = self.repository.head(scope)
        first = self.repository.latest(scope)
        if head is None and start is not None:
            first = self.repository.resolve(parse_ref(start), scope)
        if first is not None:
            outside_modes(begin, ws, self._begun(first), self.backend.reader)
        ws.head = head and self.with_extras(head)
        return ws

    def _begun(self, first: Snapshot) -> Manifest:
        try:
            return self.repository.manifest(first)
        except CorruptError as error:
            raise CorruptError(
                f"{error}. Older snapshots may be whole: list them with sqlite3 in v_snapshots and "
                f"open the file with scope='rescue', start='{first.scope}@N'",
                params=error.params,
                snapshots=error.snapshots,
            ) from error

    @_alone
    def _read(self, ws: WorkingSet, names: Iterable[str]) -> None:
        """Read stored parameters that are touched for the first time."""
        wanted = [name for name in names if ws.params.is_unread(name)]
        for name in wanted:
            ws.transforms_of(name, ws.constraints[name])
        entries = [ws.stored[name].entry for name in wanted]
        # Of which snapshot they are is not known: a filtered restore mixes several.
        found = self.backend.reader.read(entries, snapshot=None)
        for name, tensor in zip(wanted, found, strict=True):
            ws.put(name, tensor, ws.constraints[name])

    def offer(self, name: str, held: Tensor, offered: object) -> None:
        """Let a module's parameter be the tensor of a stored name that nobody has read yet."""
        if not isinstance(offered, nn.Parameter):
            return
        if held is UNREAD:
            self._adopt(name, offered)
        else:
            self._say_not_adopted(name)

    @_alone
    def _adopt(self, name: str, offered: nn.Parameter) -> None:
        ws = self.current
        if ws.params.is_unread(name):
            binding.adopt(ws, self.backend.reader, name, offered)
        elif dict.get(ws.params, name) is not offered:  # another thread was quicker
            self._say_not_adopted(name)

    def _say_not_adopted(self, name: str) -> None:
        key = (self.current.scope, name)
        if key not in self._told:
            self._told.add(key)
            binding.warn_not_adopted(name)

    @_alone
    def bind(self, name: str, module: nn.Module, exclude: Names, *, strict: bool) -> None:
        """Bind a module to the current working set."""
        self.settle()  # a buffer that only the old module had is carried on as it is stored
        binding.follow(self.current)
        binding.bind(self.current, self.reader, name, module, strict=strict, exclude=exclude)

    def missing(self, name: object) -> ParamNotFoundError:
        """The error for a name that the working set lacks."""
        if isinstance(name, str) and name in self.current.buffers():
            return ParamNotFoundError(f"{name!r} is a buffer; read it from its module, or by at()")
        return ParamNotFoundError(f"no parameter {name!r}{suggest(name, self.current.params)}")

    def attach(self, objects: Mapping[str, object], *, rng: bool | None) -> None:
        """Let every commit store the state of live objects."""
        check_attachable(objects, rng=rng)
        with self.lock:
            self.current.attached.update(objects)
            if rng is not None:
                self.current.rng = rng

    def merge(self, state: Mapping[str, Any]) -> None:
        """Put what Pyro's ``get_state`` gives into the current working set."""
        params, specs = values.check_state(state)
        with self.lock:
            ws = self.current
            known = {name: ws.constraints.get(name, constraints.real) for name in params} | specs
            self.assign(params, known)
            ws.constraints.update(specs)

    def assign(self, params: Mapping[str, Tensor], specs: Mapping[str, Constraint]) -> None:
        """Set unconstrained values; those of bound modules go into the modules' own tensors."""
        with self.lock:
            if self.current.modules:
                outside_modes(binding.assign, self.current, params, specs)
            else:
                for name, tensor in params.items():
                    self.current.put(name, tensor, specs[name])

    # -- commit --------------------------------------------------------------------

    def settle(self, timeout: float | None = None) -> None:
        """Finish what is pending, so that what is known of the database does not move.

        Raises:
            TimeoutError: it takes longer than ``timeout`` seconds.
            ParamStoreError: a commit failed in the background and nobody has been told yet.
        """
        self.background.wait(timeout=timeout)
        self.background.raise_error()

    @_alone
    def commit(self, request: Request) -> Snapshot:
        """Write a snapshot of the current working set."""
        self.settle()
        snapshot = self._commit(request, only_changes=False)
        assert snapshot is not None
        return snapshot

    @_alone
    def commit_later(
        self, request: Request, *, max_pending: int = 2, on_full: OnFull = "block"
    ) -> PendingCommit:
        """Copy the current working set, and write the snapshot in the background."""
        check_queue(max_pending, on_full)
        ws, background = self.named(), self.background
        self.writable()
        background.raise_error()
        if on_full == "raise" and len(background.pending) >= max_pending:
            raise StoreBusyError(
                f"{max_pending} commits are pending already, so this one was not begun; commit "
                f"less often, raise max_pending, or wait with store.flush()"
            )
        background.wait(at_most=max_pending - 1)
        with without_collector():
            capture, copies = self._capture(ws, request).copied(ws, self._staging)
        about = "" if request.step is None else f" of step {request.step}"
        work = partial(self._finish, ws, capture, copies)
        try:
            return background.submit(
                work, f"the commit{about} to scope {ws.scope!r}", copies.nbytes
            )
        except UsageError:  # nothing else: the work may have begun
            self._staging.release(copies)
            raise

    def _finish(self, ws: WorkingSet, capture: Capture, copies: Copies) -> Snapshot:
        """Write a snapshot, on the background thread.

        Without the lock, for which training would have to wait: what it changes in the working set
        is only looked at by verbs that settle first.
        """
        try:
            self.backend.writer.commit(ws, capture)
        finally:
            self._staging.release(copies)
            ws.head = ws.head and self.with_extras(ws.head)
        assert ws.head is not None
        return ws.head

    @_alone
    def commit_changes(self) -> None:
        """Commit on leaving a scope, if anything changed."""
        self.settle()
        if not self._readonly:
            self._commit(Request(), only_changes=True)
        elif names := self.changed():
            raise ReadOnlyError(
                f"{', '.join(map(repr, names[:5]))} changed in scope {self.scope_name()!r} of "
                f"a read-only store; leave it with scope(…, commit=False)"
            )

    @_alone
    def changed(self) -> list[str]:
        """The names that differ from the snapshot the working set continues."""
        self.settle()
        binding.follow(self.named())
        return self.backend.writer.changed(self.named())

    def _commit(self, request: Request, *, only_changes: bool) -> Snapshot | None:
        ws = self.named()
        self.writable()
        writer = self.backend.writer
        try:
            with without_collector():  # nor does it look for them in what the call leaves behind
                capture = self._capture(ws, request)
                snapshot = writer.commit(ws, capture, only_changes=only_changes)
        finally:  # an error may have come when the snapshot was there
            ws.head = ws.head and self.with_extras(ws.head)
        return None if snapshot is None else ws.head

    def _capture(self, ws: WorkingSet, request: Request) -> Capture:
        binding.follow(ws)
        capture = Capture.of(ws, request)
        for module in binding.unbound(ws, capture.carried.values()):
            if (ws.scope, module) not in self._told:
                self._told.add((ws.scope, module))
                binding.warn_not_bound(module)
        return capture

    # -- going back ----------------------------------------------------------------

    @_alone
    def restore(
        self, reference: Reference, include: Names, exclude: Names, *, strict: bool, verify: bool
    ) -> Snapshot:
        """Bring the current working set to a snapshot; through a filter, parameters only."""
        self.settle()
        ws, target = self.named(), self.resolve(reference)
        binding.follow(ws)
        head = self.repository.head(self.scope_name())
        manifest = self.repository.manifest(target)
        wanted = chosen(include, exclude, [*manifest.entries, *ws.params])
        verb = bring if include is None and exclude is None else restore
        verb(ws, manifest, self.backend.reader, wanted, strict=strict, verify=verify)
        ws.head = head and self.with_extras(head)
        return self.with_extras(target)

    @_alone
    def resume(
        self, include: Names, exclude: Names, *, strict: bool, interrupted: bool
    ) -> Snapshot | None:
        """Bring the current working set and what is attached to the newest snapshot."""
        self.settle()
        ws, repository, scope = self.named(), self.repository, self.scope_name()
        binding.follow(ws)
        head = repository.head(scope)
        newest = head if interrupted else repository.latest(scope)
        if head is not None and (newest is None or newest.ref != head.ref):
            logger.info(
                "%s is what an exception left; %s; resume(interrupted=True) takes it",
                head.ref,
                f"continuing from {newest.ref}" if newest else "there is nothing before it",
            )
        if head is None or newest is None:
            return None
        manifest = repository.manifest(newest)
        wanted = chosen(include, exclude, [*manifest.entries, *ws.params])
        bring(ws, manifest, self.backend.reader, wanted, strict=strict, extra=True)
        ws.head = self.with_extras(head)
        return self.with_extras(newest)

    # -- scopes and names ----------------------------------------------------------

    def fork(self, name: str) -> None:
        """Let the current working set continue in a new scope."""
        check_scope_name(name)
        with self.lock:
            self.settle()
            ws, before = self.named(), self.scope_name()
            if self.scopes.known(name) or self.writable().head_version(name):
                raise ScopeError(f"scope {name!r} exists already; fork into another name")
            ws.scope, ws.head = name, None
            self.scopes.rename(before, ws)

    @_alone
    def rename(self, old: str, new: str) -> None:
        """Give a parameter of the current scope another name, its history included."""
        check_param_name(new)
        self.settle()
        ws = self.named()
        buffers = ws.buffers()
        if old in ws.bound() or old in buffers:
            raise UsageError(f"{old!r} belongs to a bound module; rename it there")
        if new in ws.params or new in ws.stored or new in buffers:
            raise InvalidNameError(f"{new!r} exists already; delete it, or take another name")
        repository, live = self.writable(), old in ws.params
        if ws.head is None and not live:
            raise self.missing(old)
        try:
            if ws.head is not None:
                repository.rename(self.scope_name(), old, new)
        except ParamNotFoundError:
            if not live:  # else it has not been committed in this scope yet
                raise
        ws.rename(old, new)
        for obj in ws.attached.values():
            rename(obj, ws, old, new)

    def _enterable(self, scope: str, *, new: bool) -> WorkingSet:
        self._backend = self.backend  # that of a private store is made now
        return WorkingSet(scope, self._read) if new else self._opened(scope)


def _before_fork() -> None:
    """Wait for every session: a child has none of the threads that could release its lock."""
    _forking.acquire()
    for reference in _sessions.valuerefs():
        if (session := reference()) is not None:
            session.lock.acquire()
            _held_for_fork.append(session.lock)


def _after_fork_in_child() -> None:
    for session in _sessions.values():
        session.background.after_fork_in_child()
        session._staging = Staging()  # the parent's thread may have been inside the old one
    _after_fork()


def _after_fork() -> None:
    while _held_for_fork:
        _held_for_fork.pop().release()
    _forking.release()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
