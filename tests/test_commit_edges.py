"""What a commit counts as a change, and what it must not confuse."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore.db.engine import Database
from paramstore.db.scope_changes import rename_scope


class Counter:
    """Something with a state that is a plain number."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_a_run_does_not_go_on_in_a_scope_that_others_have_made_anew(tmp_path: Path) -> None:
    """The numbers of its versions are the same."""
    with paramstore.open(tmp_path / "run.db") as run:
        run["x"] = torch.zeros(2)
        run.commit()
        database = Database.open(tmp_path / "run.db")
        rename_scope(database, "main", "first")
        database.close()
        with paramstore.open(tmp_path / "run.db") as other:
            other["y"] = torch.zeros(2)
            other.commit()
        with pytest.raises(paramstore.ConflictError, match="the scope was made anew"):
            run.commit()
        with pytest.raises(paramstore.ConflictError, match="the scope was made anew"):
            run.commit(wait=False).result()
        run.fork("mine")
        assert run.commit().parent == "first@1"
        assert [s.version for s in run.log("main")] == [1]


def test_leaving_a_scope_stores_a_state_in_which_only_a_number_changed(
    store: paramstore.ParamStoreDict,
) -> None:
    counter = Counter()
    for count in (1, 5, 5):
        with store.scope("g"):
            store.attach(counter=counter)
            store.setdefault("x", torch.zeros(2))
            counter.count = count
    assert store.at("g").state("counter") == {"count": 5}
    assert [s.version for s in store.log("g")] == [2, 1]


def test_leaving_a_scope_after_a_resume_writes_nothing_where_nothing_was_trained(
    tmp_path: Path,
) -> None:
    def optimiser(store: paramstore.ParamStoreDict) -> torch.optim.Optimizer:
        optim = torch.optim.Adam([store.setdefault("x", torch.zeros(5000)).unconstrained()])  # type: ignore[attr-defined]
        store.attach(optim=optim)
        return optim

    with paramstore.open(tmp_path / "run.db") as first, first.scope("g"):
        optim = optimiser(first)
        first["x"].sum().backward()
        optim.step()
    with paramstore.open(tmp_path / "run.db") as again:
        with again.scope("g"):
            optimiser(again)
            again.resume()
        assert again.log("g")[0].version == 1


def test_the_extras_of_the_last_commit_do_not_count_as_a_change(
    store: paramstore.ParamStoreDict,
) -> None:
    with store.scope("g"):
        store["x"] = torch.zeros(2)
        store.attach(counter=Counter(), rng=True)
        store.commit(extras={"big": torch.ones(5000), "epoch": 3})
    assert store.log("g")[0].version == 1


def test_a_parameter_cannot_take_the_name_of_a_buffer(store: paramstore.ParamStoreDict) -> None:
    store.module("net", nn.BatchNorm1d(2))
    with pytest.raises(paramstore.InvalidNameError, match="running_mean"):
        store["net$$$running_mean"] = torch.ones(2)
    store.commit()
    assert store.at("@1")["net$$$running_mean"].tolist() == [0, 0]


def test_a_renamed_parameter_keeps_its_place(store: paramstore.ParamStoreDict) -> None:
    for name in "abc":
        store[name] = torch.zeros(2)
    store.commit()
    store.rename("a", "z")
    assert list(store) == ["z", "b", "c"]


def test_a_diff_compares_real_with_complex_values(store: paramstore.ParamStoreDict) -> None:
    store["x"] = torch.tensor([3.0, 4.0])
    store.commit()
    store["x"] = torch.tensor([3.0 + 1j, 4.0])
    store.commit()
    (change,) = store.diff("@1", "@2").changed
    assert change.what == "dtype"
    assert change.norm == pytest.approx(1.0)


def test_a_view_of_the_parameters_never_shows_a_placeholder_after_a_restore(
    store: paramstore.ParamStoreDict,
) -> None:
    store["x"] = torch.zeros(2)
    store.commit()
    store["x"] = torch.zeros(3)
    view = store.named_parameters()
    store.restore("@1")
    assert [(name, tuple(tensor.shape)) for name, tensor in view] == [("x", (2,))]


def test_loading_a_tensor_that_cannot_be_trained_changes_nothing(
    store: paramstore.ParamStoreDict, tmp_path: Path
) -> None:
    file = tmp_path / "plain.safetensors"
    save_file({"count": torch.arange(3), "x": torch.ones(2)}, file)
    with pytest.raises(paramstore.InvalidValueError, match="count"):
        store.load(file)
    assert not store


def test_loading_keeps_what_is_frozen(store: paramstore.ParamStoreDict, tmp_path: Path) -> None:
    store.module("net", nn.Linear(2, 2).requires_grad_(False))
    store.save(tmp_path / "net.safetensors")
    other = paramstore.ParamStoreDict()
    other.load(tmp_path / "net.safetensors")
    assert not any(tensor.requires_grad for _, tensor in other.named_parameters())


def test_opening_at_a_damaged_snapshot_says_where_else_to_begin(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        for value in (1.0, 2.0):
            store["x"] = torch.full((2,), value)
            store.commit()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE snapshots SET message = 'altered' WHERE version = 2")
    with pytest.raises(paramstore.CorruptError, match=r"scope='rescue', start='main@N'"):
        paramstore.open(path)
    with paramstore.open(path, scope="rescue", start="main@1") as store:
        assert store["x"].tolist() == [1.0, 1.0]


def test_a_damaged_constraint_spec_is_mended_by_the_next_commit_that_has_it(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        store.commit()
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE constraints SET spec = replace(spec, 'pos', 'neg')")
        store["scale"] = torch.full((2,), 3.0)
        store.commit()
    with paramstore.open(path) as again:
        assert again["scale"].tolist() == pytest.approx([3.0, 3.0])
        assert again.at("@1")["scale"].tolist() == [1.0, 1.0]
