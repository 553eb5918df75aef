"""A small network in plain PyTorch that continues by itself after any kind of end.

    python examples/digits.py --db digits.db                      # train; stop it whenever you like
    python examples/digits.py --db digits.db                      # again: it continues
    python examples/report.py digits.db 'net$$$0.weight' --metric accuracy

Handwritten digits, 8 × 8 pixels, from scikit-learn. The network has what makes continuing hard:
running statistics in BatchNorm, dropout, a shuffled order, AdamW's moments, a learning rate that
changes. A run that was killed ends with the same bits as one that never was.
"""

from __future__ import annotations

import argparse
import os
import signal

import torch
from sklearn.datasets import load_digits
from torch import nn

import paramstore


def load() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def build() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 128),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(128, 10),
    )


def train_epoch(
    net: nn.Module, optim: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> float:
    net.train()
    losses = []
    for batch in torch.randperm(len(x)).split(64):
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        optim.zero_grad()
        loss.backward()
        optim.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    net.eval()
    predicted: torch.Tensor = net(x).argmax(1)
    return (predicted == y).float().mean().item()


def train(store: paramstore.ParamStoreDict, *, epochs: int, kill_at: int | None) -> None:
    x, y = load()
    net = store.module("net", build())  # parameters and buffers, stored values first
    optim = torch.optim.AdamW(net.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, T_max=50)

    store.attach(optim=optim, scheduler=scheduler, rng=True)  # commit their state too
    last = store.resume()  # None on a new run
    done = last.step or 0 if last else 0
    if last:
        print(f"continuing after epoch {done} ({last.ref})")

    for epoch in range(done + 1, epochs + 1):
        loss = train_epoch(net, optim, x[:1500], y[:1500])
        scheduler.step()
        if epoch == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # a whole epoch is lost, and done again
        right = accuracy(net, x[1500:], y[1500:])
        store.commit(step=epoch, metrics={"loss": loss, "accuracy": right})
        print(f"epoch {epoch:3d}  loss {loss:.4f}  accuracy {right:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="A digit classifier that can be killed.")
    parser.add_argument("--db", default="digits.db", help="the store (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of a new run (%(default)s)")
    parser.add_argument("--kill-at", type=int, metavar="EPOCH", help="SIGKILL itself in EPOCH")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    with paramstore.open(args.db) as store:
        train(store, epochs=args.epochs, kill_at=args.kill_at)


if __name__ == "__main__":
    main()
