"""Bayesian logistic regression in Pyro that continues by itself after any kind of end.

    python examples/breast_cancer.py --db cancer.db               # train; stop it whenever you like
    python examples/breast_cancer.py --db cancer.db               # again: it continues
    python examples/report.py cancer.db AutoNormal.locs.bias      # ask how a parameter moved

Which of 30 measurements of a cell nucleus tell a malignant tumour from a benign one? The data
come with scikit-learn. A run that was killed ends with the same bits as one that never was.
"""

from __future__ import annotations

import argparse
import os
import signal
from statistics import fmean

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from sklearn.datasets import load_breast_cancer

import paramstore
from paramstore.integrations.pyro import install, resume


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    bias = pyro.sample("bias", dist.Normal(0.0, 5.0))
    with pyro.plate("tumours", len(x)):
        pyro.sample("malignant", dist.Bernoulli(logits=x @ weights + bias), obs=y)


def load() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_breast_cancer()
    x = torch.tensor(data.data, dtype=torch.float32)
    malignant = torch.tensor(data.target == 0, dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), malignant


def train(store: paramstore.ParamStoreDict, *, steps: int, kill_at: int | None) -> None:
    x, y = load()
    optim = ClippedAdam({"lr": 0.02, "lrd": 0.999})
    svi = SVI(model, AutoNormal(model), optim, Trace_ELBO())

    install(store)  # from here on pyro.param reads and writes the store
    store.attach(optim=optim, rng=True)  # commit their state too
    last = resume(store, svi, x, y)  # None on a new run
    done = last.step or 0 if last else 0
    if last:
        print(f"continuing after step {done} ({last.ref})")

    elbos = []
    for step in range(done + 1, steps + 1):
        elbos.append(-svi.step(x, y))
        if step % 50 == 0 or step == steps:
            store.commit(step=step, metrics={"elbo": fmean(elbos)})
            print(f"step {step:5d}  elbo {fmean(elbos):8.2f}")
            elbos.clear()
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleanup: as a power cut would


def main() -> None:
    parser = argparse.ArgumentParser(description="Bayesian logistic regression that can be killed.")
    parser.add_argument("--db", default="cancer.db", help="the store (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="steps in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (%(default)s)")
    parser.add_argument("--kill-at", type=int, metavar="STEP", help="SIGKILL itself after STEP")
    args = parser.parse_args()

    pyro.set_rng_seed(args.seed)
    with paramstore.open(args.db) as store:
        train(store, steps=args.steps, kill_at=args.kill_at)


if __name__ == "__main__":
    main()
