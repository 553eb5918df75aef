"""Values and tensors: which tensor becomes the stored one, and which values are refused.

Part of the conformance suite; must never commit anything.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributions import constraints

from paramstore.errors import InvalidValueError
from paramstore.testing.bits import same_bits
from paramstore.testing.conformance.backend import MakeStore


class ValuesConformance:
    """Which tensor is the stored one, and what is refused without changing anything."""

    def test_a_leaf_without_constraint_is_stored_itself(self, make_store: MakeStore) -> None:
        store = make_store()
        plain, parameter = torch.zeros(3), torch.nn.Parameter(torch.zeros(3))
        store["plain"], store["parameter"] = plain, parameter
        assert store["plain"] is plain
        assert plain.requires_grad
        assert store["parameter"] is parameter
        assert parameter.unconstrained() is parameter  # type: ignore[attr-defined]

    def test_a_channels_last_parameter_is_stored_itself(self, make_store: MakeStore) -> None:
        store = make_store()
        weight = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
        parameter = torch.nn.Parameter(weight)
        store["weight"] = parameter
        assert store["weight"] is parameter
        assert parameter.is_contiguous(memory_format=torch.channels_last)

    def test_the_result_of_a_calculation_is_detached(self, make_store: MakeStore) -> None:
        store = make_store()
        source = torch.ones(3, requires_grad=True)
        store["x"] = source * 2
        assert store["x"].is_leaf
        assert store["x"].requires_grad
        assert store["x"].tolist() == [2.0, 2.0, 2.0]
        store["x"].sum().backward()
        assert source.grad is None

    def test_what_a_constraint_transforms_is_stored_contiguous(self, make_store: MakeStore) -> None:
        store = make_store()
        store.setdefault("scale", torch.rand(3, 4).add(1).t(), constraint=constraints.positive)
        assert dict(store.named_parameters())["scale"].is_contiguous()
        assert store["scale"].shape == (4, 3)

    def test_two_names_of_one_tensor_both_see_its_changes(self, make_store: MakeStore) -> None:
        store, tensor = make_store(), torch.zeros(2)
        store["a"] = tensor
        store["b"] = tensor
        assert store["a"] is store["b"] is tensor
        assert store.param_name(tensor) in {"a", "b"}
        del store["b"]
        assert store["a"] is tensor
        assert store.param_name(tensor) == "a"
        del store["a"]
        assert store.param_name(tensor) is None

    def test_a_value_copies_deeply(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        twin = copy.deepcopy(store["x"])
        assert twin is not store["x"]
        assert same_bits(twin, store["x"])

    @pytest.mark.parametrize(
        "value",
        [torch.arange(3), torch.tensor([True]), 3.0, None, [1.0]],
        ids=["integers", "booleans", "float", "None", "list"],
    )
    def test_a_value_that_cannot_train_is_refused_by_name(
        self, make_store: MakeStore, value: object
    ) -> None:
        store = make_store()
        store["x"] = torch.ones(2)
        with pytest.raises(InvalidValueError, match="'x'"):
            store["x"] = value  # type: ignore[assignment]
        with pytest.raises(InvalidValueError, match="'new'"):
            store["new"] = value  # type: ignore[assignment]
        assert list(store) == ["x"]
        assert store["x"].tolist() == [1.0, 1.0]
        assert set(store._constraints) == {"x"}

    def test_a_value_that_its_constraint_does_not_admit_is_refused_by_name(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        with pytest.raises(InvalidValueError, match="'scale'"):
            store.setdefault("scale", torch.tensor([-1.0]), constraint=constraints.positive)
        assert "scale" not in store
        assert "scale" not in store._constraints
        store.setdefault("scale", torch.ones(1), constraint=constraints.positive)
        with pytest.raises(InvalidValueError, match="'scale'"):
            store["scale"] = torch.tensor([-1.0])
        assert store["scale"].tolist() == [1.0]

    def test_a_callable_that_raises_leaves_nothing_behind(self, make_store: MakeStore) -> None:
        store = make_store()

        def broken() -> torch.Tensor:
            raise OSError("the data is not there")

        with pytest.raises(OSError, match="the data is not there"):
            store.setdefault("scale", broken, constraint=constraints.positive)
        assert "scale" not in store
        assert "scale" not in store._constraints
        store["scale"] = torch.tensor([-1.0])
        assert store["scale"].tolist() == [-1.0]

    def test_a_value_that_is_right_up_to_rounding_is_admitted(self, make_store: MakeStore) -> None:
        store = make_store()
        generator = torch.Generator().manual_seed(0)
        weights = torch.randn(100_000, generator=generator).mul(3).softmax(-1)
        assert not constraints.simplex.check(weights)
        store.setdefault("weights", weights, constraint=constraints.simplex)
        torch.testing.assert_close(store["weights"], weights)
