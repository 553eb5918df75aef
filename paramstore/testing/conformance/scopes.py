"""Scopes: Pyro's, in memory, and named ones, whose working sets are committed on leaving.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch.distributions import constraints

from paramstore.errors import ScopeError
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill


class ScopeConformance:
    """Several working sets in one store object."""

    def test_a_scope_starts_empty_and_the_outer_tensors_come_back(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store.setdefault("x", torch.ones(2), constraint=constraints.positive)
        outer = dict(store.named_parameters())["x"]
        with store.scope() as state:
            assert not store
            store["x"] = torch.zeros(3)
            inner = store["x"]
        assert dict(store.named_parameters())["x"] is outer
        assert store._constraints["x"] is constraints.positive
        assert store.param_name(outer) == "x"
        assert state["params"]["x"] is inner
        with store.scope(state) as again:
            assert again is state
            assert store["x"] is inner
            assert dict(store._constraints) == {"x": constraints.real}
        assert dict(store.named_parameters())["x"] is outer

    def test_what_happens_in_a_re_entered_scope_stays_in_it(self, make_store: MakeStore) -> None:
        store = make_store()
        with store.scope() as one:
            store["x"] = torch.zeros(1)
        with store.scope() as two:
            store["y"] = torch.zeros(1)
        with store.scope(one):
            store["z"] = torch.ones(1)
            del store["x"]
        with store.scope(two):
            assert list(store) == ["y"]
        with store.scope(one):
            assert list(store) == ["z"]
        assert not store

    def test_scopes_nest(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        with store.scope():
            store["x"] = torch.tensor(1.0)
            with store.scope():
                store["x"] = torch.tensor(2.0)
                assert store["x"].item() == 2.0
            assert store["x"].item() == 1.0
        assert store["x"].item() == 0.0

    def test_an_exception_leaves_a_scope_and_brings_the_outer_tensors_back(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        outer = store["x"]
        with pytest.raises(OSError, match="inside"), store.scope():
            store["x"] = torch.tensor(1.0)
            raise OSError("inside")
        assert store["x"] is outer

    def test_a_plain_dictionary_is_a_scope_in_memory(self, make_store: MakeStore) -> None:
        store, tensor = make_store(), torch.zeros(2, requires_grad=True)
        before = len(store.scopes())
        plain = {"params": {"x": tensor}, "constraints": {"x": constraints.positive}}
        with store.scope(plain) as state:
            assert state is plain
            assert store["x"].tolist() == [1.0, 1.0]
            store["y"] = torch.ones(1)
        assert list(plain["params"]) == ["x", "y"]
        assert plain["params"]["x"] is tensor
        assert len(store.scopes()) == before

    def test_leaving_a_named_scope_commits_it(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        store.commit()
        with store.scope("guide-a"):
            assert not store
            store["x"] = torch.tensor(1.0)
        assert store["x"].item() == 0.0
        assert {info.name: info.head_version for info in store.scopes()} == {
            "main": 1,
            "guide-a": 1,
        }
        assert store.at("guide-a@1")["x"].item() == 1.0
        assert store.at("@latest")["x"].item() == 0.0

    def test_a_named_scope_gives_the_same_tensors_every_time(self, make_store: MakeStore) -> None:
        store = make_store()
        with store.scope("guide-a") as first:
            store["x"] = torch.tensor(1.0)
            tensor = store["x"]
        with store.scope("guide-a") as second:
            assert store["x"] is tensor
            fill(tensor, 2.0)
        assert second is first
        assert [s.version for s in store.log(scope="guide-a")] == [2, 1]
        with store.scope(first) as third:
            assert third is first
            assert store["x"] is tensor

    def test_leaving_a_named_scope_that_did_not_change_writes_nothing(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        with store.scope("guide-a"):
            store["x"] = torch.tensor(1.0)
        with store.scope("guide-a"):
            assert store["x"].item() == 1.0
        assert store.at("guide-a").snapshot.version == 1

    def test_leaving_a_scope_commits_what_a_filtered_restore_brought_back(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        with store.scope("guide-a"):
            store["x"], store["y"] = torch.tensor(1.0), torch.tensor(1.0)
            store.commit()
            fill(store["x"], 2.0)
            fill(store["y"], 2.0)
            store.commit()
            store.restore(1, include="x")
            assert set(store.changed()) == {"x"}
        view = store.at("guide-a")
        assert (view.snapshot.version, view.snapshot.parent) == (3, "guide-a@2")
        assert (view["x"].item(), view["y"].item()) == (1.0, 2.0)

    def test_a_scope_without_commit_writes_nothing_and_keeps_its_tensors(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        with store.scope("guide-a"):
            store["x"] = torch.tensor(1.0)
        with store.scope("guide-a", commit=False):
            fill(store["x"], 2.0)
        assert store.at("guide-a").snapshot.version == 1
        with store.scope("guide-a"):
            assert store["x"].item() == 2.0
        assert store.at("guide-a")["x"].item() == 2.0

    def test_an_exception_inside_a_named_scope_commits_nothing(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        store.commit()
        with pytest.raises(OSError, match="inside"), store.scope("guide-a"):
            store["x"] = torch.tensor(1.0)
            raise OSError("inside")
        assert [info.name for info in store.scopes() if info.head_version] == ["main"]
        assert store["x"].item() == 0.0

    def test_a_scope_that_is_active_cannot_be_entered_again(self, make_store: MakeStore) -> None:
        store = make_store()
        with pytest.raises(ScopeError, match="'main'"), store.scope("main"):
            pass
        with store.scope("guide-a") as state:
            with pytest.raises(ScopeError, match="'guide-a'"), store.scope("guide-a"):
                pass
            with pytest.raises(ScopeError, match="'guide-a'"), store.scope(state):
                pass
            store["x"] = torch.tensor(1.0)
        assert store.at("guide-a")["x"].item() == 1.0

    def test_a_second_thread_cannot_enter_a_scope_meanwhile(self, make_store: MakeStore) -> None:
        store, caught = make_store(), []

        def enter() -> None:
            try:
                with store.scope("guide-b"):
                    pass
            except ScopeError as error:
                caught.append(error)

        with store.scope("guide-a"):
            thread = threading.Thread(target=enter)
            thread.start()
            thread.join()
        assert len(caught) == 1
        enter()
        assert len(caught) == 1

    def test_each_scope_has_its_own_versions_tags_and_history(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        store.commit(tags=["warm"])
        with store.scope("guide-a"):
            store["x"] = torch.tensor(1.0)
            store.commit(tags=["warm"])
            fill(store["x"], 2.0)
            assert [row.value for row in store.history("x")] == [1.0]
        assert store.at("main@warm")["x"].item() == 0.0
        assert store.at("guide-a@warm")["x"].item() == 1.0
        assert store.at("guide-a")["x"].item() == 2.0
        assert [row.value for row in store.history("x")] == [0.0]
