"""What disturbed runs commit: everything follows from the scope and the step, so that a test knows
what a snapshot has to hold without having seen its commit.

Makes content and compares; must never look at a file.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict
from paramstore.reader import SnapshotView
from paramstore.testing.bits import differences
from paramstore.testing.exact import exactly_equal

LARGE = 3
"""Tensors of 512 KiB in a scope whose name begins with ``large``."""


class Key(NamedTuple):
    """A snapshot, whatever version it got: no run commits the same step of a scope twice."""

    scope: str
    step: int


@lru_cache(maxsize=512)
def values(key: Key) -> dict[str, Tensor]:
    """The unconstrained values of a snapshot, those of modules apart; not to be changed."""
    scope, step = key
    found = {
        "step": torch.tensor([float(step)]),
        "still": torch.arange(50.0),
        "slow": _noise(f"{scope} {step // 3}", 2000),
        "wide": _noise(f"{scope} {step // 2} wide", 20_000),
        "fast": _noise(f"{scope} {step}", 300),
        "scale": _noise(f"scale {scope} {step}", 3),
    }
    if step % 2:
        found["at odd steps"] = torch.full((2,), float(step), dtype=torch.float64)
    if scope.startswith("large"):
        found |= {f"large {i}": _noise(f"{scope} {step} {i}", 1 << 17) for i in range(LARGE)}
    return found


def _noise(seed: str, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(seed.encode()))
    return torch.randn(size, generator=generator)


def metrics(key: Key) -> dict[str, float]:
    """The metrics of a snapshot."""
    return {"loss": 1 / (1 + key.step), "step": float(key.step)}


def extras(key: Key) -> dict[str, object]:
    """The extras of a snapshot."""
    table = _noise(f"table {key}", 40)
    return {"epoch": key.step, "rows": {key.step: [table]}, "words": ("a", 1.5, None)}


class Training:
    """A network with its optimiser, which any number of steps bring to known bits."""

    def __init__(self) -> None:
        self.net = nn.Linear(3, 2)
        self.optim = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        with torch.no_grad():
            for parameter in self.net.parameters():
                parameter.fill_(0.5)
        self.step = 0

    def train(self, step: int) -> None:
        """Go on until ``step`` steps have been made in all."""
        for k in range(self.step, step):
            for parameter in self.net.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * (k + 1))
            self.optim.step()
        self.step = step


def is_trained(scope: str) -> bool:
    """Whether the scope has a network and an optimiser."""
    return scope.startswith("trained")


def next_key(store: ParamStoreDict) -> Key:
    """The snapshot that the current scope has to commit next."""
    return Key(store._session.scope_name(), int(store["step"].item()) + 1 if "step" in store else 1)


def put(store: ParamStoreDict, key: Key) -> None:
    """Give the working set the values of a snapshot to come."""
    wanted = values(key)
    for name in [*store]:
        if name not in wanted and "$$$" not in name:
            del store[name]
    for name, value in wanted.items():
        if name == "scale":
            start = torch.ones_like(value)
            held: Any = store.setdefault(name, start, constraint=constraints.positive)
            with torch.no_grad():
                held.unconstrained().copy_(value)
        elif name not in store:
            store[name] = value.clone()
        else:
            with torch.no_grad():
                store[name].copy_(value)


def about(key: Key) -> dict[str, Any]:
    """The arguments of the commit."""
    tagged = key.step % (4 if key.step < 100 else 1000) == 0
    return {
        "step": key.step,
        "message": f"step {key.step}",
        "metrics": metrics(key),
        "tags": [f"tag-{key.step}"] if tagged else [],
        "extras": extras(key),
    }


def key_of(view: SnapshotView) -> Key:
    """Which snapshot it is; leaving a scope commits without a step, so a value says it."""
    return Key(view.snapshot.scope, int(view["step"].item()))


def check(view: SnapshotView) -> Key:
    """Compare everything that a snapshot promises with what it has to be, and return its key."""
    snapshot = view.snapshot
    key = key_of(view)
    wanted = dict(values(key))
    found = {name: view.unconstrained(name).detach() for name in view}
    if is_trained(key.scope):
        trained = Training()
        trained.train(key.step)
        wanted |= {f"net$$${n}": p.detach() for n, p in trained.net.named_parameters()}
        assert exactly_equal(view.state("optim"), trained.optim.state_dict()), snapshot
    assert differences(found, wanted) == [], snapshot
    assert view.constraint("scale") is constraints.positive, snapshot
    if snapshot.message is not None:  # what leaving a scope has committed says nothing
        assert (snapshot.step, snapshot.message) == (key.step, f"step {key.step}"), snapshot
        assert dict(snapshot.metrics) == metrics(key), snapshot
        assert exactly_equal(dict(view.extras), extras(key)), snapshot
        assert snapshot.tags == tuple(about(key)["tags"]), snapshot
    return key


@contextmanager
def opened(path: Path, scope: str, **options: Any) -> Iterator[tuple[ParamStoreDict, Training]]:
    """Open a store to continue a scope, with what is attached in it."""
    training = Training()
    with paramstore.open(path, scope=scope, **options) as store:
        if is_trained(scope):
            store.module("net", training.net)
            store.attach(optim=training.optim)
        store.resume()
        training.step = next_key(store).step - 1
        yield store, training
