"""A real training run whose store the tests look at, and the command as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributions import constraints

import paramstore

COMMAND = Path(sys.executable).with_name("paramstore")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        """What ``--jsonl`` printed."""
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Ran]


def train(path: Path) -> None:
    """Train a network and two parameters of our own; fork, and let a weight become NaN there."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))
    with paramstore.open(path) as store:
        store.module("net", net)
        store.setdefault("scale", torch.tensor(0.5), constraint=constraints.positive)
        store.setdefault("mix", torch.tensor([0.25, 0.25, 0.5]), constraint=constraints.simplex)
        optim = torch.optim.AdamW([leaf for _, leaf in store.named_parameters()])
        store.attach(optim=optim, rng=True)
        for step in range(1, 41):
            inputs = torch.randn(8, 2)
            error = net(inputs).squeeze(1) * store["scale"] - inputs.sum(1)
            optim.zero_grad()
            error.square().mean().backward()
            optim.step()
            if step % 10 == 0:
                store.commit(
                    step=step,
                    message="first" if step == 10 else None,
                    metrics={"loss": error.square().mean().item(), "late": float("nan")},
                    tags=["warm"] if step == 20 else [],
                    extras={"epoch": step // 10, "pair": (1, torch.ones(2))},
                )
        store.fork("colder")
        with torch.no_grad():
            dict(net.named_parameters())["0.weight"][0, 0] = float("nan")
        store.commit(step=50)


def process(*arguments: object, db: Path | None = None, code: int = 0, **options: Any) -> Ran:
    """Run the command as a user's shell does."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PARAMSTORE")}
    if db is not None:
        environment["PARAMSTORE_URL"] = str(db)
    environment |= options.pop("env", {})
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        **options,
    )
    assert done.returncode == code, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)
