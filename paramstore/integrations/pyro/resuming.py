"""Continues a run of SVI with the bits that it would have had.

Must never leave a gradient of its own, nor a random number drawn.
"""

from __future__ import annotations

from typing import Any

import pyro
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from paramstore.errors import UsageError
from paramstore.snapshot import Snapshot
from paramstore.store import ParamStoreDict


def resume(store: ParamStoreDict, svi: SVI, *args: Any, **kwargs: Any) -> Snapshot | None:
    """Continue a run of SVI: the newest snapshot into parameters, optimiser and generators.

    Pyro sets up guides, plates and compiled functions at the first step, and draws random numbers
    for that. So model and guide run once, then everything is restored, the generators last, and
    the next step gives the same bits as in a run that never ended. On a new run nothing happens.

    Args:
        store: The installed store, with ``svi`` or its optimiser attached, and ``rng=True``.
        svi: Ready for ``svi.step``.
        *args: What ``svi.step`` gets. An iterator among them gives what one step takes from it.
        **kwargs: What ``svi.step`` gets.

    Returns:
        The snapshot; None on a new run.

    Raises:
        UsageError: the store is not installed in Pyro.
        MismatchError: the snapshot does not fit what is live.
    """
    current: Any = pyro.get_param_store()
    if current is not store:
        raise UsageError("this store is not Pyro's; call install(store) before resume")
    if store.latest is None:
        return None
    with poutine.trace(param_only=True) as seen:
        svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)
    # Parameters that are module-local and not bound are in the trace only.
    sites = (_trained(site["value"]) for site in seen.trace.nodes.values())
    for param in (*sites, *dict(store._params.live()).values()):
        if param is not None:
            param.grad = None
    last: Snapshot | None = store.resume()
    return last


def _trained(value: Any) -> Tensor | None:
    """The unconstrained value of a site; a module-local nn.Parameter has no way to it, and is it.

    None where it was replaced and is gone, as Pyro's baselines do with theirs.
    """
    unconstrained = getattr(value, "unconstrained", None)
    found: Tensor | None = value if unconstrained is None else unconstrained()
    return found
