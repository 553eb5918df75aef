"""Module-local parameters of Pyro, which reach no store by themselves: ``store.module`` binds them.

Says what a ``PyroModule`` holds; must never read its attributes, which would run Pyro's effects.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro
from pyro.nn import PyroModule
from torch.distributions.constraints import Constraint

from paramstore.errors import UsageError
from paramstore.modules import check_bindable, constrained


@constrained.register
def _constrained_of_pyro_module(module: PyroModule) -> Mapping[str, tuple[str, Constraint]]:
    declared = module.__dict__["_pyro_params"]
    return {f"{name}_unconstrained": (name, spec) for name, (spec, _) in declared.items()}


@check_bindable.register
def _check_pyro_module(module: PyroModule) -> None:
    if pyro.settings.get("module_local_params"):
        return
    raise UsageError(
        f"the parameters of {type(module).__qualname__} are Pyro's, by names of their own: with "
        f"install(store) they are in the store without store.module. To bind them by module, call "
        f"pyro.enable_module_local_param(True) before the module is built; for its buffers alone "
        f"attach it: store.attach(net=module)"
    )
