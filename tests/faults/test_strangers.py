"""Another program has the file open, and holds a lock while the store commits.

It is a process of its own that uses SQLite alone, as ``sqlite3 run.db "SELECT …" | less`` does. A
commit ends in time or raises StoreBusyError, and the next one is complete.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tally import count

import paramstore
from paramstore import ParamStoreDict, StoreBusyError
from paramstore.testing import invariants

SCRIPT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
held = [connection.execute(statement) for statement in sys.argv[2:]]
held[-1].fetchone()
print("holding", flush=True)
sys.stdin.readline()
held[-1].fetchall()
"""
# The rows of a page or two in many combinations: the first is there at once, the last never.
HALF_READ = ["SELECT a.name FROM sqlite_master a, sqlite_master b, sqlite_master c"]
WRITING = [
    "BEGIN IMMEDIATE",
    "CREATE TABLE theirs (x)",
    # More than their cache holds, so that the file has it by halves, and a journal.
    "WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100) "
    "INSERT INTO theirs SELECT zeroblob(65536) FROM n",
]
EXCLUSIVE = ["BEGIN EXCLUSIVE"]
DEFERRED = ["BEGIN", *HALF_READ]
TENSORS = 3  # of 1 MB: more than SQLite's cache holds
WAYS = {
    "a half-read query": HALF_READ,
    "a half-read query in a transaction": DEFERRED,
    "a transaction that has written": WRITING,
    "an exclusive lock": EXCLUSIVE,
}


class Stranger:
    """A process that holds what it has until it is told to let go."""

    def __init__(self, path: Path, statements: list[str]) -> None:
        command = [sys.executable, "-S", "-c", SCRIPT, str(path), *statements]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "holding\n"

    def let_go(self) -> None:
        """Read to the end, and leave."""
        self._process.communicate("\n", timeout=60)

    def kill(self) -> None:
        """End it where it stands."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def holding(path: Path, statements: list[str]) -> Iterator[Stranger]:
    stranger = Stranger(path, statements)
    try:
        yield stranger
    finally:
        stranger.kill()


def filled(store: ParamStoreDict, value: float) -> None:
    """Change all, so that a commit has to write before its end."""
    for number in range(TENSORS):
        store[f"w{number}"] = torch.full((250_000,), float(value + number))


def assert_complete(path: Path, steps: list[int]) -> None:
    """Exactly these snapshots are there, oldest first, each with what `filled` gave it."""
    with paramstore.open(path, readonly=True) as store:
        assert [snapshot.step for snapshot in reversed(store.log())] == steps
        for version, step in enumerate(steps, 1):
            view = store.at(version)
            for number in range(TENSORS):
                assert view[f"w{number}"].unique().tolist() == [step + number]
    invariants.check(path)


@pytest.fixture(params=["truncate", "wal"])
def journal(request: pytest.FixtureRequest) -> Literal["truncate", "wal"]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def store(path: Path, journal: Literal["truncate", "wal"]) -> Iterator[ParamStoreDict]:
    with paramstore.open(path, timeout=0.15, journal=journal) as opened:
        filled(opened, 0.0)
        opened.commit(step=0)
        yield opened


@pytest.mark.parametrize("way", WAYS)
def test_a_commit_ends_or_says_that_the_store_is_busy_and_the_next_is_complete(
    store: ParamStoreDict, path: Path, journal: str, way: str
) -> None:
    readers_only = journal == "wal" and "half-read" in way
    steps = [0]
    with holding(path, WAYS[way]) as stranger:
        for step, wait in ((1, True), (2, False)):
            filled(store, step)
            with nullcontext() if readers_only else pytest.raises(StoreBusyError, match="longer"):
                if wait:
                    store.commit(step=step)
                else:
                    store.commit(step=step, wait=False).result(60)
                steps.append(step)
        stranger.let_go()
    filled(store, 3.0)
    store.commit(step=3)
    assert_complete(path, [*steps, 3])
    count("strangers")


@pytest.mark.parametrize("way", WAYS)
def test_a_commit_goes_on_as_soon_as_the_stranger_lets_go(path: Path, way: str) -> None:
    with paramstore.open(path, timeout=60) as store:
        filled(store, 0.0)
        store.commit(step=0)
        filled(store, 1.0)
        with holding(path, WAYS[way]) as stranger:
            handle = store.commit(step=1, wait=False)
            with pytest.raises(TimeoutError):
                handle.result(0.3)
            stranger.let_go()
            assert handle.result(60).version == 2
    assert_complete(path, [0, 1])
    count("strangers")


@pytest.mark.parametrize("way", WAYS)
def test_a_stranger_that_is_killed_leaves_nothing_in_the_way(
    store: ParamStoreDict, path: Path, way: str
) -> None:
    with holding(path, WAYS[way]) as stranger:
        stranger.kill()
        filled(store, 1.0)
        store.commit(step=1)
    assert_complete(path, [0, 1])
    with paramstore.open(path) as again:
        assert again["w1"].unique().tolist() == [2.0]
    count("strangers")


def test_reads_and_opening_beside_a_stranger_work_or_say_that_the_store_is_busy(
    store: ParamStoreDict, path: Path, journal: str
) -> None:
    reads: list[Callable[[], Any]] = [
        store.log,
        lambda: store.at(1)["w1"],
        lambda: paramstore.open(path, readonly=True, timeout=0.1).close(),
        lambda: paramstore.open(path, timeout=0.1).close(),
    ]
    with holding(path, HALF_READ):
        for read in reads:
            read()
    for way in (EXCLUSIVE, WRITING):
        with holding(path, way) as stranger:
            for read in reads:
                if journal == "wal":
                    read()
                else:
                    with pytest.raises(StoreBusyError):
                        read()
            stranger.let_go()
    for read in reads:
        read()
    count("strangers", 3)


def test_half_read_queries_that_never_end_at_once_let_commits_through_in_between(
    path: Path, full: bool
) -> None:
    times = 30 if full else 5
    with paramstore.open(path, timeout=60) as store:
        stop = threading.Event()

        def annoy() -> None:
            while not stop.is_set():
                with holding(path, HALF_READ):
                    stop.wait(0.05)

        filled(store, 0.0)
        store.commit(step=0)
        others = [threading.Thread(target=annoy) for _ in range(2)]
        for other in others:
            other.start()
        try:
            for step in range(1, times + 1):
                filled(store, step)
                store.commit(step=step)
        finally:
            stop.set()
            for other in others:
                other.join()
    assert_complete(path, list(range(times + 1)))
    count("strangers", times)
