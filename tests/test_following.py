"""The store holds what a bound module holds, whoever changed which of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributions import constraints
from torch.nn.utils import parametrizations, prune

import paramstore
from paramstore import ParamStoreDict
from paramstore.errors import MismatchError

WEIGHT, BIAS = "net$$$0.weight", "net$$$0.bias"


@pytest.fixture
def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 1))


@pytest.fixture
def store(path: Path, net: nn.Sequential) -> Iterator[ParamStoreDict]:
    with paramstore.open(path) as store:
        store.module("net", net)
        store.commit(step=0)
        yield store


def first(net: nn.Sequential) -> nn.Linear:
    layer = net[0]
    assert isinstance(layer, nn.Linear)
    return layer


def sevens() -> nn.Parameter:
    return nn.Parameter(torch.full((1, 2), 7.0))


# -- the module changes ------------------------------------------------------------


def test_a_replaced_parameter_is_what_is_committed(
    store: ParamStoreDict, net: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    first(net).weight = sevens()
    with caplog.at_level(logging.WARNING, "paramstore"):
        assert store.changed() == (WEIGHT,)
        assert store.commit(step=1).changed == 1
        store.commit(step=2)
    assert caplog.text.count("has other parameters than when it was bound") == 1
    assert WEIGHT in caplog.text
    assert torch.equal(store.at("@2")[WEIGHT], sevens())
    assert store[WEIGHT] is first(net).weight


def test_a_parameter_replaced_before_a_background_commit_is_in_it(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    first(net).weight = sevens()
    store.commit(wait=False).result()
    assert torch.equal(store.at("@2")[WEIGHT], sevens())


def test_a_state_dict_that_is_assigned_is_what_is_committed(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    other = nn.Sequential(nn.Linear(2, 1))
    net.load_state_dict(other.state_dict(), assign=True)
    snapshot = store.commit()
    assert torch.equal(store.at(snapshot)[WEIGHT], first(other).weight)


def test_a_layer_that_was_added_is_stored(store: ParamStoreDict, net: nn.Sequential) -> None:
    net.append(nn.Linear(1, 1))
    snapshot = store.commit()
    assert set(store.at(snapshot)) == {WEIGHT, BIAS, "net$$$1.weight", "net$$$1.bias"}
    store.restore("@1", strict=False)
    store.restore(snapshot)


def test_a_parameter_that_the_module_lost_is_stored_no_more(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    parametrizations.weight_norm(first(net))
    snapshot = store.commit()
    original = "net$$$0.parametrizations.weight.original"
    assert set(store.at(snapshot)) == {BIAS, original + "0", original + "1"}
    assert WEIGHT not in store


def test_pruning_moves_a_parameter_and_adds_a_buffer(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    prune.l1_unstructured(first(net), "weight", amount=1)
    snapshot = store.commit()
    assert set(store.at(snapshot)) == {BIAS, WEIGHT + "_orig", WEIGHT + "_mask"}


def test_what_was_deleted_from_the_store_stays_deleted(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    del store[WEIGHT]
    net.append(nn.Linear(1, 1))
    snapshot = store.commit()
    assert WEIGHT not in store.at(snapshot)
    assert WEIGHT not in store


def test_going_back_fills_the_tensor_that_the_module_holds_now(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    before = first(net).weight.detach().clone()
    first(net).weight = sevens()
    store.resume()
    assert torch.equal(first(net).weight, before)
    first(net).weight = sevens()
    store.restore("@1")
    assert torch.equal(first(net).weight, before)


# -- the store changes -------------------------------------------------------------


def test_a_value_that_is_set_goes_into_the_module(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    weight = first(net).weight
    store[WEIGHT] = torch.zeros(1, 2)
    assert first(net).weight is weight
    assert store[WEIGHT] is weight
    assert torch.equal(weight, torch.zeros(1, 2))
    assert weight.requires_grad
    with torch.no_grad():
        weight.fill_(9)
    snapshot = store.commit()
    assert torch.equal(store.at(snapshot)[WEIGHT], torch.full((1, 2), 9.0))


def test_a_value_that_is_set_after_the_module_changed_goes_into_what_it_holds_now(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    first(net).weight = sevens()
    store[WEIGHT] = torch.zeros(1, 2)
    assert torch.equal(first(net).weight, torch.zeros(1, 2))


def test_a_deleted_parameter_that_is_set_again_is_the_modules(
    store: ParamStoreDict, net: nn.Sequential
) -> None:
    del store[WEIGHT]
    store[WEIGHT] = torch.zeros(1, 2)
    assert store[WEIGHT] is first(net).weight


def test_a_file_that_is_loaded_goes_into_the_module(
    store: ParamStoreDict, net: nn.Sequential, tmp_path: Path
) -> None:
    before = {name: value.detach().clone() for name, value in store.items()}
    store.save(tmp_path / "saved.pt")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(9)
    store.load(tmp_path / "saved.pt")
    assert torch.equal(first(net).weight, before[WEIGHT])
    assert torch.equal(first(net).bias, before[BIAS])


def test_a_state_keeps_the_tensors_of_the_module(store: ParamStoreDict, net: nn.Sequential) -> None:
    state = store.get_state()
    store.set_state(state)
    assert store[WEIGHT] is first(net).weight


def test_setting_another_name_does_not_walk_over_the_modules(
    store: ParamStoreDict, net: nn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    store["other"] = torch.zeros(1)
    monkeypatch.setattr(net, "named_parameters", None)
    store["other"] = torch.ones(1)
    assert torch.equal(store["other"], torch.ones(1))


@pytest.mark.parametrize(
    "value", [torch.zeros(3), torch.zeros(1, 2, dtype=torch.float64)], ids=["shape", "dtype"]
)
def test_a_value_that_does_not_fit_changes_nothing(
    store: ParamStoreDict, net: nn.Sequential, value: torch.Tensor
) -> None:
    before = first(net).weight.detach().clone()
    with pytest.raises(MismatchError, match=r"net\$\$\$0.weight.*does not fit"):
        store[WEIGHT] = value
    state = {"params": {BIAS: torch.ones(1), WEIGHT: value, "new": torch.ones(1)}}
    with pytest.raises(MismatchError, match=r"net\$\$\$0.weight.*does not fit"):
        store.set_state(state | {"constraints": {}})
    assert torch.equal(first(net).weight, before)
    assert not torch.equal(first(net).bias, torch.ones(1))
    assert "new" not in store


def test_another_constraint_is_refused_for_what_a_module_holds(store: ParamStoreDict) -> None:
    state = store.get_state()
    state["constraints"][WEIGHT] = constraints.positive
    with pytest.raises(MismatchError, match="has the constraint"):
        store.set_state(state | {"params": {WEIGHT: torch.zeros(1, 2)}})


# -- no module ---------------------------------------------------------------------


def test_a_module_that_nobody_bound_is_told_once(
    store: ParamStoreDict, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.close()
    optim = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with paramstore.open(path) as again, caplog.at_level(logging.WARNING, "paramstore"):
        again.attach(optim=optim)
        again.resume(strict=False)
        again.commit(step=1)
        again.commit(step=2, wait=False).result()
    assert caplog.text.count("nothing is bound as module 'net'") == 1
    assert "store.module('net', …)" in caplog.text


def test_nothing_is_told_of_a_module_that_is_bound_or_read(
    store: ParamStoreDict, path: Path, net: nn.Sequential, caplog: pytest.LogCaptureFixture
) -> None:
    store.close()
    with caplog.at_level(logging.WARNING, "paramstore"):
        with paramstore.open(path) as again:
            again.module("net", net)
            again.commit(step=1)
        with paramstore.open(path) as again:
            again.load_all()
            again.commit(step=2)
    assert "nothing is bound" not in caplog.text


def test_a_module_with_a_state_that_is_not_stored_is_told_of(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Counting(nn.Linear):
        count = 0

        def get_extra_state(self) -> int:
            return self.count

        def set_extra_state(self, state: int) -> None:
            self.count = state

    with paramstore.open(path) as store, caplog.at_level(logging.WARNING, "paramstore"):
        store.module("plain", nn.Linear(1, 1))
        assert not caplog.text
        store.module("net", nn.Sequential(Counting(1, 1)))
    assert "get_extra_state() gives of '0' in module 'net' is not stored" in caplog.text
    assert "store.attach(net_extra=…)" in caplog.text
