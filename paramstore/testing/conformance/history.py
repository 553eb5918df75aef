"""History, fork and rename: one parameter by its name, across snapshots.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import constraints

from paramstore.errors import InvalidNameError, ParamNotFoundError, ScopeError
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill


class HistoryConformance:
    """What a parameter was, when, and under which name and scope."""

    def test_history_has_a_row_wherever_the_value_changed(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"], store["other"] = torch.zeros(()), torch.zeros(())
        for step, value in enumerate([0.0, 0.0, 1.5, 1.5, 0.0]):
            fill(store["x"], value)
            fill(store["other"], float(step))
            store.commit(step=step)
        rows = store.history("x")
        assert [(r.version, r.step, r.value) for r in rows] == [(1, 0, 0), (3, 2, 1.5), (5, 4, 0)]
        assert {(r.name, r.scope, r.dtype, r.shape) for r in rows} == {("x", "main", "F32", ())}
        assert rows[0].digest == rows[2].digest != rows[1].digest

    def test_a_limited_history_is_the_newest_rows_oldest_first(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(())
        for step in range(5):
            fill(store["x"], step)
            store.commit(step=step)
        assert [row.step for row in store.history("x", limit=2)] == [3, 4]

    def test_a_value_restored_and_set_back_is_no_change(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor(0.0)
        store.commit()
        fill(store["x"], 1.0)
        store.commit()
        store.restore(1, include="x")
        fill(store["x"], 1.0)
        assert not store.changed()
        assert store.commit().changed == 0
        assert [row.version for row in store.history("x")] == [1, 2]

    def test_history_has_a_row_for_a_return_after_absence(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"], store["other"] = torch.ones(2), torch.zeros(1)
        store.commit()
        tensor = store["x"]
        del store["x"]
        store.commit()
        store["x"] = tensor
        store.commit()
        assert [row.version for row in store.history("x")] == [1, 3]

    def test_a_change_of_the_constraint_alone_is_a_new_version(self, make_store: MakeStore) -> None:
        store, tensor = make_store(), torch.zeros(2)
        store["x"] = tensor
        store.commit()
        del store["x"]
        store.set_state(
            {"params": {"x": tensor}, "constraints": {"x": constraints.positive}},
        )
        store.commit()
        rows = store.history("x")
        assert [row.version for row in rows] == [1, 2]
        assert rows[0].constraint != rows[1].constraint
        assert [change.what for change in store.diff(1, 2).changed] == ["constraint"]

    def test_statistics_are_of_the_constrained_value_over_its_finite_elements(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store.setdefault("scale", torch.tensor([3.0, 4.0, 5.0]), constraint=constraints.positive)
        with torch.no_grad():
            dict(store.named_parameters())["scale"][2] = math.nan
        store["odd"] = torch.tensor([math.inf, -math.inf, math.nan])
        store.commit()
        (row,) = store.history("scale")
        assert row.norm == pytest.approx(5.0)
        assert row.mean == pytest.approx(3.5)
        assert row.std == pytest.approx(0.5)
        assert [row.min, row.max] == pytest.approx([3.0, 4.0])
        assert (row.nan_count, row.inf_count, row.value) == (1, 0, None)
        (row,) = store.history("odd")
        assert (row.norm, row.mean, row.min, row.max) == (None, None, None, None)
        assert (row.nan_count, row.inf_count) == (1, 2)

    def test_the_value_of_one_element_is_kept(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.tensor([2.0]), constraint=constraints.positive)
        store["nan"] = torch.tensor(math.nan)
        store.commit()
        assert store.history("scale")[0].value == pytest.approx(2.0)
        value = store.history("nan")[0].value
        assert isinstance(value, float)
        assert math.isnan(value)

    def test_history_of_an_unknown_name_suggests_a_close_one(self, make_store: MakeStore) -> None:
        store = make_store()
        store["scale"] = torch.zeros(1)
        store.commit()
        with pytest.raises(ParamNotFoundError, match=r"'scal'.*'?scale'?"):
            store.history("scal")

    def test_a_fork_continues_the_working_set_in_a_scope_of_its_own(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(())
        store.commit(step=0)
        tensor = store["x"]
        fill(tensor, 1.0)
        store.fork("try")
        assert store["x"] is tensor
        assert tensor.item() == 1.0
        forked = store.commit(step=1)
        assert (forked.ref, forked.parent) == ("try@1", "main@1")
        assert [info.name for info in store.scopes()] == ["main", "try"]
        assert store.at("main").snapshot.step == 0
        assert store.at("main@1")["x"].item() == 0.0
        assert store.at("@latest")["x"].item() == 1.0
        assert [row.value for row in store.history("x")] == [1.0]

    def test_an_unchanged_tensor_is_not_stored_again_by_a_fork(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(1000)
        store.commit()
        store.fork("try")
        forked = store.commit()
        assert forked.added_nbytes == 0
        assert store.at(forked)["x"].tolist() == [0.0] * 1000

    def test_a_fork_to_a_scope_that_exists_is_refused(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(())
        store.commit()
        store.fork("try")
        store.commit()
        with pytest.raises(ScopeError, match="'main'"):
            store.fork("main")
        assert store.commit().ref == "try@2"

    def test_a_renamed_parameter_keeps_its_history_and_its_tensor(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store.setdefault("old", torch.ones(()), constraint=constraints.positive)
        store["other"] = torch.zeros(())
        for step in range(3):
            fill(dict(store.named_parameters())["old"], step)
            store.commit(step=step)
        tensor = dict(store.named_parameters())["old"]
        store.rename("old", "new")
        assert set(store) == {"new", "other"}
        assert dict(store.named_parameters())["new"] is tensor
        assert store._constraints["new"] is constraints.positive
        assert store.param_name(tensor) == "new"
        assert [row.version for row in store.history("new")] == [1, 2, 3]
        assert set(store.at(1)) == {"new", "other"}
        assert not store.changed()
        assert store.commit().changed == 0
        with pytest.raises(ParamNotFoundError):
            store.history("old")
        store.restore(1)
        assert tensor.item() == 0.0

    def test_a_parameter_is_renamed_in_snapshots_that_the_working_set_has_left(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["other"] = torch.zeros(())
        store.commit()
        store["old"] = torch.ones(())
        store.commit()
        store.restore(1)
        store["old"] = torch.full((), 2.0)
        store.rename("old", "new")
        assert set(store) == {"new", "other"}
        assert set(store.at(2)) == {"new", "other"}
        store.commit()
        assert [row.value for row in store.history("new")] == [1.0, 2.0]
        del store["new"]
        store.commit()
        store.rename("new", "newer")
        assert [row.value for row in store.history("newer")] == [1.0, 2.0]

    def test_an_uncommitted_parameter_is_renamed_in_memory(self, make_store: MakeStore) -> None:
        store = make_store()
        store["old"] = torch.ones(())
        store.rename("old", "new")
        assert set(store) == {"new"}
        store.commit()
        store["later"] = torch.zeros(())
        store.rename("later", "latest")
        assert set(store.changed()) == {"latest"}

    def test_a_name_is_not_renamed_onto_another(self, make_store: MakeStore) -> None:
        store = make_store()
        store["a"], store["b"] = torch.zeros(()), torch.ones(())
        store.commit()
        with pytest.raises(InvalidNameError, match="'b'"):
            store.rename("a", "b")
        with pytest.raises(ParamNotFoundError, match="'c'"):
            store.rename("c", "d")
        assert {name: value.item() for name, value in store.items()} == {"a": 0.0, "b": 1.0}
        assert set(store.at(1)) == {"a", "b"}
