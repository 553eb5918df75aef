"""Trains two models in turn, under the same parameter names, in stock Pyro and on a store.

    python scope_runs.py FOLDER

For each way of using optimisers, one per model or one for both: ``stock`` keeps two states of
Pyro's own store in memory, ``whole`` has two named scopes, ``killed`` is that and ends by SIGKILL,
``resumed`` continues it in another process. What they end with is ``FOLDER/<way>.<role>``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # a second's work at the first optimiser, so once here instead of in each fork
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]  # made when it is imported
from pyro_runs import in_a_process

import paramstore
from paramstore.integrations.pyro import install, resume

STEPS = 1000
EVERY = 100  # steps between commits
KILLED = 457
SCOPES = ("first", "second")
WAYS = ("own", "shared")
"""Of using optimisers."""


def make(scope: str, optim: Any) -> SVI:
    """The same names and different data."""
    center = SCOPES.index(scope) - 0.5
    data = torch.linspace(center - 1, center + 1, 10)

    def model() -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(data)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=data)

    def guide() -> None:
        loc = pyro.param("loc", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.sample("mean", dist.Normal(loc, scale))

    return SVI(model, guide, optim, Trace_ELBO())


def make_all(way: str) -> dict[str, SVI]:
    one = Adam({"lr": 0.01})
    own = {scope: Adam({"lr": 0.01}) for scope in SCOPES}
    return {scope: make(scope, one if way == "shared" else own[scope]) for scope in SCOPES}


Enter = Callable[[str], AbstractContextManager[Any]]


def train(svis: dict[str, SVI], enter: Enter, steps: range, commit: Callable[[int], None]) -> None:
    for step in steps:
        scope = SCOPES[step % 2]
        with enter(scope):
            svis[scope].step()
        if step % EVERY == 0:
            commit(step)


def run_stock(folder: Path, way: str) -> None:
    pyro.set_rng_seed(0)
    svis = make_all(way)
    states: dict[str, Any] = {scope: {"params": {}, "constraints": {}} for scope in SCOPES}

    def enter(scope: str) -> AbstractContextManager[Any]:
        return pyro.get_param_store().scope(states[scope])

    train(svis, enter, range(1, STEPS + 1), commit=lambda step: None)
    write(folder / f"{way}.stock", svis, enter)


def run_stored(path: Path, way: str, *, seed: int, end: int) -> tuple[dict[str, SVI], Enter]:
    pyro.set_rng_seed(seed)
    store = paramstore.open(path)
    install(store)
    svis = make_all(way)

    def enter(scope: str) -> AbstractContextManager[Any]:
        return store.scope(scope, commit=False)

    def commit(step: int) -> None:
        for scope in SCOPES:
            with enter(scope):
                store.commit(step=step)

    done = 0
    for scope in SCOPES:
        with enter(scope):
            store.attach(optim=svis[scope].optim, rng=True)
            last = resume(store, svis[scope])
            done = last.step or 0 if last else 0
    train(svis, enter, range(done + 1, end + 1), commit)
    return svis, enter


def run_whole(folder: Path, way: str) -> None:
    write(folder / f"{way}.whole", *run_stored(folder / f"{way}.w.db", way, seed=0, end=STEPS))


def run_killed(folder: Path, way: str) -> None:
    run_stored(folder / f"{way}.db", way, seed=0, end=KILLED)
    os.kill(os.getpid(), signal.SIGKILL)


def run_resumed(folder: Path, way: str) -> None:
    write(folder / f"{way}.resumed", *run_stored(folder / f"{way}.db", way, seed=1, end=STEPS))


def write(path: Path, svis: dict[str, SVI], enter: Enter) -> None:
    state: dict[str, Any] = {"torch": torch.get_rng_state()}
    for scope in SCOPES:
        with enter(scope):
            params = dict(sorted(pyro.get_param_store().named_parameters()))
            objects = svis[scope].optim.optim_objs
            state[scope] = {
                "params": {name: param.detach().clone() for name, param in params.items()},
                "optimiser": {name: objects[param].state_dict() for name, param in params.items()},
            }
    torch.save(state, path)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for way in WAYS:
        assert in_a_process(run_stock, folder, way) == 0, way
        assert in_a_process(run_whole, folder, way) == 0, way
        assert in_a_process(run_killed, folder, way) == -signal.SIGKILL, way
        assert in_a_process(run_resumed, folder, way) == 0, way


if __name__ == "__main__":
    main(Path(sys.argv[1]))
