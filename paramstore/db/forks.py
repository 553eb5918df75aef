"""What happens to open databases when the process forks.

SQLite's locks and its table of open files do not survive a fork: a child that touches an inherited
connection, or only finalises it, can corrupt the parent's file. So a fork waits until no thread is
inside a database, idle connections are closed before it, and what is left over is never touched
again. Knows nothing of SQL; must never run a statement.
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final, Protocol
from weakref import WeakSet

LONGEST_WAIT: Final = 60.0
"""Seconds that a fork waits; then the child cannot use the databases that others were inside."""
MOMENT: Final = 0.02
"""Seconds that others let a waiting fork go first."""


class Forkable(Protocol):
    """Something that holds connections."""

    def before_fork(self) -> None:
        """Close what is idle."""

    def after_fork_in_child(self) -> None:
        """Leave what was inherited alone."""


class Gate:
    """Knows which threads are inside a database; a fork waits until there is none.

    A context manager: the process does not fork while the block runs.

    **Threads**: any; one thread may enter several times. A thread that forks while it is inside
    does not wait for itself. While a fork waits, others wait a moment before they enter, and not
    longer: a thread that is inside may be waiting for them.

    **Ownership**: one per process; the child of a fork starts with nobody inside but the thread
    that forked.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._forking = False
        self._members: WeakSet[Any] = WeakSet()

    def add(self, member: Forkable) -> None:
        """Tell ``member`` about forks for as long as it lives."""
        with self._changed:
            self._members.add(member)

    def members(self) -> list[Any]:
        """Return what was added and is still alive."""
        with self._changed:
            return list(self._members)

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._forking and me not in self._inside:
                self._changed.wait_for(lambda: not self._forking, MOMENT)
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(self, *exception: object) -> None:
        me = threading.get_ident()
        with self._changed:
            self._inside[me] = self._inside.get(me, 1) - 1
            if not self._inside[me]:
                del self._inside[me]
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside, then keep all out until after the fork."""
        me = threading.get_ident()
        self._changed.acquire()
        self._forking = True
        self._changed.wait_for(lambda: not self._inside.keys() - {me}, LONGEST_WAIT)
        for member in self.members():
            member.before_fork()

    def after_fork_in_parent(self) -> None:
        """Let the threads in again."""
        self._forking = False
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Start anew: the other threads, and the locks that they held, do not exist here."""
        me = threading.get_ident()
        self._changed = threading.Condition()
        self._forking = False
        self._inside = {me: self._inside[me]} if me in self._inside else {}
        for member in self.members():
            member.after_fork_in_child()


GATE = Gate()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=GATE.before_fork,
        after_in_parent=GATE.after_fork_in_parent,
        after_in_child=GATE.after_fork_in_child,
    )
