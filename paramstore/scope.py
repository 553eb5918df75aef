"""Which working set is current: the base scope, named scopes inside it, and plain states.

Moves references only; never reads or writes the database.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, MutableMapping
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from paramstore import values
from paramstore.errors import ScopeError
from paramstore.refs import check_scope_name, is_encodable
from paramstore.working_set import StateDict, WorkingSet

State = MutableMapping[str, Any] | str | None
"""What ``scope(state)`` takes: a name, what a scope yielded, or a plain state."""

_TENSORS = {Tensor, nn.Parameter}
_DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
_dtype = attrgetter("dtype")


class _Left(dict[str, Tensor]):
    """The ``params`` of a plain state that was left, with the working set that enters it again.

    PyroModule enters one at every forward call. A state that was changed in between is entered
    anew, as is one that is still entered: it has no working set to offer meanwhile.
    """

    __slots__ = ("constraints", "working_set")

    constraints: dict[str, Constraint]
    working_set: WorkingSet | None

    def agrees(self, working_set: WorkingSet) -> bool:
        """Whether it holds what the working set does, in this order."""
        params, specs = working_set.params, working_set.constraints
        return (
            len(self) == len(params)
            and len(self.constraints) == len(specs)
            and all(map(is_, self.values(), dict.values(params)))
            and all(map(is_, self.constraints.values(), specs.values()))
            and [*self] == [*dict.keys(params)]
            and [*self.constraints] == [*specs]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # torch.load(weights_only=True) takes no call of dict, and this.
        return OrderedDict, (), None, None, iter(self.items())


_TABLES = {dict, _Left}


class Scopes:
    """The stack of entered scopes, and the working sets of the named ones.

    **Threads**: one thread at a time is inside scopes; another that enters gets a ScopeError.

    **Ownership**: the working set of a scope that was named by the caller is kept for the life of
    the store, that of one that named itself as long as somebody holds the state it yielded.
    """

    def __init__(
        self, base: WorkingSet, opened: Callable[..., WorkingSet], *, unnamed: bool
    ) -> None:
        """Begin with the base scope.

        Args:
            base: Its working set.
            opened: Makes the working set of a scope that this store has none of, given its name
                and whether it is ``new``, in no database either.
            unnamed: Whether a scope without a name names itself; else it is an empty plain state.
        """
        self.current = base
        self._opened = opened
        self._unnamed = unnamed
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

    def working_sets(self) -> list[WorkingSet]:
        """The working sets of all scopes that this store has in memory."""
        held = [state.working_set for state in self._held.values()]
        return [*self._kept.values(), *(ws for ws in held if ws is not None)]

    def rename(self, old: str, working_set: WorkingSet) -> None:
        """Follow a working set that continues in another scope."""
        self._kept.pop(old, None)
        self._held.pop(old, None)
        self.keep(working_set)

    def enter(self, state: State) -> WorkingSet:
        """Make the working set of the scope that ``state`` means the current one.

        Args:
            state: A name, what a scope yielded, a plain state, or None.

        Raises:
            ScopeError: it is active, another thread is inside a scope, or another store's; nothing
                has changed.
        """
        if type(state) is dict:
            return self._enter(_taken_out(state) or _plain_working_set(state))
        if state is None and not self._unnamed:
            return self._enter(WorkingSet(None))
        if isinstance(state, StateDict) and state.working_set is not None:
            return self._enter(self._own(state.working_set))
        if isinstance(state, str):
            check_scope_name(state)
            found, keep = self.known(state) or self._opened(state, new=False), self.keep
        elif state is None:
            found, keep = self._opened(_own_name(), new=True), self.hold
        else:
            return self._enter(_plain_working_set(state))
        self._enter(found)
        keep(found)
        return found

    def _own(self, working_set: WorkingSet) -> WorkingSet:
        name = working_set.scope
        if name is None or self.known(name) is not working_set:
            raise ScopeError(f"the state of {_shown(name)} belongs to another store")
        return working_set

    def _enter(self, working_set: WorkingSet) -> WorkingSet:
        name, thread = working_set.scope, threading.get_ident()
        if self._outer and self._thread != thread:
            raise ScopeError(
                f"{_shown(name)} cannot be entered: another thread is inside "
                f"{_shown(self.current.scope)}. A store has one current scope; open a second store "
                f"on the same file for the other thread"
            )
        if name is not None and name in {ws.scope for ws in (self.current, *self._outer)}:
            raise ScopeError(f"scope {name!r} is active already; leave it before entering it again")
        self._outer.append(self.current)
        self.current = working_set
        self._thread = thread
        return working_set

    def leave(self) -> WorkingSet:
        """Go back to the working set around the current one."""
        self.current = found = self._outer.pop()
        return found


def give_back(state: MutableMapping[str, Any], working_set: WorkingSet) -> None:
    """Put what a plain working set holds into its state; Pyro exchanges the tables, too."""
    params, specs = state.get("params"), state.get("constraints")
    missing = params is None or specs is None
    if not (working_set.params or working_set.constraints or params or specs or missing):
        return  # nothing in, nothing out: nearly always, where PyroModule enters it
    left = _left(state)
    if left is None or not left.agrees(working_set):
        left = _Left(working_set.params)
        left.constraints = dict(working_set.constraints)
        state["params"], state["constraints"] = left, left.constraints
    left.working_set = working_set


def _left(state: Mapping[str, Any]) -> _Left | None:
    """What leaving a plain state put into it, unless somebody exchanged a table since."""
    params = state.get("params")
    if type(params) is not _Left or type(state) is not dict or len(state) != 2:
        return None
    return params if params.constraints is state.get("constraints") else None


def _taken_out(state: dict[str, Any]) -> WorkingSet | None:
    """The working set of a plain state that was left and is as it was then."""
    left = _left(state)
    if left is None or left.working_set is None:
        return None
    found, left.working_set = left.working_set, None
    return found if left.agrees(found) else None


def _plain_working_set(state: Any) -> WorkingSet:
    """Make the working set of a plain state.

    Models have hundreds of names, and Pyro enters a state without a look at them: neither does
    this, in Python.
    """
    if not _is_ordinary(state):
        return values.plain_working_set(state)  # or the error that names what is wrong
    ws = WorkingSet(None)
    if state["params"]:
        dict.update(ws.params, state["params"])
        ws.constraints.update(state["constraints"])
    return ws


def _is_ordinary(state: Any) -> bool:
    """Whether a state holds what nearly all of them do; what else is allowed is looked up later."""
    if type(state) is not dict or len(state) != 2:
        return False
    params: Any = state.get("params")
    specs: Any = state.get("constraints")
    if type(params) not in _TABLES or type(specs) is not dict:
        return False
    if not params:
        return not specs
    return (
        params.keys() == specs.keys()
        and _TENSORS.issuperset(map(type, params.values()))
        and _DTYPES.issuperset(map(_dtype, params.values()))
        and _are_original(specs.values())
        and _are_names(params)
    )


def _are_original(specs: Collection[object]) -> bool:
    if [*specs].count(constraints.real) == len(specs):  # it looks at identity first
        return True
    return all(map(_is_original, {id(spec): spec for spec in specs}.values()))


def _are_names(names: Collection[str]) -> bool:
    try:
        text = "\0".join(names)
    except TypeError:
        return False
    return "" not in names and text.count("\0") == len(names) - 1 and is_encodable(text)


def _is_original(constraint: object) -> bool:
    """Whether it is a constraint, and no copy of constraints.real, as pickles bring."""
    if constraint is constraints.real:
        return True
    return isinstance(constraint, Constraint) and type(constraint) is not type(constraints.real)


def _own_name() -> str:
    """Make the name of a scope that was given none; draws from no generator that a run uses."""
    return f"scope-{uuid.uuid4().hex[:12]}"


def _shown(name: str | None) -> str:
    return "a plain state" if name is None else f"scope {name!r}"
