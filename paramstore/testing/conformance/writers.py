"""Several stores writing to one database: conflicts and what to do about them.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import torch

from paramstore.errors import ConflictError
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill

if TYPE_CHECKING:
    from paramstore.store import ParamStoreDict


def two_stores(make_store: MakeStore) -> tuple[ParamStoreDict, ParamStoreDict]:
    """Open two stores on a scope with one snapshot of a zero."""
    with make_store() as store:
        store["x"] = torch.zeros(())
        store.commit()
    return make_store(), make_store()


class WritersConformance:
    """Compare-and-swap of a scope's head."""

    def test_the_second_of_two_writers_gets_a_conflict_with_both_versions(
        self, make_store: MakeStore
    ) -> None:
        first, second = two_stores(make_store)
        fill(first["x"], 1.0)
        fill(second["x"], 2.0)
        first.commit()
        with pytest.raises(ConflictError) as caught:
            second.commit(tags=["lost"])
        assert (caught.value.scope, caught.value.seen, caught.value.found) == ("main", 1, 2)
        assert second["x"].item() == 2.0
        assert [s.tags for s in second.log()] == [(), ()]
        with pytest.raises(ConflictError):
            second.commit()

    def test_the_loser_can_append(self, make_store: MakeStore) -> None:
        first, second = two_stores(make_store)
        fill(first["x"], 1.0)
        fill(second["x"], 2.0)
        first.commit()
        made = second.commit(on_conflict="append")
        assert (made.version, made.parent) == (3, "main@1")
        assert [first.at(v)["x"].item() for v in (1, 2, 3)] == [0.0, 1.0, 2.0]
        assert [row.value for row in first.history("x")] == [0.0, 1.0, 2.0]
        fill(second["x"], 3.0)
        assert second.commit().parent == "main@3"
        with pytest.raises(ConflictError):
            first.commit()

    def test_the_loser_can_fork(self, make_store: MakeStore) -> None:
        first, second = two_stores(make_store)
        fill(first["x"], 1.0)
        fill(second["x"], 2.0)
        first.commit()
        with pytest.raises(ConflictError):
            second.commit()
        second.fork("mine")
        made = second.commit()
        assert (made.ref, made.parent) == ("mine@1", "main@1")
        assert first.at("mine")["x"].item() == 2.0
        assert first.commit().ref == "main@3"

    def test_the_loser_can_resume(self, make_store: MakeStore) -> None:
        first, second = two_stores(make_store)
        fill(first["x"], 1.0)
        first.commit()
        with pytest.raises(ConflictError):
            second.commit()
        second.resume()
        assert second["x"].item() == 1.0
        assert second.commit().version == 3

    def test_latest_asks_the_database_and_last_does_not(self, make_store: MakeStore) -> None:
        first, second = two_stores(make_store)
        first.commit()
        assert second.last is not None
        assert second.last.version == 1
        assert second.latest is not None
        assert second.latest.version == 2

    def test_on_conflict_takes_no_other_word(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(())
        with pytest.raises(ValueError, match="'append'"):
            store.commit(on_conflict="overwrite")  # type: ignore[call-overload]
        assert not store.log()

    def test_writers_of_different_scopes_never_conflict(self, make_store: MakeStore) -> None:
        stores = [make_store(scope=f"scope {number}") for number in range(3)]

        def run(number: int) -> None:
            store = stores[number]
            store["x"] = torch.zeros(())
            for step in range(8):
                fill(store["x"], 100 * number + step)
                store.commit(step=step)

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, range(3)))
        reader = make_store()
        assert {info.name: info.head_version for info in reader.scopes()} == {
            f"scope {number}": 8 for number in range(3)
        }
        for number in range(3):
            values = [reader.at(f"scope {number}@{v}")["x"].item() for v in range(1, 9)]
            assert values == [100 * number + step for step in range(8)]

    def test_one_of_many_writers_wins_each_round(self, make_store: MakeStore) -> None:
        stores = [make_store() for _ in range(4)]
        barrier, conflicts = threading.Barrier(4), []

        def run(number: int) -> None:
            stores[number]["x"] = torch.tensor(float(number))
            barrier.wait()
            try:
                stores[number].commit()
            except ConflictError as error:
                conflicts.append(error)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(run, range(4)))
        assert len(conflicts) == 3
        assert len(make_store().log()) == 1

    def test_two_threads_of_one_store_commit_one_after_the_other(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1000)
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda step: store.commit(step=step), range(20)))
        assert sorted(s.version for s in made) == list(range(1, 21))
        assert {s.step for s in store.log()} == set(range(20))
