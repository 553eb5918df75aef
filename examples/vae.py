"""A variational auto-encoder in Pyro that continues by itself after any kind of end.

    python examples/vae.py --db vae.db                            # train; stop it whenever you like
    python examples/vae.py --db vae.db                            # again: the loss goes on
    python examples/report.py vae.db 'decoder$$$2.bias' --metric loss --mode min

Two networks on the handwritten digits of scikit-learn: the encoder guesses a code of a few numbers
for a digit, the decoder draws the digit from the code. Model and guide are those of any program
that uses ``pyro.module``. What is new stands in ``train``: the store is Pyro's, every commit
takes optimiser and generators with it, and which digits a step sees follows from its number alone.
So a run that was killed ends with the same bits as one that never was.
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
from pyro.optim import ClippedAdam
from sklearn.datasets import load_digits
from torch import Tensor, nn

import paramstore
from paramstore.integrations.pyro import install, resume

PIXELS, HIDDEN, CODE, BATCH = 64, 128, 8, 128


class Vae:
    """The encoder gives a mean and a scale for the code of each digit; the decoder its pixels."""

    def __init__(self) -> None:
        self.encoder = nn.Sequential(
            nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * CODE)
        )
        self.decoder = nn.Sequential(
            nn.Linear(CODE, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS)
        )

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("digits", len(x)):
            code = pyro.sample("code", dist.Normal(torch.zeros(len(x), CODE), 1.0).to_event(1))
            pixels = dist.ContinuousBernoulli(logits=self.decoder(code))
            pyro.sample("x", pixels.to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("digits", len(x)):
            mean, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("code", dist.Normal(mean, log_scale.exp()).to_event(1))


def batch(x: Tensor, step: int) -> Tensor:
    """The digits of a step: every epoch goes through all of them, in an order of its own."""
    epoch, place = divmod(step - 1, len(x) // BATCH)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
    return x[order[place * BATCH : (place + 1) * BATCH]]


def train(store: paramstore.ParamStoreDict, *, steps: int, every: int, kill_at: int | None) -> None:
    x = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    vae = Vae()
    svi = SVI(vae.model, vae.guide, ClippedAdam({"lr": 2e-3}), Trace_ELBO())

    install(store)  # from here on pyro.module reads and writes the store
    store.attach(optim=svi.optim, rng=True)  # commit their state too
    last = resume(store, svi, batch(x, 1))  # None on a new run
    done = last.step or 0 if last else 0
    if last:
        print(f"continuing after step {done} ({last.ref}, loss {last.metrics['loss']:.4f})")

    losses = []
    for step in range(done + 1, steps + 1):
        losses.append(svi.step(batch(x, step)) / BATCH)
        if step % every == 0 or step == steps:
            store.commit(step=step, metrics={"loss": fmean(losses)})
            print(f"step {step:5d}  loss {fmean(losses):9.4f}")
            losses.clear()
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # no handler, no cleanup: as a power cut would


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--db", default="vae.db", help="the store (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=2000, help="steps in all (%(default)s)")
    parser.add_argument("--every", type=int, default=100, help="steps per commit (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (%(default)s)")
    parser.add_argument("--kill-at", type=int, metavar="STEP", help="SIGKILL itself after STEP")
    args = parser.parse_args()

    pyro.set_rng_seed(args.seed)
    with paramstore.open(args.db) as store:
        train(store, steps=args.steps, every=args.every, kill_at=args.kill_at)


if __name__ == "__main__":
    main()
