"""Forks, spawned processes, threads and two stores at once, in the middle of commits and gc.

What single forks do is in tests/db/test_forks.py and tests/test_processes.py; here they come again
and again while other things happen.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import end_with, in_child, is_sound
from tally import count

import paramstore
import paramstore.writer
from paramstore import ConflictError, KeepLast, ParamStoreDict, PendingCommit
from paramstore.testing.bits import bits

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
ROOT = Path(__file__).parents[2]


def value(seed: int) -> torch.Tensor:
    return torch.randn(30_000, generator=torch.Generator().manual_seed(seed))


def assert_holds(path: Path, scope: str, steps: list[int]) -> None:
    """A scope has exactly these steps, oldest first, each with its value."""
    with paramstore.open(path, readonly=True) as store:
        log = store.log(scope=scope)
        assert [snapshot.step for snapshot in reversed(log)] == steps
        for snapshot in log:
            assert snapshot.step is not None
            assert bits(store.at(snapshot)["w"]) == bits(value(snapshot.step)), snapshot.ref


def test_forks_in_the_middle_of_background_commits_leave_them_to_the_parent(
    path: Path, full: bool
) -> None:
    """The child collects garbage, commits to a scope of its own, and exits in every way."""
    times = 100 if full else 8

    def use(store: ParamStoreDict, number: int, inherited: list[PendingCommit]) -> None:
        gc.collect()
        for handle in inherited:
            if not handle.done():
                with pytest.raises(paramstore.ParamStoreError, match="not by its fork"):
                    handle.result(1)
        if number % 3 == 0:
            return
        store.fork(f"child {number}")
        store["w"] = value(number)
        store.commit(step=number)
        if number % 3 == 1:
            store.close()
        gc.collect()

    with paramstore.open(path) as store:
        for number in range(times):
            store["w"] = value(1000 + number)
            handles = [store.commit(step=1000 + number, wait=False)]
            assert in_child(partial(use, store, number, handles)) == 0
            handles[0].result(60)
    assert_holds(path, "main", [1000 + number for number in range(times)])
    for number in range(times):
        if number % 3:
            assert_holds(path, f"child {number}", [number])
    is_sound(path)
    count("forks", times)


def test_forks_in_the_middle_of_a_transaction_that_has_spilt_leave_it_whole(
    path: Path, full: bool
) -> None:
    times = 40 if full else 4
    with paramstore.open(path) as store:
        store["w"] = value(0)
        store.commit(step=0)
        repository, steps = store._session.repository, [0]
        for step in range(1, times + 1):
            with repository.write() as transaction:
                for number in range(8):  # four times what the page cache holds
                    row = (9 << 40) + number, bytes(1 << 20)
                    transaction._connection.exec_driver_sql("INSERT INTO chunks VALUES (?, ?)", row)

                def child() -> None:
                    gc.collect()
                    store.close()  # the parent's stays open
                    gc.collect()

                assert in_child(child) == 0
                transaction._connection.exec_driver_sql("DELETE FROM chunks WHERE id >= 9 << 40")
            store["w"] = value(step)
            store.commit(step=step)
            steps.append(step)
    assert_holds(path, "main", steps)
    is_sound(path)
    count("forks", times)


def _spawned(path: Path, number: int) -> None:
    with paramstore.open(path, scope=f"spawned {number}") as store:
        for step in range(3):
            store["w"] = value(step)
            store.commit(step=step)


def test_spawned_processes_commit_beside_their_parent(path: Path, full: bool) -> None:
    times = 6 if full else 1
    context = multiprocessing.get_context("spawn")
    with paramstore.open(path) as store:
        store["w"] = value(0)
        store.commit(step=0)
        workers = [context.Process(target=_spawned, args=(path, number)) for number in range(times)]
        for worker in workers:
            worker.start()
        step = 0
        while any(worker.is_alive() for worker in workers):
            step += 1
            store["w"] = value(step)
            if step % 2:
                store.commit(step=step, wait=False)
            else:
                store.commit(step=step)
            time.sleep(0.05)
        assert [worker.exitcode for worker in workers] == [0] * times
    assert_holds(path, "main", list(range(step + 1)))
    for number in range(times):
        assert_holds(path, f"spawned {number}", [0, 1, 2])
    is_sound(path)
    count("forks", times)


def test_threads_share_a_store_whose_commits_are_pending(path: Path, full: bool) -> None:
    """One trains and commits in the background; others read, look for changes, tag and flush."""
    times = 300 if full else 25
    stop, failures = threading.Event(), list[BaseException]()
    with paramstore.open(path) as store:
        store["w"] = value(0)
        store.commit(step=0)

        def until_stopped(work: Callable[[], object]) -> None:
            try:
                while not stop.is_set():
                    work()
            except BaseException as error:  # noqa: BLE001  # the test looks at it
                failures.append(error)
                stop.set()

        def look() -> None:
            snapshot = store.log(limit=1)[0]
            assert snapshot.step is not None
            assert bits(store.at(snapshot)["w"]) == bits(value(snapshot.step))

        def tag() -> None:
            store.tag("newest", move=True)
            assert store.at("@newest").snapshot.step is not None
            store.flush()
            time.sleep(0.01)

        def another_scope() -> None:
            with paramstore.open(path, scope="other") as other:
                other["x"] = torch.rand(3)
                other.commit(on_conflict="append")

        works = [look, look, tag, another_scope]
        threads = [threading.Thread(target=until_stopped, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        handles = []
        for step in range(1, times + 1):
            store["w"] = value(step)
            handles.append(store.commit(step=step, wait=False))
        made = [handle.result(120) for handle in handles]
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert [snapshot.step for snapshot in made] == list(range(1, times + 1))
    assert_holds(path, "main", list(range(times + 1)))
    is_sound(path)
    count("forks", times)


def test_two_stores_on_one_file_in_one_process_keep_their_locks(path: Path, full: bool) -> None:
    """Closing a file drops all locks that a process has on it, unless SQLite closes it."""
    times = 100 if full else 10
    steps: list[int] = []
    with paramstore.open(path) as one, paramstore.open(path) as two:
        for step in range(times):
            writer, loser = (one, two) if step % 2 else (two, one)
            writer.resume()
            for store in (writer, loser):
                store["w"] = value(step)
            with writer._session.repository.write() as transaction:
                assert transaction is not None
                with paramstore.open(path, readonly=True) as third:  # opens and closes in between
                    third.scopes()
                assert is_locked(path)
            writer.commit(step=step)
            steps.append(step)
            with pytest.raises(ConflictError):
                loser.commit(step=-1)
    assert_holds(path, "main", steps)
    is_sound(path)
    count("forks", times)


def is_locked(path: Path) -> bool:
    """Whether another process cannot write; a thread of this one would see SQLite's own table."""
    script = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    )
    command = [sys.executable, "-S", "-c", script, str(path)]
    return b"locked" in subprocess.run(command, capture_output=True, check=False).stderr


