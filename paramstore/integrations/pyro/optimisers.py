"""The state of Pyro's optimisers: one torch optimiser per parameter, stored by name.

Must never file a state under the name of a parameter that another scope, or another store, has.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import pyro
import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from pyro.optim.multi import MixedMultiOptimizer, Newton, PyroMultiOptimizer
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor

from paramstore.attached import apply, capture, misplaced, rename, settle
from paramstore.errors import UsageError
from paramstore.store import ParamStoreDict
from paramstore.working_set import WorkingSet

logger = logging.getLogger("paramstore")


class _Due(NamedTuple):
    """What waits for the first step of a parameter."""

    state: Any
    zero_grad: bool
    """Whether it had a gradient, which is one of zeros after a step."""


class _Waiting(dict[str, Any]):
    """The states of a PyroOptim that wait for their parameter, by name.

    Pyro asks for one by name when a parameter is stepped for the first time. Two scopes may have
    the same names, so what came out of a snapshot waits for the parameter of its own scope.
    """

    def __init__(self, states: Mapping[str, Any]) -> None:
        super().__init__(states)
        self.of_scope: WeakKeyDictionary[WorkingSet, dict[str, _Due]] = WeakKeyDictionary()

    def pop(self, name: str, *default: Any) -> Any:
        if (store := _ours()) is not None:
            here = self.of_scope.get(store._current, {})
            if name in here:
                due = here.pop(name)
                _leave_zeros(store._params[name], due)
                return due.state
        return super().pop(name, *default)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())


_that_wait: WeakSet[PyroOptim] = WeakSet()
"""The optimisers that have a _Waiting."""


def _ours() -> ParamStoreDict | None:
    """The store that Pyro uses, if it is one of ours."""
    store: Any = pyro.get_param_store()
    return store if isinstance(store, ParamStoreDict) else None


def _installed() -> ParamStoreDict:
    """The same; `misplaced` has been asked before."""
    if (store := _ours()) is None:
        raise UsageError("no store is installed in Pyro; call install(store) first")
    return store


def hand_over(store: ParamStoreDict) -> None:
    """Let what waits for parameters of a store wait in Pyro's way, which goes by the name alone.

    For when Pyro gets its own store back, with the current tensors of this one.
    """
    live = dict(store._params.live())
    for optim in _that_wait:
        due = _due(optim, store._current)
        for name, one in due.items():
            optim._state_waiting_to_be_consumed[name] = one.state
            if name in live:
                _leave_zeros(live[name], one)
        due.clear()


@capture.register
def _capture_optim(optim: PyroOptim) -> object:
    store = _installed()
    live, waiting = _stepped(optim), optim._state_waiting_to_be_consumed
    due = _due(optim, store._current)
    states = {name: state for name, state in waiting.items() if name in store}
    states |= {name: one.state for name, one in due.items() if name in store}
    states |= {name: _get_state_dict(optim.optim_objs[param]) for name, param in live.items()}
    zero_grad = {name for name, one in due.items() if one.zero_grad and name in store}
    zero_grad |= {name for name, param in live.items() if param.grad is not None}
    return {
        "params": {name: states[name] for name in sorted(states)},
        # After a step Pyro leaves zeros, and a gradient of zeros still moves a parameter that has
        # momentum where None does not.
        "zero_grad": sorted(zero_grad),
    }


@apply.register
def _apply_optim(optim: PyroOptim, state: dict[str, Any]) -> None:
    store = _installed()
    states, loaded = dict(state["params"]), set[Tensor]()
    for name, param in store._params.live():
        if name in states:
            # PyroOptim.set_state is ignored for a parameter that already has its optimiser, and
            # for one that has none goes by the name alone.
            if param not in optim.optim_objs:
                optim.optim_objs[param] = optim._get_optim(param)
                optim.grad_clip[param] = optim._get_grad_clip(param)  # type: ignore[arg-type]  # not a str
            _load_state_dict(optim.optim_objs[param], states.pop(name))
            loaded.add(param)
    for param in _stepped(optim).values():
        if param not in loaded:  # it had not been stepped yet
            del optim.optim_objs[param]
            optim.grad_clip.pop(param, None)
    _wait(optim, states, state["zero_grad"])


@settle.register
def _settle_optim(optim: PyroOptim, state: dict[str, Any]) -> None:
    # A tensor of another shape has been replaced: the state has to wait for its successor.
    store = _installed()
    live = dict(store._params.live())
    states = state["params"].items()
    later = {n: s for n, s in states if n not in live or live[n] not in optim.optim_objs}
    _wait(optim, later, state["zero_grad"])
    if strangers := [name for name in later if name not in store]:
        logger.warning(
            "the optimiser's states of %s have no parameter: what was stored before store.rename "
            "goes by the old name. These begin anew; commit right after a rename",
            ", ".join(map(repr, strangers)),
        )
    for name in state["zero_grad"]:
        if name in live:
            live[name].grad = torch.zeros_like(live[name])


@rename.register
def _rename_in_optim(optim: PyroOptim, home: WorkingSet, old: str, new: str) -> None:
    for states in (_due(optim, home), optim._state_waiting_to_be_consumed):
        if old in states:
            states[new] = dict.pop(states, old)


def _stepped(optim: PyroOptim) -> dict[str, Tensor]:
    """The parameters of the current working set that have an optimiser, by name."""
    store = _installed()
    found = {param: store.param_name(param) for _, param in store._params.live()}
    return {name: p for p, name in found.items() if name is not None and p in optim.optim_objs}


def _due(optim: PyroOptim, home: WorkingSet) -> dict[str, _Due]:
    """What waits for parameters of one scope, and no others."""
    waiting = optim._state_waiting_to_be_consumed
    return waiting.of_scope.get(home, {}) if isinstance(waiting, _Waiting) else {}


def _wait(optim: PyroOptim, states: Mapping[str, Any], zero_grad: list[str]) -> None:
    """Let states wait for parameters of the current scope, and no others."""
    store, waiting = _installed(), optim._state_waiting_to_be_consumed
    if not isinstance(waiting, _Waiting):
        waiting = optim._state_waiting_to_be_consumed = _Waiting(waiting)
        _that_wait.add(optim)
    for name in [name for name in waiting if name in store]:
        del waiting[name]
    due = {name: _Due(state, zero_grad=name in zero_grad) for name, state in states.items()}
    waiting.of_scope[store._current] = due


def _leave_zeros(param: Tensor, due: _Due) -> None:
    if due.zero_grad and param.grad is None:
        param.grad = torch.zeros_like(param)


# -- what holds one ------------------------------------------------------------------------------


@capture.register(SVI)
@capture.register(PyroMultiOptimizer)
def _capture_holder(holder: SVI | PyroMultiOptimizer) -> object:
    return capture(holder.optim)


@apply.register(SVI)
@apply.register(PyroMultiOptimizer)
def _apply_holder(holder: SVI | PyroMultiOptimizer, state: dict[str, Any]) -> None:
    apply(holder.optim, state)


@settle.register(SVI)
@settle.register(PyroMultiOptimizer)
def _settle_holder(holder: SVI | PyroMultiOptimizer, state: dict[str, Any]) -> None:
    settle(holder.optim, state)


@rename.register(SVI)
@rename.register(PyroMultiOptimizer)
def _rename_in_holder(
    holder: SVI | PyroMultiOptimizer, home: WorkingSet, old: str, new: str
) -> None:
    rename(holder.optim, home, old, new)


@capture.register
def _capture_mixed(optim: MixedMultiOptimizer) -> object:
    return [capture(part) for part in _parts(optim)]


@apply.register
def _apply_mixed(optim: MixedMultiOptimizer, state: list[Any]) -> None:
    for part, own in zip(_parts(optim), state, strict=True):
        apply(part, own)


@settle.register
def _settle_mixed(optim: MixedMultiOptimizer, state: list[Any]) -> None:
    for part, own in zip(_parts(optim), state, strict=True):
        settle(part, own)


@rename.register
def _rename_in_mixed(optim: MixedMultiOptimizer, home: WorkingSet, old: str, new: str) -> None:
    for part in _parts(optim):
        rename(part, home, old, new)


def _parts(optim: MixedMultiOptimizer) -> Iterator[object]:
    """Its optimisers, without those that have no state."""
    return (part for _, part in optim.parts if not isinstance(part, Newton))


@misplaced.register(PyroOptim)
@misplaced.register(SVI)
@misplaced.register(PyroMultiOptimizer)
@misplaced.register(MixedMultiOptimizer)
def _misplaced(_obj: object, home: WorkingSet) -> str | None:
    store = _ours()
    if store is None:
        return "Pyro's own store is in use, not this one; call install(store) before"
    if store._current is not home:
        return (
            "its parameters are those of the store that is installed in Pyro, which is another "
            "one; call uninstall(), and install(store) with this one"
        )
    return None
