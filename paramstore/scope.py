"""Which working set is current: the base scope, named scopes inside it, and plain states.

Moves references only; never reads or writes the database.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections.abc import Iterator

from paramstore.errors import ScopeError
from paramstore.working_set import StateDict, WorkingSet


class Scopes:
    """The stack of entered scopes, and the working sets of the named ones.

    **Threads**: one thread at a time is inside scopes; another that enters gets a ScopeError.

    **Ownership**: the working set of a scope that was named by the caller is kept for the life of
    the store, that of one that named itself as long as somebody holds the state it yielded.
    """

    def __init__(self, base: WorkingSet) -> None:
        self.current = base
        self._outer: list[WorkingSet] = []
        self._thread = 0
        self._kept: dict[str, WorkingSet] = {}
        self._held: weakref.WeakValueDictionary[str, StateDict] = weakref.WeakValueDictionary()
        self.keep(base)

    def keep(self, working_set: WorkingSet) -> None:
        """Keep the working set of a scope that was named by the caller."""
        assert working_set.scope is not None
        self._kept[working_set.scope] = working_set

    def hold(self, working_set: WorkingSet) -> None:
        """Keep the working set of a scope that named itself, while its state is alive."""
        assert working_set.scope is not None
        self._held[working_set.scope] = working_set.state

    def known(self, name: str) -> WorkingSet | None:
        """The working set that this store has for a scope."""
        if name in self._kept:
            return self._kept[name]
        state = self._held.get(name)
        return None if state is None else state.working_set

    def rename(self, old: str, working_set: WorkingSet) -> None:
        """Follow a working set that continues in another scope."""
        self._kept.pop(old, None)
        self._held.pop(old, None)
        self.keep(working_set)

    def __iter__(self) -> Iterator[WorkingSet]:
        """Every working set that is alive."""
        yield from self._kept.values()
        for state in list(self._held.values()):
            assert state.working_set is not None
            yield state.working_set

    def check_free(self, name: str) -> None:
        """Refuse a scope that is active, or any while another thread is inside one.

        Raises:
            ScopeError: in both cases.
        """
        if self._outer and self._thread != threading.get_ident():
            raise ScopeError(
                f"scope {name!r} cannot be entered: another thread is inside scope "
                f"{self.current.scope!r}. A store has one current scope; open a second store on "
                f"the same file for the other thread"
            )
        if name in (working_set.scope for working_set in (self.current, *self._outer)):
            raise ScopeError(f"scope {name!r} is active already; leave it before entering it again")

    def enter(self, working_set: WorkingSet) -> None:
        """Make a working set the current one."""
        self._outer.append(self.current)
        self.current = working_set
        self._thread = threading.get_ident()

    def leave(self) -> None:
        """Go back to the working set around the current one."""
        self.current = self._outer.pop()


def own_name() -> str:
    """Make the name of a scope that was given none; draws from no generator that a run uses."""
    return f"scope-{uuid.uuid4().hex[:12]}"
