"""Makes the museum's piece of the present schema: a small store of everything, and its record.

``scripts/museum`` runs it once per revision, before the next one is written. A piece is never made
again: it is what stores of that revision looked like, byte for byte.
"""

from __future__ import annotations

import lzma
import random
import sys
import tempfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from record import record, text
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import KeepLast, ParamStoreDict
from paramstore.db.schema import REVISION

FOLDER = Path(__file__).parent

TENSORS = {
    "float16": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float16),
    "bfloat16": torch.tensor([3.140625, float("nan")], dtype=torch.bfloat16),
    "double": torch.tensor(1 / 3, dtype=torch.float64),
    "complex": torch.tensor([1 + 2j, -0.0j]),
    "complex double": torch.tensor([[0.1 - 1e-300j]], dtype=torch.complex128),
    "empty": torch.empty(0, 3),
    "strided": torch.arange(12.0).reshape(3, 4).t(),
    "not finite": torch.tensor([float("nan"), float("-inf"), 5e-324, 2.0]).float(),
    "large": torch.arange(20_000.0),
    "$$$ ü 🧪 'quoted\" % -- name": torch.tensor(7.0),
}
CONSTRAINED: dict[str, tuple[torch.Tensor, Any]] = {
    "scale": (torch.tensor(0.5), constraints.positive),
    "rate": (torch.tensor([0.25, 0.75]), constraints.unit_interval),
    "weights": (torch.tensor([0.2, 0.3, 0.5]), constraints.simplex),
    "cholesky": (torch.tensor([[1.0, 0.0], [0.5, 2.0]]), constraints.lower_cholesky),
    "between": (torch.tensor([0.0, 5.0]), constraints.interval(-1.0, 9.0)),
    "vector": (torch.ones(3), constraints.independent(constraints.positive, 1)),
    "above a tensor": (torch.tensor([2.0, 3.0]), constraints.greater_than(torch.tensor([1.0, 2]))),
    "above a large tensor": (torch.ones(1500), constraints.greater_than(torch.zeros(1500))),
}
EXTRAS: dict[str, Any] = {
    "epoch": 3,
    "numbers": [1, 1.0, True, None, -0.0, float("nan"), float("-inf"), 2**80, 1j],
    "keys": {1: "int", "1": "text", (2, None): "tuple", 0.5: "float", "$dict": "dollar"},
    "containers": (OrderedDict(b=1, a=2), Counter("abba"), [], (), {}),
    "bytes": b"\x00\xff",
    "tensor": torch.tensor([1, 2], dtype=torch.int64),
    "large tensor": torch.arange(1200, dtype=torch.int32),
    "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "scalar": np.float32(0.1),
    "torch's": (torch.float16, torch.device("cpu"), torch.Size([2, 3])),
}


class Net(nn.Module):
    """Parameters, one of them frozen, and buffers of two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.first.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.first(x))
        return found


def main() -> None:
    piece = FOLDER / f"{REVISION}.db.xz"
    if piece.exists():
        sys.exit(f"{piece.name} exists: a piece of the museum is never made again")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.db"
        with patch("paramstore.db.catalogue.origin", return_value="node17:4242"):
            fill(path)
        found = record(path)
        piece.write_bytes(lzma.compress(path.read_bytes(), preset=9))
    piece.with_name(f"{REVISION}.json").write_text(text(found) + "\n")


def fill(path: Path) -> None:
    torch.manual_seed(0)
    random.seed(0)
    with paramstore.open(path) as store:
        dictionary(store)
    with paramstore.open(path, scope="trained") as store:
        training(store)
    with paramstore.open(path, scope="without statistics", statistics=False) as store:
        store["x"] = torch.tensor(2.0)
        store.commit()
    with paramstore.open(path, scope="thinned") as store:
        thinned(store)


def dictionary(store: ParamStoreDict) -> None:
    """Values of every kind; some change, go, come back, and are renamed; two forks."""
    for name, tensor in TENSORS.items():
        store[name] = tensor
    for name, (value, constraint) in CONSTRAINED.items():
        store.setdefault(name, value, constraint=constraint)
    store.commit(step=0, metrics={"elbo": -12.25, "nan": float("nan"), "inf": float("inf")})
    store["scale"] = torch.tensor(0.75)
    store.commit(step=100, extras=EXTRAS, message='it\'s "odd"\n| ü', tags=["warm", "b, c"])
    kept = store["strided"].detach().clone()
    del store["strided"], store["double"]
    dict(store.named_parameters())["scale"].data.fill_(float("nan"))
    store.commit(step=200, metrics={"elbo": -11.5})
    store["strided"] = kept
    store.rename("rate", "rates")
    store.commit()
    store.fork("fork of main")
    store["scale"] = torch.tensor(1.5)
    store.commit(step=300, tags=["warm"])
    store.restore("main@warm")
    store.fork("fork of the past")
    store["large"] = torch.arange(20_000.0).flip(0)
    store.commit(step=101)


def training(store: ParamStoreDict) -> None:
    """A module with buffers, its optimiser and the generators; ended by an exception."""
    net = store.module("net", Net())
    optim = torch.optim.AdamW(net.parameters(), lr=0.1)
    store.attach(optim=optim, rng=True)
    try:
        with store.autosave(every=2) as auto:
            for step in range(1, 4):
                loss = net(torch.randn(4, 3)).square().sum()
                optim.zero_grad()
                loss.backward()
                optim.step()
                auto.step(step, loss=loss.item())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


def thinned(store: ParamStoreDict) -> None:
    """Snapshots whose parents are gone, with values that were first stored by those."""
    store["still"] = torch.arange(3.0)
    for step in range(4):
        store["moving"] = torch.tensor(float(step))
        store.commit(step=step)
    store.expire(KeepLast(2), scope="thinned")
    store.gc()


if __name__ == "__main__":
    main()
