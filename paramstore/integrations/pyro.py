"""Pyro on a store: ``pyro.param`` reads and writes it, and SVI resumes with the same bits.

Pyro keeps one parameter store per process, bound to names in several of its modules. Must never
leave Pyro between two stores: every name is rebound, or none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from paramstore.attached import apply, capture, settle
from paramstore.errors import MismatchError, UsageError
from paramstore.snapshot import Snapshot
from paramstore.store import ParamStoreDict

try:
    import pyro
    import pyro.nn.module
    import pyro.poutine.runtime
    import pyro.primitives
    from pyro.infer import SVI
    from pyro.optim import PyroOptim
    from pyro.optim.optim import _get_state_dict, _load_state_dict
except ModuleNotFoundError as error:
    raise ImportError(
        "paramstore.integrations.pyro needs Pyro: pip install 'paramstore[pyro]'"
    ) from error

_HOLDERS = (pyro.poutine.runtime, pyro.primitives, pyro.nn.module)
"""Pyro's modules with a global ``_PYRO_PARAM_STORE`` (pyro-ppl 1.8 and 1.9)."""


class _Installed(NamedTuple):
    store: ParamStoreDict
    alias: Any
    """Pyro's own object, which modules imported by name earlier: now a second face of store."""
    own_class: type


_installed: _Installed | None = None


def install(store: ParamStoreDict) -> None:
    """Make ``store`` the parameter store of Pyro, for this process.

    What Pyro's store holds goes into ``store``, the same tensors. Installing the installed store
    again does nothing.

    Raises:
        MismatchError: names that both stores hold; nothing has been changed.
        UsageError: another store is installed.
    """
    global _installed
    if _installed is not None:
        if _installed.store is store:
            return
        raise UsageError("another store is installed in Pyro; call uninstall() first")
    own = _pyro_store()
    if both := sorted(name for name in own if name in store):
        raise MismatchError(
            f"Pyro's store and the one to install both hold {', '.join(map(repr, both))}; to go on "
            f"with the values of the latter, call pyro.clear_param_store() before install(store)"
        )
    store.set_state(own.get_state())
    _installed = _Installed(store, own, type(own))
    # Modules that did `from pyro.poutine.runtime import _PYRO_PARAM_STORE` keep this object.
    own.__class__ = type(store)
    own.__dict__ = store.__dict__
    _bind(store)


def uninstall() -> None:
    """Give Pyro its own store back, with the current tensors; does nothing if none is installed.

    The store that was installed keeps its tensors as well, and stays open.
    """
    global _installed
    if _installed is None:
        return
    store, own, own_class = _installed
    params = dict(store.named_parameters())
    own.__dict__ = {}  # not the store's any more, which is left as it is
    own.__class__ = own_class
    own.__init__()
    own.set_state({"params": params, "constraints": dict(store._constraints)})
    _bind(own)
    _installed = None


def _pyro_store() -> Any:
    return pyro.get_param_store()


def _bind(store: Any) -> None:
    for module in _HOLDERS:
        module._PYRO_PARAM_STORE = store  # type: ignore[attr-defined]
    pyro.primitives._param = pyro.poutine.runtime.effectful(store.get_param, type="param")


def resume(store: ParamStoreDict, svi: SVI, *args: Any, **kwargs: Any) -> Snapshot | None:
    """Continue a run of SVI: the newest snapshot into parameters, optimiser and generators.

    Pyro sets up guides, plates and compiled functions at the first step, and draws random numbers
    for that. So model and guide run once, then everything is restored, the generators last, and
    the next step gives the same bits as in a run that never ended. On a new run nothing happens.

    Args:
        store: The installed store, with ``svi`` or its optimiser attached, and ``rng=True``.
        svi: Ready for ``svi.step``.
        *args: What ``svi.step`` gets.
        **kwargs: What ``svi.step`` gets.

    Returns:
        The snapshot; None on a new run.

    Raises:
        UsageError: the store is not installed in Pyro.
        MismatchError: the snapshot does not fit what is live.
    """
    if _pyro_store() is not store:
        raise UsageError("this store is not Pyro's; call install(store) before resume")
    if store.latest is None:
        return None
    svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
    for param in list(store._param_to_name):
        param.grad = None
    last: Snapshot | None = store.resume()
    return last


# -- optimisers: one torch optimiser per parameter, by name ------------------------------------


@capture.register
def _capture_optim(optim: PyroOptim) -> object:
    store = _pyro_store()
    live = _live(optim)
    waiting = optim._state_waiting_to_be_consumed
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
    store = _pyro_store()
    states = dict(state["params"])
    for name, param in _live(optim).items():
        if name in states:
            # PyroOptim.set_state is ignored for a parameter that already has its optimiser.
            _load_state_dict(optim.optim_objs[param], states.pop(name))
        else:  # it had not been stepped yet
            del optim.optim_objs[param]
            optim.grad_clip.pop(param, None)
    waiting = optim._state_waiting_to_be_consumed
    elsewhere = {name: waiting[name] for name in waiting if name not in store}
    optim._state_waiting_to_be_consumed = elsewhere | states


@settle.register
def _settle_optim(optim: PyroOptim, state: dict[str, Any]) -> None:
    live = _live(optim)  # a tensor of another shape has been replaced: its state has to wait
    waiting = {name: found for name, found in state["params"].items() if name not in live}
    optim._state_waiting_to_be_consumed.update(waiting)
    for param, name in list(_pyro_store()._param_to_name.items()):
        if name in state["zero_grad"]:
            param.grad = torch.zeros_like(param)


@capture.register
def _capture_svi(svi: SVI) -> object:
    return capture(svi.optim)


@apply.register
def _apply_svi(svi: SVI, state: dict[str, Any]) -> None:
    apply(svi.optim, state)


@settle.register
def _settle_svi(svi: SVI, state: dict[str, Any]) -> None:
    settle(svi.optim, state)


def _live(optim: PyroOptim) -> dict[str, Tensor]:
    """The parameters that have an optimiser, by name; only those of the current working set."""
    store = _pyro_store()
    named = ((store.param_name(param), param) for param in optim.optim_objs)
    return {
        name: param
        for name, param in named
        if name is not None and store._params.get(name) is param
    }
