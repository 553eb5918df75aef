"""Bad input of the operating system's kind: forks in the middle of things, processes at once."""

from __future__ import annotations

import gc
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import at_once, in_child, is_sound

import paramstore
from paramstore.db.engine import Database

# Forking with torch's threads about is what users do (data loaders), and Python 3.12 warns.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def test_a_fork_in_the_middle_of_a_transaction_leaves_it_to_the_parent(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(1)
        store.commit()
    database = Database.open(path)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE snapshots SET message = message")

        def child() -> None:
            gc.collect()  # whatever was inherited must not be finalised
            database.close()
            gc.collect()

        assert in_child(child) == 0
        connection.exec_driver_sql("UPDATE scopes SET created_at = created_at")
    database.close()
    is_sound(path)
    with paramstore.open(path) as store:
        assert store.commit().version == 2


def test_children_forked_while_a_thread_commits_can_use_the_store_themselves(path: Path) -> None:
    store = paramstore.open(path)
    store["x"] = torch.zeros(20_000)
    store.commit(step=0)
    stop, failures = threading.Event(), []

    def train() -> None:
        step = 0
        try:
            while not stop.is_set():
                step += 1
                store["x"].data.fill_(step)
                store.commit(step=step)
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            failures.append(error)

    def child(number: int) -> None:
        gc.collect()
        assert len(store.log()) >= 1
        store.fork(f"child {number}")
        store.commit(message=f"from {number}")
        store.close()

    thread = threading.Thread(target=train)
    thread.start()
    try:
        statuses = [in_child(partial(child, number)) for number in range(6)]
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert statuses == [0] * 6
    scopes = {info.name: info.head_version for info in store.scopes()}
    assert scopes.pop("main") == len(store.log())
    assert scopes == {f"child {number}": 1 for number in range(6)}
    newest = store.log()[0]
    assert store.at(newest)["x"].unique().tolist() == [newest.step]
    store.close()
    is_sound(path)


def test_an_exiting_child_does_not_disturb_its_parent(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(3)
        store.commit()
        for step in range(3):
            assert in_child(lambda: None) == 0
            store["x"].data.fill_(step)
            store.commit(step=step)
        assert [row.step for row in store.history("x")] == [None, 1, 2]
    is_sound(path)


def _create(path: Path, barrier: Any, number: int) -> None:
    torch.set_num_threads(1)
    barrier.wait()
    with paramstore.open(path, scope=f"worker {number}") as store:
        store["x"] = torch.tensor(float(number))
        store.commit(step=number)


def test_eight_processes_can_create_one_store_at_once(path: Path) -> None:
    at_once(8, _create, path)
    with paramstore.open(path, readonly=True) as store:
        assert sorted(info.name for info in store.scopes()) == [f"worker {n}" for n in range(8)]
        for number in range(8):
            assert store.at(f"worker {number}")["x"].item() == number
    is_sound(path)


def _contend(path: Path, barrier: Any, number: int) -> None:
    torch.set_num_threads(1)
    with paramstore.open(path) as store:
        barrier.wait()
        for step in range(5):
            store[f"x{number}"] = torch.full((100,), float(step))
            store.commit(step=step, on_conflict="append")


def test_processes_that_append_to_one_scope_lose_nothing(path: Path) -> None:
    paramstore.open(path).close()
    at_once(4, _contend, path)
    with paramstore.open(path, readonly=True) as store:
        assert [s.version for s in store.log()] == list(range(20, 0, -1))
        for number in range(4):
            held = [s for s in reversed(store.log()) if f"x{number}" in store.at(s)]
            last = store.at(held[-1])[f"x{number}"]
            assert last.unique().tolist() == [4.0]
    is_sound(path)
