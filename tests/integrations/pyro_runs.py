"""Trains every combination of ELBO, guide and optimiser three times, each in a process of its own.

    python pyro_runs.py FOLDER

``whole`` is stock Pyro without a store, ``killed`` commits and ends by SIGKILL at some step,
``resumed`` continues that to the end, in a process that was seeded otherwise. The state that
``whole`` and ``resumed`` leave is written to ``FOLDER/<combination>.<role>``.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # a second's work at the first optimiser, so once here instead of in each fork
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import (
    SVI,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import ExponentialLR  # type: ignore[attr-defined]  # made when it is imported
from torch import Tensor, nn

import paramstore
from paramstore.integrations.pyro import install, resume

STEPS = 10
EVERY = 2  # steps between commits


def data() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1, 1, 20)
    return x, (3 * x + 1 + (x * 40).sin()).contiguous()


def model(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=8) as rows:  # draws the rows at every step
        mean = weights[..., 0:1] * x[rows] + weights[..., 1:2]
        pyro.sample("y", dist.Normal(mean, noise), obs=y[rows])


@config_enumerate  # type: ignore[untyped-decorator]
def outliers(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=8) as rows:
        outlier = pyro.sample("outlier", dist.Bernoulli(0.1))
        mean = weights[0] * x[rows] + weights[1]
        pyro.sample("y", dist.Normal(mean, noise * (1 + 9 * outlier)), obs=y[rows])


class HandWritten:
    """Constraints, a lazily drawn value, a module, and a parameter that is not always used."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.2), nn.Linear(4, 2))

    def __call__(self, x: Tensor, y: Tensor) -> None:
        net = pyro.module("net", self.net)
        loc = net(torch.ones(1)) + pyro.param("loc", lambda: torch.randn(2))
        tril = pyro.param("tril", 0.1 * torch.eye(2), constraint=constraints.lower_cholesky)
        shift = pyro.param("shift", torch.zeros(()))  # in every trace, with momentum, …
        if torch.rand(()) < 0.5:  # … but only sometimes with a gradient
            loc = loc + shift
        spread = tril.diagonal() + tril.abs().sum(-1)
        pyro.sample("weights", dist.Normal(loc, spread).to_event(1))
        scale = pyro.param("scale", torch.tensor(0.2), constraint=constraints.softplus_positive)
        center = pyro.param("center", torch.tensor(0.1), constraint=constraints.interval(-3, 3.0))
        pyro.sample("noise", dist.LogNormal(center, scale))


ELBOS: dict[str, Callable[[], Any]] = {
    "Trace": Trace_ELBO,
    "TraceGraph": TraceGraph_ELBO,
    "TraceMeanField": TraceMeanField_ELBO,
    "TraceEnum": TraceEnum_ELBO,
}
GUIDES: dict[str, Callable[[Any], Any]] = {
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "hand": lambda model: HandWritten(),
}
OPTIMISERS: dict[str, Callable[[], Any]] = {
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99}),
    "ExponentialLR": lambda: ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.9}
    ),
}
COMBINATIONS = list(map("-".join, product(ELBOS, GUIDES, OPTIMISERS)))


def kill_at(combination: str) -> int:
    return random.Random(combination).randrange(EVERY, STEPS)


def make(combination: str) -> SVI:
    elbo, guide, optimiser = combination.split("-")
    if elbo == "TraceEnum":
        visible = poutine.block(outliers, hide=["outlier"])
        return SVI(outliers, GUIDES[guide](visible), OPTIMISERS[optimiser](), ELBOS[elbo]())
    return SVI(model, GUIDES[guide](model), OPTIMISERS[optimiser](), ELBOS[elbo]())


def step(svi: SVI, number: int) -> None:
    svi.step(*data())
    if number % 3 == 0 and hasattr(svi.optim, "step"):
        svi.optim.step()  # of the learning rate


def run_whole(folder: Path, combination: str) -> None:
    pyro.set_rng_seed(0)
    svi = make(combination)
    for number in range(1, STEPS + 1):
        step(svi, number)
    write(folder / f"{combination}.whole", svi)


def run_stored(folder: Path, combination: str, *, seed: int, end: int) -> SVI:
    pyro.set_rng_seed(seed)
    store = paramstore.open(folder / f"{combination}.db")
    install(store)
    svi = make(combination)
    store.attach(optim=svi.optim, rng=True)
    last = resume(store, svi, *data())
    for number in range((last.step or 0) + 1 if last else 1, end + 1):
        step(svi, number)
        if number % EVERY == 0:
            store.commit(step=number)
    return svi


def run_killed(folder: Path, combination: str) -> None:
    run_stored(folder, combination, seed=0, end=kill_at(combination))
    os.kill(os.getpid(), signal.SIGKILL)


def run_resumed(folder: Path, combination: str) -> None:
    svi = run_stored(folder, combination, seed=1, end=STEPS)
    write(folder / f"{combination}.resumed", svi)


def write(path: Path, svi: SVI) -> None:
    params = pyro.get_param_store().named_parameters()
    state = {
        "params": {name: param.detach().clone() for name, param in sorted(params)},
        "optimiser": dict(sorted(svi.optim.get_state().items())),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
    }
    torch.save(state, path)


def in_a_process(run: Callable[[Path, str], None], folder: Path, combination: str) -> int:
    """Run in a fork of this process, which has imported everything and computed nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(folder, combination)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for combination in COMBINATIONS:
        assert in_a_process(run_whole, folder, combination) == 0, combination
        assert in_a_process(run_killed, folder, combination) == -signal.SIGKILL, combination
        assert in_a_process(run_resumed, folder, combination) == 0, combination


if __name__ == "__main__":
    main(Path(sys.argv[1]))
