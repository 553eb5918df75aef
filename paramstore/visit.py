"""Entering a scope and leaving it again.

Decides what happens on both ways; must never look into a working set.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from paramstore.scope import give_back
from paramstore.session import Session
from paramstore.working_set import StateDict, WorkingSet


class Visit(AbstractContextManager[StateDict]):
    """One stay in a scope. A class and no generator: PyroModule makes one at every forward call."""

    __slots__ = ("_commit", "_inner", "_session", "_show", "_state")

    def __init__(
        self, session: Session, state: Any, show: Callable[[WorkingSet], None], *, commit: bool
    ) -> None:
        self._session = session
        self._state = state
        self._show = show
        self._commit = commit

    def __enter__(self) -> StateDict:
        session = self._session
        with session.lock:
            self._inner = inner = session.scopes.enter(self._state)
            self._show(inner)
        if inner.scope is not None:
            return inner.state
        if self._state is None:
            self._state = {"params": {}, "constraints": {}}
        state: StateDict = self._state
        return state

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        session = self._session
        try:
            if kind is not None:
                return
            if self._inner.scope is None:
                give_back(self._state, self._inner)
            elif self._commit:
                session.commit_changes()
        finally:
            with session.lock:
                self._show(session.scopes.leave())
