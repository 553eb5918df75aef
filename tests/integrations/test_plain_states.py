"""Plain states, which PyroModule enters at every forward call: the same as in Pyro's own store."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyro.params.param_store import ParamStoreDict as StockStore
from torch.distributions import constraints

from paramstore import InvalidInputError, ParamStoreDict

STORES = pytest.mark.parametrize("make", [StockStore, ParamStoreDict])
Make = Callable[[], Any]


def plain(*names: str) -> dict[str, Any]:
    return {
        "params": {name: torch.zeros(2, requires_grad=True) for name in names},
        "constraints": dict.fromkeys(names, constraints.real),
    }


def names_inside(store: Any, state: Any) -> list[str]:
    with store.scope(state):
        return list(store)


@STORES
def test_a_state_is_entered_again_with_the_same_tensors_and_names(make: Make) -> None:
    store, state = make(), plain("x")
    with store.scope(state) as yielded:
        store["y"] = torch.ones(1)
        held = dict(store.named_parameters())
    assert yielded is state
    for _ in range(3):
        with store.scope(state):
            assert list(store) == ["x", "y"]
            assert all(tensor is held[name] for name, tensor in store.named_parameters())
            assert [store.param_name(tensor) for tensor in held.values()] == ["x", "y"]
    assert dict(state["params"]) == held


@STORES
def test_what_was_put_into_a_state_outside_of_it_is_there_inside(make: Make) -> None:
    store, state = make(), plain("x", "y")
    names_inside(store, state)
    new, replaced = torch.ones(1, requires_grad=True), torch.ones(2, requires_grad=True)
    state["params"]["new"] = new
    state["params"]["y"] = replaced
    del state["params"]["x"]
    state["constraints"]["new"] = constraints.positive
    for _ in range(2):
        with store.scope(state):
            assert list(store) == ["y", "new"]
            assert store.param_name(new) == "new"
            assert store.param_name(replaced) == "y"
            assert store["new"].item() == pytest.approx(torch.e)


@STORES
def test_tables_that_were_exchanged_are_entered(make: Make) -> None:
    store, state = make(), plain("x")
    names_inside(store, state)
    state["params"] = plain("z")["params"]
    state["constraints"] = plain("z")["constraints"]
    assert names_inside(store, state) == ["z"]
    state.update(plain("x"))
    assert names_inside(store, state) == ["x"]


@STORES
def test_a_block_that_fails_leaves_the_state_as_it_was(make: Make) -> None:
    store, state = make(), plain("x")
    names_inside(store, state)
    for _ in range(2):
        with pytest.raises(OSError, match="stop"), store.scope(state):
            store["y"] = torch.ones(1)
            del store["x"]
            raise OSError("stop")
        assert list(state["params"]) == ["x"]
        assert names_inside(store, state) == ["x"]


@STORES
def test_a_state_that_is_entered_inside_itself_begins_as_it_was_left_last(make: Make) -> None:
    store, state = make(), plain("x")
    names_inside(store, state)
    with store.scope(state):
        store["outer"] = torch.ones(1)
        with store.scope(state):
            assert list(store) == ["x"]
            store["inner"] = torch.ones(1)
        assert list(store) == ["x", "outer"]
        assert list(state["params"]) == ["x", "inner"]
    assert list(state["params"]) == ["x", "outer"]
    assert names_inside(store, state) == ["x", "outer"]


@STORES
def test_two_stores_inside_one_state_do_not_see_each_other(make: Make) -> None:
    one, two, state = make(), make(), plain("x")
    names_inside(one, state)
    with one.scope(state):
        with two.scope(state):
            two["y"] = torch.ones(1)
        assert list(one) == ["x"]
    assert list(state["params"]) == ["x"]


@STORES
def test_a_copy_of_a_state_does_not_follow_it(make: Make) -> None:
    store, state = make(), plain("x")
    names_inside(store, state)
    before, tables = dict(state), state["params"]
    with store.scope(state):
        store["y"] = torch.ones(1)
    assert list(before["params"]) == list(tables) == ["x"]
    assert names_inside(store, before) == ["x"]
    assert names_inside(store, state) == ["x", "y"]


@pytest.mark.parametrize("entered", [False, True], ids=["new", "left before"])
@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("x", torch.zeros(1, dtype=torch.int64), "int64"),
        ("x", [1.0], "list"),
        ("", torch.zeros(1), "empty"),
        ("a\0b", torch.zeros(1), "NUL"),
        ("\ud800", torch.zeros(1), "surrogate"),
        (3, torch.zeros(1), "int"),
    ],
)
def test_what_is_no_parameter_is_refused_by_name(
    entered: bool, name: Any, value: Any, error: str
) -> None:
    store, state = ParamStoreDict(), plain("good")
    store["outer"] = torch.zeros(1)
    if entered:
        names_inside(store, state)
    state["params"][name] = value
    state["constraints"][name] = constraints.real
    with pytest.raises(InvalidInputError, match=error), store.scope(state):
        pass
    state["params"].pop(name)
    state["constraints"][name] = "positive"
    with pytest.raises(InvalidInputError, match="positive"), store.scope(state):
        pass
    assert list(store) == ["outer"]


@STORES
def test_every_tensor_of_a_state_has_its_name_and_another_has_none(make: Make) -> None:
    store, state = make(), plain("x", "y")
    state["constraints"]["unused"] = constraints.positive
    with store.scope(state):
        tensors = dict(store.named_parameters())
        store["z"] = torch.ones(1)
        assert [store.param_name(tensor) for tensor in tensors.values()] == ["x", "y"]
        assert store.param_name(torch.zeros(2)) is None
        assert len(store._param_to_name) == 3
        del store["x"]
        assert store.param_name(tensors["x"]) is None


def test_a_constraint_that_came_out_of_a_pickle_is_torchs_own_inside() -> None:
    store, state = ParamStoreDict(), plain("x")
    state["constraints"]["x"] = copy.deepcopy(constraints.real)
    with store.scope(state):
        assert store._constraints["x"] is constraints.real


def test_a_state_that_was_left_pickles_and_copies_without_its_working_set() -> None:
    store, state = ParamStoreDict(), plain("x")
    with store.scope(state):
        store["x"]  # and gets its .unconstrained
    file = io.BytesIO()
    torch.save(state["params"], file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    for copied in (loaded, copy.copy(state["params"]), copy.deepcopy(state["params"])):
        assert type(copied) is not type(state["params"])
        assert list(copied) == ["x"]
        assert torch.equal(copied["x"], torch.zeros(2))


def test_the_tables_of_the_outer_scope_are_the_same_objects_afterwards() -> None:
    store, state = ParamStoreDict(), plain()
    store["x"] = torch.zeros(1)
    tables = store._params, store._param_to_name, store._constraints
    for _ in range(2):
        with store.scope(state):
            assert not store
            assert store._params is not tables[0]
        assert (store._params, store._param_to_name, store._constraints) == tables
        assert store._params is tables[0]


def test_a_state_keeps_no_store_alive_and_no_tensor_that_it_lost() -> None:
    store, state = ParamStoreDict(), plain("x")
    names_inside(store, state)
    lost = weakref.ref(state["params"]["x"])
    with store.scope(state):
        store.clear()
    alive = weakref.ref(store)
    del store
    assert alive() is None
    assert lost() is None
    assert names_inside(ParamStoreDict(), state) == []


@pytest.mark.parametrize("key", ["params", "constraints"])
def test_a_state_whose_tables_are_none_is_refused_by_name(key: str) -> None:
    store, state = ParamStoreDict(), plain("x")
    state[key] = None
    for verb in (store.set_state, lambda state: names_inside(store, state)):
        with pytest.raises(InvalidInputError, match=f"'{key}' is NoneType"):
            verb(state)