# -- gc beside commits in several transactions -------------------------------------------


def _train(path: Path, number: int, seconds: float, ledger: Path) -> None:
    """Commit so that a snapshot's blobs lie in the file for a while before it names them."""
    paramstore.writer.TRANSACTION_BYTES = 100_000  # type: ignore[misc]  # a transaction per tensor
    with (
        paramstore.open(path, scope=f"run {number}") as store,
        ledger.open("a", buffering=1) as out,
    ):
        end, step = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            for name in range(6):
                if (step + name) % 3 == 0 or step == 0:
                    store[f"w{name}"] = value(1000 * number + 10 * step + name)
            seeds = {name: 1000 * number + 10 * last(step, name) + name for name in range(6)}
            made = store.commit(step=step)
            out.write(json.dumps([made.ref, seeds]) + "\n")
            if step % 10 == 9:
                store.expire(KeepLast(4), scope=f"run {number}")
            step += 1


def last(step: int, name: int) -> int:
    """The newest step in which a name changed."""
    return next((s for s in range(step, 0, -1) if (s + name) % 3 == 0), 0)


def _collect(path: Path, number: int, seconds: float, ledger: Path) -> None:
    with paramstore.open(path, scope=f"collector {number}") as store:
        end, freed = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            freed += store.gc().nbytes
        ledger.write_text(json.dumps(["freed", freed]) + "\n")


def _guarded(work: Callable[..., None], *args: Any) -> None:
    torch.set_num_threads(1)
    end_with(partial(work, *args))


def test_gc_in_other_processes_takes_nothing_that_a_commit_in_flight_counts_on(
    path: Path, tmp_path: Path, full: bool
) -> None:
    seconds = 60.0 if full else 3.0
    paramstore.open(path).close()
    context = multiprocessing.get_context("fork")
    works = [_train, _train, _train, _collect]
    ledgers = [tmp_path / f"ledger {number}" for number in range(len(works))]
    workers = [
        context.Process(target=_guarded, args=(work, path, number, seconds, ledger))
        for number, (work, ledger) in enumerate(zip(works, ledgers, strict=True))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(seconds + 120)
    assert [worker.exitcode for worker in workers] == [0] * len(workers)
    told = [json.loads(line) for ledger in ledgers for line in ledger.read_text().splitlines()]
    seeds = {ref: held for ref, held in told if ref != "freed"}
    assert dict(told[-1:])["freed"] > 0
    with paramstore.open(path, readonly=True) as store:
        there = [s.ref for scope in store.scopes() for s in store.log(scope=scope.name)]
        assert {f"run {number}" for number in range(3)} == {info.name for info in store.scopes()}
        for ref in there:
            view = store.at(ref)
            for name, seed in seeds[ref].items():
                assert bits(view[f"w{name}"]) == bits(value(seed)), (ref, name)
        verified = store.verify()
        assert verified.ok, verified
    count("forks", len(seeds))
