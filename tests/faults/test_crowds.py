"""Eight processes commit to one file at once, each to its own scope or all to one; others read.

Every commit that was confirmed is there bit for bit, the losers of a scope get ConflictError, and
nobody is told that a database is locked.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tally import count

import paramstore
from paramstore import ConflictError, ParamStoreDict
from paramstore.testing import invariants
from paramstore.testing.bits import bits

# Forking with torch's threads about is what users do (data loaders), and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
WRITERS = 8
READERS = 2
_context = multiprocessing.get_context("fork")


def value(seed: int) -> dict[str, torch.Tensor]:
    """What the commit with that number holds: nobody has to remember it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "small": torch.randn(7, generator=generator),
        "large": torch.randn(20_000, generator=generator),  # is stored once in the whole file
        "seldom": torch.full((20_000,), float(seed // 10)),
    }


def assert_holds(store: ParamStoreDict, ref: str, seed: int) -> None:
    view = store.at(ref)
    for name, wanted in value(seed).items():
        assert bits(view[name]) == bits(wanted), (ref, seed, name)


def change(store: ParamStoreDict, seed: int) -> None:
    for name, tensor in value(seed).items():
        store[name] = tensor


def write_alone(path: Path, number: int, seconds: float, tell: Callable[..., None]) -> None:
    """Commit to a scope of one's own, as a run does; now and then in the background."""
    with paramstore.open(path, scope=f"run {number}") as store:
        end, step = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seed = number * 1_000_000 + step
            change(store, seed)
            wait = step % 3 != 2
            made = store.commit(step=seed) if wait else store.commit(step=seed, wait=False).result()
            tell("committed", made.ref, seed)
            step += 1


def write_together(path: Path, number: int, seconds: float, tell: Callable[..., None]) -> None:
    """Commit to the scope of all: the loser takes the winner's state, and tries again."""
    with paramstore.open(path, scope="all") as store:
        end, step = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            seed = number * 1_000_000 + step
            change(store, seed)
            try:
                made = store.commit(step=seed, on_conflict="append" if step % 5 == 4 else "raise")
                tell("committed", made.ref, seed)
            except ConflictError:
                tell("lost", "", seed)
                newest = store.resume()
                assert newest is not None
                assert bits(store["large"]) == bits(value(newest.step or 0)["large"])
            step += 1


def read(path: Path, number: int, seconds: float, tell: Callable[..., None]) -> None:
    """Look at the newest of every scope, again and again; half of them while it is opened anew."""
    end = time.monotonic() + seconds
    store = paramstore.open(path, readonly=True)
    while time.monotonic() < end:
        if number % 2:
            store.close()
            store = paramstore.open(path, readonly=True)
        for scope in store.scopes():
            newest = store.log(scope=scope.name, limit=1)[0]
            assert newest.step is not None
            assert_holds(store, newest.ref, newest.step)
            tell("read", newest.ref, newest.step)
    store.close()


def _work(
    work: Callable[..., None], path: Path, ledger: Path, barrier: Any, number: int, seconds: float
) -> None:
    torch.set_num_threads(1)
    with ledger.open("a", buffering=1) as file:

        def tell(*what: object) -> None:
            file.write(json.dumps(what) + "\n")

        try:
            barrier.wait(60)
            work(path, number, seconds, tell)
        except BaseException:  # noqa: BLE001  # the parent says what it was
            tell("failed", traceback.format_exc(), number)
            os._exit(1)
    os._exit(0)


def crowd(path: Path, folder: Path, writer: Callable[..., None], seconds: float) -> list[Any]:
    """Let writers and readers loose on a file; return all that they told."""
    barrier = _context.Barrier(WRITERS + READERS)
    works = [writer] * WRITERS + [read] * READERS
    ledgers = [folder / f"ledger {number}" for number in range(len(works))]
    workers = [
        _context.Process(target=_work, args=(work, path, ledger, barrier, number, seconds))
        for number, (work, ledger) in enumerate(zip(works, ledgers, strict=True))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds + 120)
    told = [json.loads(line) for ledger in ledgers for line in ledger.read_text().splitlines()]
    failures = [text for word, text, _ in told if word == "failed"]
    assert not failures, failures[0]
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    return told


@pytest.fixture
def seconds(full: bool) -> float:
    return 60.0 if full else 2.5


@pytest.mark.parametrize("journal", ["truncate", "wal"])
def test_eight_processes_commit_to_eight_scopes_and_lose_nothing(
    path: Path, tmp_path: Path, seconds: float, journal: Literal["truncate", "wal"]
) -> None:
    paramstore.open(path, journal=journal).close()
    told = crowd(path, tmp_path, write_alone, seconds)
    committed = {ref: seed for word, ref, seed in told if word == "committed"}
    assert Counter(word for word, _, _ in told)["read"] > 0
    with paramstore.open(path, readonly=True) as store:
        found = {s.ref: s.step for scope in store.scopes() for s in store.log(scope=scope.name)}
        assert found == committed
        assert len({ref.partition("@")[0] for ref in committed}) == WRITERS
        for ref, seed in committed.items():
            assert_holds(store, ref, seed)
    invariants.check(path)
    count("crowds", len(committed))


def test_eight_processes_commit_to_one_scope_and_the_losers_are_told(
    path: Path, tmp_path: Path, seconds: float
) -> None:
    paramstore.open(path).close()
    told = crowd(path, tmp_path, write_together, seconds)
    committed = [(ref, seed) for word, ref, seed in told if word == "committed"]
    assert len(dict(committed)) == len(committed)  # no version was confirmed twice
    assert Counter(word for word, _, _ in told)["lost"] > 0
    with paramstore.open(path, readonly=True) as store:
        assert {s.ref: s.step for s in store.log(scope="all")} == dict(committed)
        for ref, seed in committed:
            assert_holds(store, ref, seed)
    invariants.check(path)
    count("crowds", len(committed))
