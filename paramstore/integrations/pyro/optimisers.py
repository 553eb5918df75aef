"""The state of Pyro's optimisers: one torch optimiser per parameter, stored by name.

Must never file a state under the name of a parameter that another scope has.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro.infer import SVI
from pyro.optim import PyroOptim
from pyro.optim.multi import MixedMultiOptimizer, Newton, PyroMultiOptimizer
from pyro.optim.optim import _get_state_dict, _load_state_dict
from torch import Tensor

from paramstore.attached import apply, capture, settle
from paramstore.integrations.pyro.global_store import current_installation, installed_store
from paramstore.working_set import WorkingSet


class _Waiting(dict[str, Any]):
    """The states of a PyroOptim that wait for their parameter, by name.

    Pyro asks for one by name when a parameter is stepped for the first time. Two scopes may have
    the same names, so what came out of a snapshot waits for the parameter of its own scope.
    """

    def __init__(self, states: Mapping[str, Any]) -> None:
        super().__init__(states)
        self.of_scope: WeakKeyDictionary[WorkingSet, dict[str, Any]] = WeakKeyDictionary()

    def pop(self, name: str, *default: Any) -> Any:
        installation = current_installation()
        if installation is not None:
            here = self.of_scope.get(installation.store._current, {})
            if name in here:
                return here.pop(name)
        return super().pop(name, *default)

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), None, None, iter(self.items())


@capture.register
def _capture_optim(optim: PyroOptim) -> object:
    store = installed_store()
    live, waiting = _stepped(optim), _waiting(optim)
    states = {name: state for name, state in waiting.items() if name in store}
    states |= {name: _get_state_dict(optim.optim_objs[param]) for name, param in live.items()}
    return {
        "params": {name: states[name] for name in sorted(states)},
        # After a step Pyro leaves zeros, and a gradient of zeros still moves a parameter that has
        # momentum where None does not.
        "zero_grad": sorted(name for name, param in live.items() if param.grad is not None),
    }


@apply.register
def _apply_optim(optim: PyroOptim, state: dict[str, Any]) -> None:
    store = installed_store()
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
    _wait(optim, states)


@settle.register
def _settle_optim(optim: PyroOptim, state: dict[str, Any]) -> None:
    # A tensor of another shape has been replaced: the state has to wait for its successor.
    live = dict(installed_store()._params.live())
    states = state["params"].items()
    _wait(optim, {n: s for n, s in states if n not in live or live[n] not in optim.optim_objs})
    for name in state["zero_grad"]:
        if name in live:
            live[name].grad = torch.zeros_like(live[name])


def _stepped(optim: PyroOptim) -> dict[str, Tensor]:
    """The parameters of the current working set that have an optimiser, by name."""
    store = installed_store()
    found = {param: store.param_name(param) for _, param in store._params.live()}
    return {name: p for p, name in found.items() if name is not None and p in optim.optim_objs}


def _waiting(optim: PyroOptim) -> dict[str, Any]:
    """What waits for parameters of the current scope, or for whoever has such a name."""
    waiting = optim._state_waiting_to_be_consumed
    if not isinstance(waiting, _Waiting):
        return waiting
    return waiting | waiting.of_scope.get(installed_store()._current, {})


def _wait(optim: PyroOptim, states: Mapping[str, Any]) -> None:
    """Let states wait for parameters of the current scope, and no others."""
    store, waiting = installed_store(), optim._state_waiting_to_be_consumed
    if not isinstance(waiting, _Waiting):
        waiting = optim._state_waiting_to_be_consumed = _Waiting(waiting)
    for name in [name for name in waiting if name in store]:
        del waiting[name]
    waiting.of_scope[store._current] = dict(states)


# -- what holds one ------------------------------------------------------------------------------


@capture.register
def _capture_svi(svi: SVI) -> object:
    return capture(svi.optim)


@apply.register
def _apply_svi(svi: SVI, state: dict[str, Any]) -> None:
    apply(svi.optim, state)


@settle.register
def _settle_svi(svi: SVI, state: dict[str, Any]) -> None:
    settle(svi.optim, state)


@capture.register
def _capture_multi(optim: PyroMultiOptimizer) -> object:
    return capture(optim.optim)


@apply.register
def _apply_multi(optim: PyroMultiOptimizer, state: dict[str, Any]) -> None:
    apply(optim.optim, state)


@settle.register
def _settle_multi(optim: PyroMultiOptimizer, state: dict[str, Any]) -> None:
    settle(optim.optim, state)


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


def _parts(optim: MixedMultiOptimizer) -> Iterator[object]:
    """Its optimisers, without those that have no state."""
    return (part for _, part in optim.parts if not isinstance(part, Newton))
