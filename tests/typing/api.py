"""The public API as a typed program uses it; mypy checks this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pyro.infer import SVI
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

import paramstore
from paramstore import (
    Autosave,
    Diff,
    History,
    Log,
    ParamStoreDict,
    ParamVersion,
    PendingCommit,
    ScopeInfo,
    Snapshot,
    SnapshotView,
    StateDict,
    Statistics,
)
from paramstore.integrations.pyro import Installation, install, resume, uninstall


def opening() -> None:
    store: ParamStoreDict = paramstore.open()
    store = paramstore.open("run.db", scope="main", start="main@12", readonly=False, create=True)
    store = paramstore.open(Path("run.db"), map_location="cpu", validate=None, statistics=True)
    store = paramstore.open("run.db", timeout=1.5, journal="wal", start=12)
    with ParamStoreDict() as private:
        private.close()
    paramstore.open("run.db", "main")  # type: ignore[call-arg]  # all but the path is keyword-only
    version: str = paramstore.__version__
    del store, version


def dictionary(store: ParamStoreDict) -> None:
    value: Tensor = store.setdefault("scale", torch.ones(3), constraint=constraints.positive)
    value = store.setdefault("loc", lambda: torch.zeros(3))
    value = store.get_param("loc", torch.zeros(3), constraints.real, event_dim=1)
    store["x"] = value
    value = store["x"]
    del store["x"]
    names: Iterator[str] = iter(store)
    pairs: list[tuple[str, Tensor]] = [*store.items(), *store.named_parameters()]
    tensors: list[Tensor] = list(store.values())
    found: dict[str, Tensor] = store.match("net")
    name: str | None = store.param_name(value)
    state: dict[str, Any] = store.get_state()
    store.set_state(state)
    store.save("params.safetensors")
    store.load("params.safetensors", map_location="cpu")
    store.clear()
    size: int = len(store) if store and "x" in store else 0
    store["x"] = 1.0  # type: ignore[assignment]
    del names, pairs, tensors, found, name, size


def training(store: ParamStoreDict, net: nn.Module, optim: torch.optim.Optimizer) -> None:
    bound: nn.Module = store.module("net", net, strict=True, exclude="net$$$out.*")
    store.attach(optim=optim, rng=True)
    last: Snapshot | None = store.resume(include=["net$$$*"], exclude="net$$$out.*", strict=False)
    snapshot: Snapshot = store.commit(
        step=1,
        message="warm",
        metrics={"elbo": -12.3},
        tags=["warm"],
        extras={"epoch": 3, "seen": torch.arange(3)},
        on_conflict="append",
    )
    step: int | None = snapshot.step
    when: datetime = snapshot.created_at
    metrics: Mapping[str, float] = snapshot.metrics
    reference: str = snapshot.ref
    store.commit(1)  # type: ignore[call-overload]  # the step is keyword-only
    pending: PendingCommit = store.commit(step=2, wait=False, max_pending=1, on_full="raise")
    snapshot = pending.result(timeout=1.0)
    auto: Autosave
    with store.autosave(every=500, seconds=600, on_conflict="append") as auto:
        begun: PendingCommit | None = auto.step(3, loss=torch.zeros(()), elbo=-1.0)
    store.flush(timeout=1)
    del bound, last, step, when, metrics, reference, begun


def looking_back(store: ParamStoreDict) -> None:
    log: Log = store.log()
    newest: Snapshot = log[0]
    history: History = store.history("scale", limit=100)
    version: ParamVersion = history[-1]
    norm: float | None = version.norm
    statistics: Statistics | None = version.statistics
    view: SnapshotView = store.at("main@warm")
    value: Tensor = view["scale"]
    value = view.unconstrained("scale")
    held: Mapping[str, Tensor] = view
    diff: Diff = store.diff("main@1", newest)
    pictures: list[Figure] = [history.plot(), history.plot(ax=Figure().subplots()), diff.plot()]
    pictures.append(store.plot("loc", "net$$$*", scope="main", metrics=["elbo"]))
    frames: list[object] = [log.to_pandas(), history.to_pandas()]
    relative: list[float | None] = [change.relative for change in diff.changed]
    best: Snapshot = store.best("elbo", "max")
    latest: Snapshot | None = store.latest
    known: Snapshot | None = store.last
    scopes: list[ScopeInfo] = list(store.scopes())
    del pictures, frames, norm, statistics, value, held, relative, best, latest, known, scopes


def moving(store: ParamStoreDict) -> None:
    store.restore("main@warm", include=["net$$$*"], exclude=["loc"], strict=False, verify=True)
    store.restore(3)
    store.fork("colder")
    store.tag("warm", "main@5", move=True)
    store.untag("warm")
    store.rename("old", "new")
    names: tuple[str, ...] = tuple(store.changed())
    with store.scope("guide-a") as state:
        held: StateDict = state
    with store.scope(state, commit=False):
        pass
    with store.scope():
        pass
    del names, held


def module_level(net: nn.Module) -> None:
    value: Tensor = paramstore.param("scale", torch.ones(1), constraint=constraints.positive)
    paramstore.module("net", net)
    store: ParamStoreDict = paramstore.get_param_store()
    paramstore.clear_param_store()
    with paramstore.set_param_store(store):
        pass
    name: str = paramstore.param_with_module_name("net", "weight")
    name = paramstore.normalize_param_name(paramstore.user_param_name(name))
    name = paramstore.module_from_param_with_module_name(name)
    del value


class Even(Constraint):
    def __init__(self, least: int = 0) -> None:
        self.least = least


def housekeeping(store: ParamStoreDict) -> None:
    policy: paramstore.Policy = paramstore.KeepLast(3) | paramstore.KeepEvery(steps=100)
    policy |= paramstore.KeepBest("elbo", 2, mode="max") | paramstore.KeepTagged()
    found: paramstore.Expired = store.expire(policy, scope="main", dry_run=True)
    reasons: list[tuple[str, tuple[str, ...]]] = [(k.snapshot.ref, k.reasons) for k in found.kept]
    freed: paramstore.Collected = store.gc(compact=True)
    sizes: dict[str, int] = {scope.name: scope.own_nbytes for scope in store.du().scopes}
    store.expire(3)  # type: ignore[arg-type]  # a policy
    del reasons, freed, sizes


def errors(store: ParamStoreDict) -> None:
    paramstore.register_constraint(Even, "even")
    try:
        store.commit()
    except paramstore.ConflictError as conflict:
        versions: tuple[str, int, int] = (conflict.scope, conflict.seen, conflict.found)
        del versions
    except paramstore.CorruptError as corrupt:
        names: tuple[str, ...] = (*corrupt.params, *corrupt.snapshots)
        del names
    except paramstore.ParamStoreError as error:
        kind: str = error.kind
        del kind
    for wrong in (paramstore.NotFoundError, paramstore.InvalidInputError, paramstore.UsageError):
        known: type[KeyError | ValueError | RuntimeError] = wrong
        del known


def pyro(store: ParamStoreDict, svi: SVI) -> None:
    installation: Installation = install(store)
    uninstall()
    with install(store, prefer="store") as installed:
        same: ParamStoreDict = installed
        store.attach(svi=svi, rng=True)
        last: Snapshot | None = resume(store, svi, torch.ones(2), subsample=True)
        del same, last
    install(store, prefer="mine")  # type: ignore[arg-type]  # "store" or "pyro"
    del installation
