"""Verify and backup: a sound store has no problem, and a copy of it is one.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict
from paramstore.errors import InvalidInputError
from paramstore.testing.bits import differences
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill


def filled(make_store: MakeStore) -> ParamStoreDict:
    """A store with three snapshots, one of them of another scope."""
    store = make_store()
    store.setdefault("scale", torch.ones(3), constraint=constraints.positive)
    store["weight"] = torch.randn(50, 40)
    store.commit(step=1, metrics={"loss": 2.0}, tags=["warm"])
    fill(store["weight"], 3.0)
    store.commit(step=2, extras={"order": torch.arange(2000)})
    store.fork("other")
    del store["scale"]
    store.commit()
    return store


class CheckingConformance:
    """Everything is as it was written, here and in a copy."""

    def test_what_was_committed_verifies(self, make_store: MakeStore) -> None:
        found = filled(make_store).verify()
        assert found.ok, found
        assert found.snapshots == 3
        assert found.tensors == found.stored_tensors == 4
        assert found.statistics == 3

    def test_verify_of_an_empty_store_finds_nothing(self, make_store: MakeStore) -> None:
        found = make_store().verify()
        assert found.ok
        assert (found.snapshots, found.tensors) == (0, 0)

    def test_verify_leaves_the_working_set_and_the_snapshots_alone(
        self, make_store: MakeStore
    ) -> None:
        store = filled(make_store)
        fill(store["weight"], 5.0)
        before = store.log("main")
        store.verify()
        assert store.changed() == ("weight",)
        assert store.log("main") == before

    def test_no_tensor_is_read_of_a_sample_of_nothing(self, make_store: MakeStore) -> None:
        found = filled(make_store).verify(sample=0)
        assert found.ok
        assert (found.snapshots, found.tensors) == (3, 0)

    def test_a_sample_is_a_fraction(self, make_store: MakeStore) -> None:
        with pytest.raises(InvalidInputError, match="from 0 to 1"):
            make_store().verify(sample=2)

    def test_a_copy_holds_everything_and_verifies(
        self, make_store: MakeStore, tmp_path: Path
    ) -> None:
        store = filled(make_store)
        target = store.backup(tmp_path / "copy.db")
        with paramstore.open(target, scope="other", readonly=True) as copy:
            assert copy.verify().ok
            assert copy.scopes() == store.scopes()
            for scope in ("main", "other"):
                assert copy.log(scope) == store.log(scope)
            for reference in ("main@1", "main@2", "other@1"):
                assert not differences(dict(copy.at(reference)), dict(store.at(reference)))

    def test_a_copy_replaces_no_file(self, make_store: MakeStore, tmp_path: Path) -> None:
        store = filled(make_store)
        target = store.backup(tmp_path / "copy.db")
        with pytest.raises(InvalidInputError, match="exists already"):
            store.backup(target)
