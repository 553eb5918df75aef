"""What happens to open databases when the process forks.

SQLite's locks and its table of open files do not survive a fork: a child that touches an inherited
connection, or only finalises it, can corrupt the parent's file. So a fork waits until no thread is
inside the database, idle connections are closed before it, and what is left over is never touched
again. Knows nothing of SQL; must never be asked to hold a lock for longer than one operation.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakSet


class Forkable(Protocol):
    """Something that holds connections."""

    def before_fork(self) -> None:
        """Close what is idle."""

    def after_fork_in_child(self) -> None:
        """Leave what was inherited alone."""


class Gate:
    """Counts the threads that are inside a database, for a fork to wait until there is none.

    **Threads**: any; one thread may enter several times. A thread that forks while it is inside
    itself does not wait for itself.

    **Ownership**: one per process; the child of a fork gets a new one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._forking = False
        self.members: WeakSet[Any] = WeakSet()
        """Open databases, each a `Forkable`."""

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Keep the process from forking while the block runs."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        me = threading.get_ident()
        with self._changed:
            while self._forking and me not in self._inside:
                self._changed.wait()
            self._inside[me] = self._inside.get(me, 0) + 1

    def _leave(self) -> None:
        me = threading.get_ident()
        with self._changed:
            left = self._inside.get(me, 0) - 1
            if left > 0:
                self._inside[me] = left
            else:
                self._inside.pop(me, None)
            self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait for the other threads, then keep everybody out until after the fork."""
        me = threading.get_ident()
        self._changed.acquire()
        self._forking = True
        while self._inside.keys() - {me}:
            self._changed.wait()
        for member in list(self.members):
            member.before_fork()

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Start anew: the threads that the old locks belonged to do not exist here."""
        me = threading.get_ident()
        self._changed = threading.Condition()
        self._forking = False
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        for member in list(self.members):
            member.after_fork_in_child()


GATE = Gate()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork,
        after_in_parent=GATE.after_fork_in_parent,
        after_in_child=GATE.after_fork_in_child,
    )
