"""expire, gc and du: what is kept is as it was, and the rest is gone.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import torch

from paramstore.errors import InvalidInputError, ScopeNotFoundError, SnapshotNotFoundError
from paramstore.retention import KeepBest, KeepEvery, KeepLast, KeepTagged, KeepWithin
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill

if TYPE_CHECKING:
    from paramstore.store import ParamStoreDict


def trained(make_store: MakeStore, steps: int = 6) -> ParamStoreDict:
    """A store with some snapshots; one parameter changes in each of them, the other in none."""
    store = make_store()
    store["x"], store["frozen"] = torch.zeros(30_000), torch.full((30_000,), 7.0)
    for step in range(steps):
        fill(store["x"], float(step))
        store.commit(step=step, metrics={"loss": abs(step - 2)}, extras={"step": step})
    return store


class HousekeepingConformance:
    """Forgetting snapshots, freeing what they held, and how much is there."""

    def test_what_is_expired_is_gone_and_the_rest_is_as_it_was(self, make_store: MakeStore) -> None:
        store = trained(make_store)
        policy = KeepLast(1) | KeepEvery(steps=4) | KeepBest("loss", mode="min")
        found = store.expire(policy)
        store.gc()
        assert [s.version for s in store.log()] == [6, 5, 3, 1]
        assert [s.version for s in found.expired] == [4, 2]
        for step in (5, 4, 2, 0):
            view = store.at(f"main@{step + 1}")
            assert view["x"].unique().tolist() == [step]
            assert view["frozen"].unique().tolist() == [7]
            assert view.extras["step"] == step
        for gone in (2, 4):
            with pytest.raises(SnapshotNotFoundError, match="expired"):
                store.at(gone)
        assert [row.version for row in store.history("x")] == [1, 3, 5, 6]
        assert [row.version for row in store.history("frozen")] == [1]
        assert store.best("loss", "min").version == 3
        store.restore(3)
        assert store["x"].unique().tolist() == [2]

    def test_the_parent_of_what_is_kept_may_be_gone(self, make_store: MakeStore) -> None:
        store = trained(make_store, 3)
        store.expire(KeepTagged())
        assert [s.parent for s in store.log()] == [None]
        assert store.commit().parent == "main@3"

    def test_a_run_goes_on_after_every_thinning(self, make_store: MakeStore) -> None:
        store = trained(make_store, 1)
        for step in range(1, 8):
            fill(store["x"], float(step))
            assert store.commit(step=step).changed == 1
            store.expire(KeepLast(2))
            store.gc()
            assert store.du().scopes[0].nbytes < 4 * 30_000 * 4
        assert [s.step for s in store.log()] == [7, 6]
        assert store.resume() == store.log()[0]

    def test_every_kept_snapshot_comes_with_its_reasons(self, make_store: MakeStore) -> None:
        store = trained(make_store, 3)
        store.tag("first", 1)
        found = store.expire(KeepWithin(timedelta(days=1)), dry_run=True)
        reasons = {k.snapshot.version: k.reasons for k in found.kept}
        assert set(reasons) == {1, 2, 3}
        assert all("within 1 day, 0:00:00 of the newest" in r for r in reasons.values())
        assert "tagged 'first'" in reasons[1]
        assert "the head of its scope" in reasons[3]
        assert "within 1 day" in str(found)

    def test_a_dry_run_tells_and_changes_nothing(self, make_store: MakeStore) -> None:
        store = trained(make_store)
        told = store.expire(KeepLast(1), dry_run=True)
        assert told.dry_run
        assert len(store.log()) == 6
        assert store.expire(KeepLast(1)).nbytes == told.nbytes >= 5 * 120_000
        free = store.gc(dry_run=True)
        assert free.nbytes == store.du().unused_nbytes == told.nbytes
        assert store.gc().nbytes == told.nbytes
        assert store.gc().nbytes == store.du().unused_nbytes == 0

    def test_scopes_are_thinned_each_by_itself(self, make_store: MakeStore) -> None:
        store = trained(make_store, 3)
        with store.scope("other") as state:
            store["y"] = torch.zeros(2)
            for _ in range(3):
                store.commit()
        store.expire(KeepLast(1), scope="other")
        assert (len(store.log()), len(store.log("other"))) == (3, 1)
        store.expire(KeepLast(2))
        assert (len(store.log()), len(store.log("other"))) == (2, 1)
        assert [s.name for s in store.du().scopes] == ["main", "other"]
        assert "y" in state["params"]
        with pytest.raises(ScopeNotFoundError):
            store.expire(KeepLast(1), scope="nowhere")

    def test_du_counts_what_scopes_share_once(self, make_store: MakeStore) -> None:
        store = trained(make_store, 1)
        with store.scope("other"):
            store["copy"] = torch.full((30_000,), 7.0)
        main, other = store.du().scopes
        assert main.nbytes > 240_000 > main.own_nbytes > 120_000
        assert other.nbytes > 120_000 > other.own_nbytes
        assert (main.snapshots, main.params, other.params) == (1, 2, 1)
        found = store.du()
        assert found.tensor_nbytes < 250_000 < found.file_nbytes
        assert "frees" not in str(found)

    def test_compacting_changes_no_value(self, make_store: MakeStore) -> None:
        store = trained(make_store)
        store.expire(KeepLast(2))
        found = store.gc(compact=True)
        assert found.file_after <= found.file_before
        assert [store.at(v)["x"].unique().item() for v in (5, 6)] == [4, 5]

    def test_only_a_policy_is_taken(self, make_store: MakeStore) -> None:
        store = trained(make_store, 2)
        with pytest.raises(InvalidInputError, match="KeepLast"):
            store.expire(1)  # type: ignore[arg-type]
        assert len(store.log()) == 2
