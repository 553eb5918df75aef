"""Snapshots: commit, log, at, diff, tags, restore, resume, changed, latest, last and best.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest
import torch
from torch.distributions import constraints

from paramstore.errors import (
    InvalidNameError,
    ParamNotFoundError,
    TagNotFoundError,
)
from paramstore.testing.bits import differences, same_bits
from paramstore.testing.conformance.backend import MakeStore


def fill(tensor: torch.Tensor, value: float) -> None:
    """Change a stored tensor in place, as an optimiser does."""
    with torch.no_grad():
        tensor.fill_(value)


class SnapshotConformance:
    """Points of a scope on one store object."""

    def test_versions_count_from_one_and_know_their_parents(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        assert store.last is None
        snapshots = [store.commit() for _ in range(3)]
        assert [s.version for s in snapshots] == [1, 2, 3]
        assert [s.parent for s in snapshots] == [None, "main@1", "main@2"]
        assert [s.ref for s in snapshots] == ["main@1", "main@2", "main@3"]
        assert list(store.log()) == snapshots[::-1]
        assert store.last == store.latest == snapshots[-1]

    def test_a_snapshot_says_what_commit_was_told(self, make_store: MakeStore) -> None:
        store, before = make_store(), datetime.now(UTC)
        store["x"] = torch.zeros(2)
        metrics = {"elbo": -1.5, "nothing": math.nan, "all": math.inf}
        store.commit(step=40, message="warm-up ends\n☃", metrics=metrics, tags=["warm", "a b"])
        (found,) = store.log()
        assert found.step == 40
        assert found.message == "warm-up ends\n☃"
        assert found.metrics["elbo"] == -1.5
        assert math.isnan(found.metrics["nothing"])
        assert found.metrics["all"] == math.inf
        assert found.tags == ("a b", "warm")
        assert before <= found.created_at <= datetime.now(UTC)
        assert (found.params, found.changed, found.kind) == (1, 1, "commit")
        assert found.nbytes >= 8

    def test_log_can_be_limited_to_the_newest(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        for step in range(5):
            store.commit(step=step)
        assert [s.step for s in store.log(limit=2)] == [4, 3]

    def test_a_commit_without_changes_is_a_snapshot_with_nothing_changed(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1000)
        store.commit()
        second = store.commit()
        assert (second.version, second.changed, second.params) == (2, 0, 1)
        assert second.added_nbytes == 0
        assert store.at(second)["x"].tolist() == store.at(1)["x"].tolist()

    @pytest.mark.parametrize("how", ["no_grad", "data", "numpy", "storage"])
    def test_a_commit_sees_every_way_to_change_a_tensor(
        self, make_store: MakeStore, how: str
    ) -> None:
        store, tensor = make_store(), torch.zeros(4)
        store["x"] = tensor
        store.commit()
        if how == "no_grad":
            fill(tensor, 1.0)
        elif how == "data":
            tensor.data.fill_(1.0)
        elif how == "numpy":
            tensor.detach().numpy()[:] = 1.0
        else:
            tensor.data = torch.ones(4)
        assert store.commit().changed == 1
        assert store.at("@latest")["x"].tolist() == [1.0] * 4

    def test_a_commit_sees_another_shape_or_dtype_of_equal_bytes(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["shape"], store["dtype"] = torch.zeros(4), torch.zeros(4)
        store.commit()
        store["shape"], store["dtype"] = torch.zeros(2, 2), torch.zeros(2, dtype=torch.float64)
        assert store.commit().changed == 2
        assert store.at(2)["shape"].shape == (2, 2)
        assert store.at(2)["dtype"].dtype == torch.float64

    def test_a_snapshot_does_not_follow_the_working_set(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        store.commit()
        fill(store["x"], 5.0)
        del store["x"]
        assert store.at("main@1")["x"].tolist() == [0.0, 0.0]

    def test_changed_names_what_the_next_commit_would_store(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"], store["y"] = torch.zeros(2), torch.zeros(2)
        assert set(store.changed()) == {"x", "y"}
        store.commit()
        assert not store.changed()
        fill(store["x"], 1.0)
        assert set(store.changed()) == {"x"}
        fill(store["x"], 0.0)
        assert not store.changed()
        store["z"] = torch.zeros(1)
        assert set(store.changed()) == {"z"}

    def test_every_form_of_a_reference_finds_its_snapshot(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        made = [store.commit(step=step, tags=tags) for step, tags in ((5, ["warm"]), (5, []))]
        for ref in (made[0], 1, "main@1", "@1", "main@warm", "@warm"):
            assert store.at(ref).snapshot.version == 1, ref
        for ref in (made[1], 2, "main", "main@latest", "@latest", "main@step=5", "@step=5"):
            assert store.at(ref).snapshot.version == 2, ref

    def test_at_reads_single_values_of_one_snapshot(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor([math.nan, -0.0])
        store.setdefault("scale", torch.full((2,), 2.0), constraint=constraints.positive)
        stored = dict(store.named_parameters())["scale"].detach().clone()
        store.commit(extras={"epoch": 3})
        view = store.at(1)
        assert (set(view), len(view)) == ({"x", "scale"}, 2)
        assert "x" in view
        assert "y" not in view
        assert same_bits(view["x"], torch.tensor([math.nan, -0.0]))
        assert same_bits(view["scale"], stored.exp())
        assert same_bits(view.unconstrained("scale"), stored)
        assert view.snapshot.ref == "main@1"
        assert dict(view.extras) == {"epoch": 3}
        with pytest.raises(ParamNotFoundError, match="'y'"):
            view["y"]

    def test_writing_to_what_at_returned_changes_nothing(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        store.commit()
        with torch.no_grad():
            store.at(1)["x"].fill_(9.0)
        assert store["x"].tolist() == [0.0, 0.0]
        assert store.at(1)["x"].tolist() == [0.0, 0.0]

    def test_diff_says_what_was_added_removed_and_changed(self, make_store: MakeStore) -> None:
        store = make_store()
        store["gone"], store["same"] = torch.zeros(2), torch.ones(3)
        store["moved"] = torch.tensor([3.0, 4.0])
        store["typed"] = torch.zeros(2)
        store.commit()
        del store["gone"]
        store["new"] = torch.zeros(2)
        fill(store["moved"], 0.0)
        store["typed"] = torch.zeros(2, dtype=torch.float64)
        store.commit()
        diff = store.diff("@1", "@2")
        assert (diff.before.version, diff.after.version) == (1, 2)
        assert (diff.added, diff.removed, diff.unchanged) == (("new",), ("gone",), 1)
        changes = {change.name: change for change in diff.changed}
        assert set(changes) == {"moved", "typed"}
        assert changes["moved"].what == "value"
        assert changes["moved"].norm == pytest.approx(5.0)
        assert changes["moved"].relative == pytest.approx(1.0)
        assert changes["typed"].what == "dtype"
        assert diff
        assert not store.diff(1, 1)

    def test_diff_puts_first_what_became_nan_or_infinite(self, make_store: MakeStore) -> None:
        store = make_store()
        store["all"], store["some"] = torch.tensor(2.0), torch.tensor([3.0, 4.0])
        store["large"], store["still"] = torch.tensor(1.0), torch.tensor([math.nan, 1.0])
        store.commit()
        for name, value in (("all", math.nan), ("large", 1e9)):
            fill(store[name], value)
        store["some"] = torch.tensor([3.0, math.inf])
        store["still"] = torch.tensor([math.nan, 2.0])
        store.commit()
        first, second, *others = store.diff("@1", "@2").changed
        assert (first.name, first.what, first.norm, first.relative) == (
            ("all", "NaN or inf", None, None)
        )
        assert (second.name, second.what, second.norm) == ("some", "NaN or inf", 0.0)
        assert [(change.name, change.what) for change in others] == [
            ("large", "value"),
            ("still", "value"),
        ]

    def test_restore_brings_back_bits_constraints_and_identity(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor([math.nan, -0.0, 1.0])
        store.setdefault("scale", torch.full((2,), 2.0), constraint=constraints.positive)
        stored = dict(store.named_parameters())
        wanted = {name: value.detach().clone() for name, value in stored.items()}
        first = store.commit()
        for value in stored.values():
            fill(value, 7.0)
            value.grad = torch.ones_like(value)
        store.commit()
        assert store.restore("main@1") == first
        found = dict(store.named_parameters())
        assert not differences(found, wanted)
        for name, value in found.items():
            assert value is stored[name]
            assert value.grad is None
            assert value.requires_grad
        assert store._constraints["scale"] is constraints.positive

    def test_restore_removes_what_the_snapshot_lacks_and_returns_what_was_deleted(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        store.commit()
        del store["scale"]
        store["new"] = torch.zeros(1)
        store.restore(1)
        assert set(store) == {"scale"}
        assert store["scale"].tolist() == [1.0, 1.0]
        assert store._constraints["scale"] is constraints.positive

    def test_restore_replaces_a_tensor_of_another_shape_dtype_or_constraint(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["shape"], store["dtype"] = torch.zeros(2), torch.zeros(2)
        store.setdefault("constraint", torch.ones(2), constraint=constraints.positive)
        store.commit()
        for name in list(store):
            del store[name]
        store["shape"], store["dtype"] = torch.zeros(3), torch.zeros(2, dtype=torch.float64)
        store["constraint"] = torch.ones(2)
        store.restore(1)
        assert store["shape"].shape == (2,)
        assert store["dtype"].dtype == torch.float32
        assert store._constraints["constraint"] is constraints.positive
        assert store["constraint"].tolist() == [1.0, 1.0]

    def test_restore_leaves_names_outside_its_filter_untouched(self, make_store: MakeStore) -> None:
        store = make_store()
        for name in ("a.x", "a.y", "b.x"):
            store[name] = torch.zeros(1)
        store.commit()
        for name in store:
            fill(store[name], 1.0)
        store["new"] = torch.ones(1)
        store.restore(1, include=["a.x", "b.x"])
        values = {name: value.item() for name, value in store.items()}
        assert values == {"a.x": 0.0, "a.y": 1.0, "b.x": 0.0, "new": 1.0}
        fill(store["a.x"], 1.0)
        store.restore(1, exclude=["a.y"])
        assert store["a.x"].item() == 0.0
        assert store["a.y"].item() == 1.0

    def test_a_commit_after_an_older_restore_has_that_parent_and_rewrites_nothing(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.commit()
        fill(store["x"], 1.0)
        store.commit()
        store.restore(1)
        fill(store["x"], 2.0)
        third = store.commit()
        assert (third.version, third.parent) == (3, "main@1")
        assert [store.at(v)["x"].item() for v in (1, 2, 3)] == [0.0, 1.0, 2.0]

    def test_resume_gives_the_newest_snapshot_or_none(self, make_store: MakeStore) -> None:
        store = make_store()
        assert store.resume() is None
        store["x"] = torch.zeros(1)
        store.commit()
        fill(store["x"], 1.0)
        newest = store.commit()
        fill(store["x"], 2.0)
        assert store.resume() == newest
        assert store["x"].item() == 1.0

    def test_clear_leaves_the_snapshots_and_resume_brings_them_back(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.full((2,), 3.0)
        store.commit()
        store.clear()
        assert not store
        assert len(store.log()) == 1
        store.resume()
        assert store["x"].tolist() == [3.0, 3.0]

    def test_best_goes_by_the_metric_and_never_by_nan(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        for loss in (3.0, math.nan, 1.0, 2.0):
            store.commit(metrics={"loss": loss})
        store.commit()
        assert store.best("loss", "min").version == 3
        assert store.best("loss", "max").version == 1

    def test_a_tag_is_found_moved_only_when_told_and_removed(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.commit(tags=["warm"])
        store.commit()
        store.tag("good", "main@2")
        assert store.at("@good").snapshot.version == 2
        with pytest.raises(InvalidNameError, match="'warm'"):
            store.tag("warm", "main@2")
        assert store.at("@warm").snapshot.version == 1
        store.tag("warm", "main@2", move=True)
        assert store.at("@warm").snapshot.version == 2
        assert [s.tags for s in store.log()] == [("good", "warm"), ()]
        store.untag("warm")
        with pytest.raises(TagNotFoundError, match="'warm'"):
            store.at("@warm")
        with pytest.raises(TagNotFoundError, match="'warm'"):
            store.untag("warm")

    def test_a_parameter_written_the_way_pyros_modules_do_is_committed(
        self, make_store: MakeStore
    ) -> None:
        store, tensor = make_store(), torch.nn.Parameter(torch.zeros(2))
        store._constraints["net.scale"] = constraints.positive
        store._params["net.scale"] = tensor
        store._param_to_name[tensor] = "net.scale"
        assert store["net.scale"].tolist() == [1.0, 1.0]
        store.commit()
        fill(tensor, 3.0)
        store.restore(1)
        assert tensor.tolist() == [0.0, 0.0]
        assert dict(store.named_parameters())["net.scale"] is tensor
