"""A store that is thinned again and again stays about as large as what it holds."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import torch

import paramstore
from paramstore import KeepEvery, KeepLast
from paramstore.testing import invariants

ALLOWED = 4 << 20


def rewritten(path: Path) -> int:
    """The size of a copy that SQLite has written anew."""
    copy = path.with_suffix(".copy")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    size = copy.stat().st_size
    copy.unlink()
    return size


@pytest.mark.parametrize(
    ("count", "elements", "part", "bound"),
    [
        pytest.param(120, 16 << 10, 0.3, 1.2, id="64 KiB"),
        pytest.param(12, 100_000, 0.5, 1.2, id="400 KB"),
        pytest.param(400, 1, 1.0, 2.0, id="scalars, all changed"),
        pytest.param(1000, 1, 0.1, 2.0, id="scalars, some changed"),
    ],
)
def test_a_store_that_is_thinned_again_and_again_stays_small(
    path: Path, count: int, elements: int, part: float, bound: float
) -> None:
    dice = random.Random(7)
    state = {f"p{i}": torch.randn(elements) for i in range(count)}
    with paramstore.open(path, statistics=False) as store:
        for name, tensor in state.items():
            store[name] = tensor
        for step in range(36):
            for name in dice.sample(list(state), int(count * part)):
                state[name].data.add_(1)
            store.commit(step=step)
            if step % 6 == 5:
                store.expire(KeepLast(2) | KeepEvery(steps=5))
                store.gc()
                live = store.du().tensor_nbytes if elements > 1 else rewritten(path)
                assert path.stat().st_size <= bound * live + ALLOWED
        if elements > 1:
            assert live > 2 * ALLOWED  # so that the bound means something
        for snapshot in store.log():
            assert len(store.at(snapshot)) == count
        invariants.nothing_is_left_to_collect(store._session.repository.database)
    invariants.check(path)
