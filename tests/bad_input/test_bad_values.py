"""Bad input: values, modules and extras that cannot be stored, and what does not fit on restore."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict

# -- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "value"),
    [
        (constraints.positive, torch.tensor([1.0, -1.0])),
        (constraints.positive, torch.tensor([float("nan")])),
        (constraints.unit_interval, torch.tensor([0.5, 1.5])),
        (constraints.simplex, torch.tensor([0.5, 0.6])),
        (constraints.lower_cholesky, torch.ones(2, 2)),
        (constraints.interval(0.0, torch.tensor(2.0)), torch.tensor([3.0])),
        (constraints.independent(constraints.positive, 1), torch.tensor([1.0, -1.0])),
    ],
    ids=str,
)
def test_a_value_that_its_constraint_does_not_admit_is_refused(
    constraint: constraints.Constraint, value: torch.Tensor
) -> None:
    store = ParamStoreDict()
    with pytest.raises(paramstore.InvalidValueError, match="'rate'"):
        store.setdefault("rate", value, constraint=constraint)
    assert not store
    assert not store._constraints


def test_validation_can_be_switched_off_and_follows_torch() -> None:
    bad = torch.tensor([-1.0])
    store = ParamStoreDict(validate=False)
    assert bool(store.setdefault("x", bad, constraint=constraints.positive).isnan())
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        ParamStoreDict().setdefault("x", bad, constraint=constraints.positive)
        with pytest.raises(paramstore.InvalidValueError):
            ParamStoreDict(validate=True).setdefault("x", bad, constraint=constraints.positive)
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_a_constraint_without_a_transform_is_refused_by_name() -> None:
    store = ParamStoreDict()
    with pytest.raises(paramstore.InvalidInputError, match="'x'"):
        store.setdefault("x", torch.ones(1), constraint=constraints.integer_interval(0, 3))
    assert not store


def nested() -> torch.Tensor:
    parts = [torch.ones(2), torch.ones(3)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged)


UNSTORABLE = {
    "sparse": (lambda: torch.ones(3).to_sparse(), "to_dense"),
    "meta": (lambda: torch.ones(3, device="meta"), "to_empty"),
    "nested": (nested, "to_padded_tensor"),
    "lazy": (nn.UninitializedParameter, "run one batch through its module first"),
}


@pytest.mark.parametrize(("make", "advice"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_value_that_no_commit_could_store_is_refused_when_it_is_set(
    store: ParamStoreDict, make: Callable[[], torch.Tensor], advice: str
) -> None:
    value = make()
    state = {"params": {"odd": value}, "constraints": {"odd": constraints.real}}
    calls: list[Callable[[], object]] = [
        lambda: store.__setitem__("odd", value),
        lambda: store.setdefault("odd", value),
        lambda: store.setdefault("odd", lambda: value, constraint=constraints.positive),
        lambda: store.set_state(state),
    ]
    for call in calls:
        with pytest.raises(paramstore.InvalidValueError, match=f"'odd' is .*{advice}"):
            call()
    assert list(store) == ["x", "scale"]
    assert store.commit().version == 3


def sparse_buffer() -> nn.Module:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.eye(2).to_sparse())
    return module


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(2)), "'net$$$0.weight' is not initialised yet; run "),
        (nn.LazyBatchNorm1d, "'net$$$weight' is not initialised yet; run one batch through its "),
        (lambda: nn.Linear(2, 2, device="meta"), "'net$$$weight' is on the meta device"),
        (sparse_buffer, "'net$$$mask' is sparse"),
    ],
    ids=["lazy", "lazy buffers", "meta", "sparse buffer"],
)
def test_a_module_with_a_tensor_that_no_commit_could_store_is_refused_when_it_is_bound(
    store: ParamStoreDict, make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(paramstore.UnsupportedTensorError, match=re.escape(said)):
        store.module("net", make())
    assert list(store) == ["x", "scale"]
    assert store.commit().version == 3


def test_a_lazy_module_is_bound_after_one_batch(store: ParamStoreDict) -> None:
    net = nn.Sequential(nn.LazyLinear(2))
    net(torch.zeros(1, 3))
    store.module("net", net)
    assert store.commit().version == 3


# -- copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, pickle.dumps, lambda store: torch.save(store, io.BytesIO())],
    ids=["copy", "deepcopy", "pickle", "torch.save"],
)
def test_a_store_is_not_copied_and_says_what_to_do_instead(
    store: ParamStoreDict, private: bool, make: Callable[[ParamStoreDict], object]
) -> None:
    with pytest.raises(paramstore.UsageError, match=r"store\.save\(FILE\).*get_state"):
        make(ParamStoreDict() if private else store)
    assert store.commit().version == 3


def test_the_copy_that_the_error_advises_is_one(store: ParamStoreDict) -> None:
    other = ParamStoreDict()
    other.set_state(copy.deepcopy(store.get_state()))
    with torch.no_grad():
        store["x"].fill_(9.0)
    assert other["x"].tolist() == [1.0, 1.0, 1.0]
    assert other["scale"].tolist() == store["scale"].tolist()


# -- restoring what does not fit -----------------------------------------------------------------


def test_a_module_of_another_shape_is_refused_on_restore_and_nothing_changes(path: Path) -> None:
    with paramstore.open(path) as store:
        store.module("net", nn.Linear(2, 2))
        store["x"] = torch.zeros(1)
        store.commit()
    with paramstore.open(path, scope="other") as store:
        net = store.module("net", nn.Linear(3, 2))
        store["x"] = torch.ones(1)
        before = net.weight.detach().clone()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight") as caught:
            store.restore("main@1")
        assert "(2, 2)" in str(caught.value)
        assert "(2, 3)" in str(caught.value)
        assert torch.equal(net.weight, before)
        assert store["x"].item() == 1.0


def test_a_module_of_another_dtype_is_refused_on_restore(path: Path) -> None:
    with paramstore.open(path) as store:
        net = store.module("net", nn.Linear(2, 2))
        store.commit()
        net.double()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.restore(1)


def test_a_stored_constraint_on_a_modules_parameter_is_refused(path: Path) -> None:
    with paramstore.open(path) as store:
        store.setdefault("net$$$weight", torch.ones(2, 2), constraint=constraints.positive)
        store.setdefault("net$$$bias", torch.ones(2), constraint=constraints.positive)
        store.commit()
    with paramstore.open(path) as store:
        net = nn.Linear(2, 2)
        before = net.weight.detach().clone()
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.module("net", net)
        assert torch.equal(net.weight, before)
    with paramstore.open(path, scope="other") as store:
        store.module("net", net)
        with pytest.raises(paramstore.MismatchError, match=r"net\$\$\$weight"):
            store.restore("main@1")
        assert torch.equal(net.weight, before)


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("value", [3, [3], ["x", None], b"x", torch.zeros(2)], ids=repr)
def test_a_filter_that_is_no_text_is_refused_by_its_name(
    store: ParamStoreDict, argument: str, value: Any
) -> None:
    with pytest.raises(paramstore.InvalidInputError, match=f"^{argument} is names or"):
        store.restore(1, **{argument: value})
    assert store["x"].tolist() == [1.0, 1.0, 1.0]


def test_a_single_text_is_one_pattern_and_not_its_letters(store: ParamStoreDict) -> None:
    net = store.module("net", nn.Linear(2, 2))
    net.weight.data.fill_(2.0)
    store.commit()
    net.weight.data.fill_(3.0)
    store["x"] = torch.full((3,), 3.0)
    store.restore(3, include="net$$$*")
    assert net.weight.tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert store["x"].tolist() == [3.0, 3.0, 3.0]
    store.restore(1, include="x")
    assert store["x"].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(paramstore.ParamNotFoundError, match=r"'nett\$\$\$\*'"):
        store.restore(3, include="nett$$$*")


# -- extras ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extras", "place"),
    [
        ({"a": {"b": [1, object()]}}, r"extras\['a'\]\['b'\]\[1\]"),
        ({"a": lambda: None}, r"extras\['a'\]"),
        ({"a": torch.nn.Linear(1, 1)}, r"extras\['a'\]"),
        ({"a": {"b": torch.ones(2).to_sparse()}}, r"extras\['a'\]\['b'\]"),
        ({"a": Path("x")}, r"extras\['a'\]"),
        ({3: 1}, "3"),
    ],
    ids=["object", "function", "module", "sparse", "path", "name"],
)
def test_extras_that_cannot_be_stored_are_refused_with_their_path(
    store: ParamStoreDict, extras: Any, place: str
) -> None:
    with pytest.raises(paramstore.InvalidInputError, match=place):
        store.commit(extras=extras)
    assert len(store.log()) == 2


def test_attached_state_that_cannot_be_stored_is_refused_with_its_path(
    store: ParamStoreDict,
) -> None:
    class Odd:
        def state_dict(self) -> dict[str, Any]:
            return {"deep": [0, {"here": object()}]}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise NotImplementedError

    store.attach(odd=Odd())
    with pytest.raises(paramstore.UnsupportedExtraError, match=r"'odd'.*\['deep'\]\[1\]\['here'\]"):
        store.commit()
    assert len(store.log()) == 2
