"""Three guides for one hierarchical model, each in a named scope of one store.

    python examples/eight_schools.py --db schools.db              # train; stop it whenever you like
    python examples/eight_schools.py --db schools.db              # again: it continues

Eight schools coached their pupils for a test; each measured an effect and its error (Rubin, 1981).
How much of the differences is chance? How well an approximate posterior answers depends on which
correlations it can express: none (diagonal), all (full), or a few directions (low-rank).

A scope is a line of snapshots with a working set of its own, so the guides may use the same
parameter names without knowing of each other; and because they do, a diff between two scopes
compares like with like.
"""

from __future__ import annotations

import argparse
from statistics import fmean
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuide,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from pyro.optim import ClippedAdam
from torch import Tensor

import paramstore
from paramstore import ParamStoreDict
from paramstore.integrations.pyro import install, resume

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
GUIDES: dict[str, type[AutoGuide]] = {
    "diagonal": AutoDiagonalNormal,
    "full": AutoMultivariateNormal,
    "low-rank": AutoLowRankMultivariateNormal,
}


def model(effects: Tensor | None = EFFECTS) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))  # in units of tau, which is easier to fit
        pyro.sample("effects", dist.Normal(mu + tau * eta, ERRORS), obs=effects)


def make_guide(scope: str) -> AutoGuide:
    """The guide of a scope; Pyro names parameters after the class, here Guide.loc and so on."""
    guide: AutoGuide = type("Guide", (GUIDES[scope],), {})(model)
    return guide


def train(store: ParamStoreDict, scope: str, *, steps: int, every: int, seed: int) -> str:
    """Train one guide to the end and return its line of the comparison."""
    pyro.set_rng_seed(seed)  # of a new run; a resumed one gets the generators of its snapshot
    guide = make_guide(scope)
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.02, "lrd": 0.999}), elbo)
    with store.scope(scope, commit=False):
        store.attach(optim=svi.optim, rng=True)  # to this scope
        last = resume(store, svi)  # None on a new run
        done = last.step or 0 if last else 0
        if last:
            print(f"{scope:10} continuing after step {done} ({last.ref})")
        elbos = []
        for step in range(done + 1, steps + 1):
            elbos.append(-svi.step())
            if step % every == 0 or step == steps:
                store.commit(step=step, metrics={"elbo": fmean(elbos)})
                print(f"{scope:10} step {step:5d}  elbo {fmean(elbos):8.3f}")
                elbos.clear()
        best = store.best("elbo")
        found = posterior(guide)
    return (
        f"{scope:10} {best.metrics['elbo']:9.3f} {best.step:6d} "
        f"{found['mu'].mean():8.2f} {found['tau'].mean():8.2f} {found['tau'].std():8.2f}"
    )


def posterior(guide: AutoGuide) -> Any:
    return Predictive(model, guide=guide, num_samples=4000, parallel=True)(None)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--db", default="schools.db", help="the store (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="of each guide (%(default)s)")
    parser.add_argument("--every", type=int, default=200, help="steps per commit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (%(default)s)")
    args = parser.parse_args()

    with paramstore.open(args.db) as store:
        install(store)
        options = {"steps": args.steps, "every": args.every, "seed": args.seed}
        lines = [train(store, scope, **options) for scope in GUIDES]
        print("\nguide      best ELBO  at step   mean mu  mean tau   sd tau", *lines, sep="\n")
        for scope in GUIDES:
            print(f"\nhow Guide.scale moved in {scope!r}")
            print(store.history("Guide.scale", scope=scope, limit=3))
        print("\nfrom the diagonal guide to the full one")
        print(store.diff("diagonal@latest", "full@latest"))


if __name__ == "__main__":
    main()
