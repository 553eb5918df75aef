"""The dictionary: what Pyro's users know, on any backend.

Part of the conformance suite; must never commit anything.
"""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch
from torch.distributions import constraints

from paramstore.errors import InvalidInputError, ParamNotFoundError
from paramstore.testing.bits import same_bits
from paramstore.testing.conformance.backend import MakeStore


def _never() -> NoReturn:
    raise AssertionError("the callable was called for a name that exists")


class DictionaryConformance:
    """Values, constraints, identity and the older methods."""

    def test_a_new_store_is_empty(self, make_store: MakeStore) -> None:
        store = make_store()
        assert not store
        assert len(store) == 0
        assert "x" not in store
        assert list(store) == list(store.keys()) == list(store.values()) == []
        assert list(store.items()) == list(store.named_parameters()) == []

    def test_a_value_that_was_set_is_found_under_its_name(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.tensor([1.0, -0.0, 3.5])
        assert store
        assert len(store) == 1
        assert "x" in store
        assert list(store) == list(store.keys()) == ["x"]
        assert same_bits(store["x"], torch.tensor([1.0, -0.0, 3.5]))
        assert [(name, value.tolist()) for name, value in store.items()] == [("x", [1, 0, 3.5])]
        assert [value.tolist() for value in store.values()] == [[1, 0, 3.5]]

    def test_names_keep_the_order_in_which_they_came(self, make_store: MakeStore) -> None:
        store = make_store()
        for name in ("b", "a", "c"):
            store[name] = torch.zeros(1)
        store["b"] = torch.ones(1)
        assert list(store) == ["b", "a", "c"]
        del store["a"]
        store["a"] = torch.zeros(1)
        assert list(store.keys()) == [name for name, _ in store.items()] == ["b", "c", "a"]

    def test_what_is_stored_is_a_leaf_that_trains(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.ones(3)
        store.setdefault("y", torch.ones(3), constraint=constraints.positive)
        for _, unconstrained in store.named_parameters():
            assert unconstrained.is_leaf
            assert unconstrained.requires_grad

    def test_setdefault_returns_the_constrained_value_and_stores_the_other(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        value = store.setdefault("scale", torch.full((2,), 2.0), constraint=constraints.positive)
        torch.testing.assert_close(value, torch.full((2,), 2.0))
        stored = dict(store.named_parameters())["scale"]
        torch.testing.assert_close(stored, torch.full((2,), 2.0).log())
        assert value.unconstrained() is stored  # type: ignore[attr-defined]

    def test_setdefault_keeps_the_value_and_the_constraint_of_a_name_that_exists(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        again = store.setdefault("scale", torch.full((5,), -7.0), constraint=constraints.real)
        assert again.tolist() == [1.0, 1.0]
        assert store._constraints["scale"] is constraints.positive

    def test_setdefault_calls_a_callable_once_and_only_for_a_new_name(
        self, make_store: MakeStore
    ) -> None:
        store, calls = make_store(), []

        def value() -> torch.Tensor:
            calls.append(1)
            return torch.zeros(2)

        store.setdefault("x", value)
        store.setdefault("x", _never)
        assert calls == [1]

    def test_setting_a_name_keeps_its_constraint(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        store["scale"] = torch.full((2,), 4.0)
        torch.testing.assert_close(store["scale"], torch.full((2,), 4.0))
        stored = dict(store.named_parameters())["scale"]
        torch.testing.assert_close(stored, torch.full((2,), 4.0).log())

    def test_a_gradient_of_the_value_reaches_what_is_stored(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.full((2,), 3.0), constraint=constraints.positive)
        store["scale"].sum().backward()
        gradient = dict(store.named_parameters())["scale"].grad
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full((2,), 3.0))

    def test_a_change_in_place_is_the_new_value(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        with torch.no_grad():
            for _, unconstrained in store.named_parameters():
                unconstrained.add_(1.0)
        assert store["x"].tolist() == [1.0, 1.0]
        torch.testing.assert_close(store["scale"], torch.ones(2).exp())

    def test_a_tensor_bound_that_moves_moves_the_value(self, make_store: MakeStore) -> None:
        store, bound = make_store(), torch.tensor(1.0)
        store.setdefault("x", torch.tensor(3.0), constraint=constraints.greater_than(bound))
        torch.testing.assert_close(store["x"], torch.tensor(3.0))
        bound.fill_(11.0)
        torch.testing.assert_close(store["x"], torch.tensor(13.0))

    def test_deleting_a_name_removes_all_of_it(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        stored = dict(store.named_parameters())["scale"]
        del store["scale"]
        assert "scale" not in store
        assert store.param_name(stored) is None
        assert "scale" not in store._constraints
        store["scale"] = torch.tensor([-1.0])  # no constraint is left over
        assert store["scale"].tolist() == [-1.0]

    @pytest.mark.parametrize("how", ["get", "delete", "get_param"])
    def test_an_unknown_name_is_a_key_error_that_says_so(
        self, make_store: MakeStore, how: str
    ) -> None:
        store = make_store()
        store["scale"] = torch.ones(1)
        with pytest.raises(KeyError, match="'scal'") as caught:
            if how == "get":
                store["scal"]
            elif how == "delete":
                del store["scal"]
            else:
                store.get_param("scal")
        assert isinstance(caught.value, ParamNotFoundError)
        assert list(store) == ["scale"]

    def test_get_is_that_of_a_dict_until_a_constraint_is_given(self, make_store: MakeStore) -> None:
        store = make_store()
        assert store.get("x") is None
        default = torch.ones(1)
        assert store.get("x", default) is default
        assert "x" not in store
        value = store.get("x", lambda: torch.full((2,), 2.0), constraint=constraints.positive)
        torch.testing.assert_close(value, torch.full((2,), 2.0))
        assert "x" in store
        assert store.get("x") is not None

    def test_get_param_is_setdefault_or_a_look_up(self, make_store: MakeStore) -> None:
        store = make_store()
        made = store.get_param("x", torch.ones(2), constraints.positive, 1)
        torch.testing.assert_close(made, torch.ones(2))
        torch.testing.assert_close(store.get_param("x"), torch.ones(2))
        torch.testing.assert_close(store.get_param("x", _never, event_dim=0), torch.ones(2))

    def test_match_is_anchored_at_the_start_only(self, make_store: MakeStore) -> None:
        store = make_store()
        for name in ("loc.a", "loc.b", "my loc.", "scale"):
            store[name] = torch.zeros(1)
        assert list(store.match("loc")) == ["loc.a", "loc.b"]
        assert list(store.match(r".*loc\.$")) == ["my loc."]
        assert store.match("nothing") == {}
        assert store.match("scale")["scale"] is store["scale"]

    def test_param_name_finds_the_name_of_a_stored_tensor(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        stored = dict(store.named_parameters())["scale"]
        assert store.param_name(stored) == "scale"
        assert store.param_name(torch.ones(2)) is None

    def test_overwriting_a_name_forgets_the_old_tensor(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        old = store["x"]
        store["x"] = torch.ones(2)
        assert store.param_name(old) is None
        assert store.param_name(store["x"]) == "x"
        assert len(store._param_to_name) == 1

    def test_the_old_methods_work_and_warn(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        with pytest.warns(DeprecationWarning, match="keys"):
            assert list(store.get_all_param_names()) == ["x"]
        with pytest.warns(DeprecationWarning, match="replace_param"):
            store.replace_param("x", torch.ones(2), store["x"])
        assert store["x"].tolist() == [1.0, 1.0]

    def test_replace_param_refuses_a_tensor_that_is_not_the_old_one(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"], store["y"] = torch.zeros(2), torch.zeros(2)
        with (
            pytest.warns(DeprecationWarning, match="replace_param"),
            pytest.raises(InvalidInputError, match="'x'"),
        ):
            store.replace_param("x", torch.ones(2), store["y"])
        assert store["x"].tolist() == [0.0, 0.0]

    def test_clear_empties_the_dictionary(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        held = store["scale"]
        store.clear()
        assert not store
        assert "scale" not in store._constraints
        assert not store._param_to_name
        torch.testing.assert_close(held, torch.ones(2))
