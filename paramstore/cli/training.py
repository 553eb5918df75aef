"""The training run of the demonstration: how much does coaching help in eight schools?

Variational inference for Rubin's eight schools (1981) in plain torch. Kill it and start it again:
it must end with the same bits as a run that was never killed.
"""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from typing import Final

import click
import torch
from torch import Tensor
from torch.distributions import HalfCauchy, Normal, constraints

import paramstore

EFFECTS: Final = (28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0)
"""Points gained in each school."""
ERRORS: Final = (15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0)
"""Standard error of each of them."""
_LATENT: Final = {"mean": 1, "log_spread": 1, "schools": 8}


def declare(store: paramstore.ParamStoreDict) -> None:
    """Give the store a normal distribution for every unknown: ``….loc`` and ``….scale``."""
    for name, size in _LATENT.items():
        shape = (size,) if size > 1 else ()
        store.setdefault(f"{name}.loc", torch.zeros(shape))
        store.setdefault(f"{name}.scale", torch.ones(shape), constraint=constraints.positive)


def elbo(store: paramstore.ParamStoreDict) -> Tensor:
    """Draw every unknown once and return the evidence lower bound of that draw."""
    drawn: dict[str, Tensor] = {}
    parts: list[Tensor] = []
    for name in _LATENT:
        guide = Normal(store[f"{name}.loc"], store[f"{name}.scale"])
        drawn[name] = guide.rsample()
        parts.append(-guide.log_prob(drawn[name]).sum())
    mean, spread = drawn["mean"] * 10, drawn["log_spread"].exp()
    parts.append(Normal(0.0, 1.0).log_prob(drawn["mean"]))
    parts.append(HalfCauchy(5.0).log_prob(spread) + drawn["log_spread"])
    parts.append(Normal(0.0, 1.0).log_prob(drawn["schools"]).sum())
    seen = Normal(mean + spread * drawn["schools"], torch.tensor(ERRORS))
    parts.append(seen.log_prob(torch.tensor(EFFECTS)).sum())
    return torch.stack(parts).sum()


def train(store: paramstore.ParamStoreDict, *, steps: int, kill_at: int | None) -> None:
    """Train up to a step, from wherever the store has come to; commit every fifty steps."""
    declare(store)
    optim = torch.optim.Adam([leaf for _, leaf in store.named_parameters()], lr=0.02)
    store.attach(optim=optim, rng=True)  # every commit stores their state, too
    last = store.resume()  # None on a new run
    done = last.step or 0 if last else 0
    if last:
        click.echo(f"continuing after step {done} ({last.ref})")
    sums: dict[str, float] = defaultdict(float)
    for step in range(done + 1, steps + 1):
        bound = elbo(store)
        optim.zero_grad()
        (-bound).backward()
        optim.step()
        sums["elbo"] += bound.item() / 50
        if step % 50 == 0:
            store.commit(step=step, metrics=sums, tags=["half"] if step * 2 == steps else [])
            click.echo(f"step {step:5d}  elbo {sums['elbo']:8.2f}")
            sums.clear()
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleanup: as a power cut would


@click.command()
@click.option("--db", required=True, help="The store.")
@click.option("--steps", default=1000, show_default=True, help="Steps in all.")
@click.option("--kill-at", type=int, metavar="STEP", help="SIGKILL itself after STEP.")
def main(db: str, steps: int, kill_at: int | None) -> None:
    """Train, or continue to train, on the eight schools."""
    torch.manual_seed(0)
    with paramstore.open(db) as store:
        train(store, steps=steps, kill_at=kill_at)


if __name__ == "__main__":
    main()
