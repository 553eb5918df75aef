"""Two instances of one PyroModule, each with parameters of its own, in one store.

    python examples/local_parameters.py --db clinics.db           # train; stop it whenever you like
    python examples/local_parameters.py --db clinics.db           # again: it continues
    python examples/report.py clinics.db 'north$$$model.noise' --metric loss --mode min

Pyro names the parameters of a PyroModule after its attributes, for the whole process: two instances
of one class would share them. With ``module_local_params`` each instance keeps its own instead, as
any nn.Module does. Pyro then enters an empty parameter store for every forward call, and what is
trained never reaches any other. ``store.module`` brings it there: under the names that Pyro would
give, with constraints, so that histories show the noise and not its logarithm.

A Bayesian linear regression of how diabetes progresses, for two clinics; data from scikit-learn.
"""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from sklearn.datasets import load_diabetes
from torch import Tensor

import paramstore
from paramstore.integrations.pyro import install


class Regression(PyroModule):
    """Weights with a prior, a bias and the noise without: the latter are trained directly."""

    weights: Any  # these are declared by what they are set to, and read as tensors
    bias: Any
    noise: Any

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weights = PyroSample(dist.Normal(torch.zeros(features), 1.0).to_event(1))
        self.bias = PyroParam(torch.tensor(0.0))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean, noise = x @ self.weights + self.bias, self.noise
        with pyro.plate("patients", len(x)):
            pyro.sample("progress", dist.Normal(mean, noise), obs=y)


def load() -> dict[str, tuple[Tensor, Tensor]]:
    data = load_diabetes()
    x, y = (torch.tensor(part, dtype=torch.float32) for part in (data.data, data.target))
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    return {"north": (x[:221], y[:221]), "south": (x[221:], y[221:])}


def build(x: Tensor, y: Tensor) -> torch.nn.Module:
    """The loss as a module: it contains model and guide, and so all that is trained."""
    model = Regression(x.shape[1])
    loss: torch.nn.Module = Trace_ELBO()(model, AutoNormal(model))
    loss(x, y)  # an autoguide makes its parameters when it is first called
    return loss


def train(store: paramstore.ParamStoreDict, *, steps: int, every: int, kill_at: int | None) -> None:
    install(store)
    data = load()
    losses = {clinic: store.module(clinic, build(*xy)) for clinic, xy in data.items()}
    optim = torch.optim.Adam([p for loss in losses.values() for p in loss.parameters()], lr=0.02)
    store.attach(optim=optim, rng=True)  # commit their state too
    last = store.resume()  # None on a new run
    done = last.step or 0 if last else 0
    if last:
        print(f"continuing after step {done} ({last.ref})")

    for step in range(done + 1, steps + 1):
        optim.zero_grad()
        found = {clinic: loss(*data[clinic]) for clinic, loss in losses.items()}
        sum(found.values(), torch.zeros(())).backward()
        optim.step()
        if step % every == 0 or step == steps:
            metrics = {clinic: value.item() for clinic, value in found.items()}
            store.commit(step=step, metrics={**metrics, "loss": sum(metrics.values())})
            noises = (store[f"{clinic}$$$model.noise"].item() for clinic in losses)
            shown = "  ".join(f"{noise:.3f}" for noise in noises)
            print(f"step {step:5d}  loss {sum(metrics.values()):8.2f}  noise {shown}")
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleanup: as a power cut would


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--db", default="clinics.db", help="the store (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps in all (%(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps per commit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (%(default)s)")
    parser.add_argument("--kill-at", type=int, metavar="STEP", help="SIGKILL itself after STEP")
    args = parser.parse_args()

    pyro.set_rng_seed(args.seed)
    with paramstore.open(args.db) as store, pyro.settings.context(module_local_params=True):
        train(store, steps=args.steps, every=args.every, kill_at=args.kill_at)


if __name__ == "__main__":
    main()
