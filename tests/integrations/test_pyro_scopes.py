"""Pyro in the scopes of a store: models trained in turn, and memory that stays flat."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import scope_runs
import torch
from pyro.infer import TraceGraph_ELBO
from pyro.params.param_store import ParamStoreDict as StockStore
from torch import Tensor
from torch.distributions import constraints

import paramstore
from paramstore import ParamStoreDict
from paramstore.integrations.pyro import install
from paramstore.testing.exact import exactly_equal

MANY = 100_000
AVERAGE = "__baseline_avg_downstream_cost_coin"


pytestmark = pytest.mark.usefixtures("stock_pyro")


# -- two models trained in turn ----------------------------------------------------------------


@pytest.fixture(scope="session")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """What each run ended with."""
    folder = tmp_path_factory.mktemp("scope-runs")
    subprocess.run([sys.executable, "-W", "error", scope_runs.__file__, str(folder)], check=True)

    def load(way: str, role: str) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(folder / f"{way}.{role}", weights_only=False)
        return found

    return load


@pytest.mark.parametrize("role", ["whole", "resumed"])
@pytest.mark.parametrize("way", scope_runs.WAYS)
def test_two_models_in_turn_end_with_the_bits_of_two_states_in_stock_pyro(
    ends: Callable[[str, str], dict[str, Any]], way: str, role: str
) -> None:
    wanted, found = ends(way, "stock"), ends(way, role)
    for scope in scope_runs.SCOPES:
        for part in ("params", "optimiser"):
            assert found[scope][part].keys() == {"loc", "scale"}
            assert exactly_equal(found[scope][part], wanted[scope][part]), (scope, part)
    assert torch.equal(found["torch"], wanted["torch"])
    first, second = (wanted[scope]["params"]["loc"] for scope in scope_runs.SCOPES)
    assert not torch.equal(first, second)  # or one of them was not trained


# -- memory stays flat -------------------------------------------------------------------------


def private(folder: Path) -> ParamStoreDict:
    return ParamStoreDict()


def in_memory(folder: Path) -> ParamStoreDict:
    return paramstore.open("sqlite://")


def on_a_file(folder: Path) -> ParamStoreDict:
    return paramstore.open(folder / "run.db")


STORES = pytest.mark.parametrize("make", [private, on_a_file])
Make = Callable[[Path], ParamStoreDict]


@pytest.fixture
def store(make: Make, tmp_path: Path) -> Iterator[ParamStoreDict]:
    with make(tmp_path) as made:
        install(made)
        yield made


class Growth:
    """How many objects, tensors among them, there are more than before."""

    def __init__(self) -> None:
        self.before = self.count()

    def count(self) -> tuple[int, int]:
        gc.collect()
        alive = gc.get_objects()
        return len(alive), sum(type(thing) in (Tensor, torch.nn.Parameter) for thing in alive)

    def check(self, *, tensors: int) -> None:
        objects, alive = (
            now - before for now, before in zip(self.count(), self.before, strict=True)
        )
        assert alive <= tensors
        assert objects < MANY / 100, "something keeps an object for every hundredth round or more"


def tables(store: Any) -> dict[str, int]:
    names = ("_params", "_param_to_name", "_constraints")
    return {name: len(getattr(store, name)) for name in names}


@STORES
def test_overwriting_one_name_100_000_times_keeps_memory_flat(store: ParamStoreDict) -> None:
    value, growth = torch.ones(3), Growth()
    with torch.no_grad():
        for _ in range(MANY):
            store["average"] = 0.9 * pyro.param("average", value) + 0.1 * value
    assert set(tables(store).values()) == {1}
    growth.check(tensors=1)


@pytest.mark.parametrize("make", [private])
def test_overwriting_a_constrained_name_100_000_times_keeps_memory_flat(
    store: ParamStoreDict,
) -> None:
    value, growth = torch.ones(3), Growth()
    pyro.param("scale", value, constraint=constraints.positive)
    for _ in range(MANY):
        store["scale"] = value
    assert set(tables(store).values()) == {1}
    growth.check(tensors=1)


def test_stock_pyro_keeps_every_tensor_that_was_overwritten() -> None:
    stock: Any = StockStore()
    growth = Growth()
    for _ in range(100):
        stock["average"] = torch.ones(3)
    assert tables(stock) == {"_params": 1, "_param_to_name": 100, "_constraints": 1}
    with pytest.raises(AssertionError):
        growth.check(tensors=1)


@pytest.mark.parametrize("make", [private, on_a_file])
def test_the_running_baselines_of_pyro_leave_nothing_behind(store: ParamStoreDict) -> None:
    def model() -> None:
        pyro.sample("coin", dist.Bernoulli(0.5))

    def guide() -> None:
        odds = pyro.param("odds", torch.tensor(0.3), constraint=constraints.unit_interval)
        infer: Any = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}}
        pyro.sample("coin", dist.Bernoulli(odds), infer=infer)

    averages = []
    for _ in range(50):  # without PyroOptim, which keeps an optimiser for each of them
        TraceGraph_ELBO().loss_and_grads(model, guide)
        averages.append(weakref.ref(dict(store.named_parameters())[AVERAGE]))
    gc.collect()
    assert [average() is not None for average in averages] == [False] * 49 + [True]
    assert set(tables(store).values()) == {2}
    assert store.commit().version == 1
    assert torch.equal(store.at("main")[AVERAGE], store[AVERAGE])


@pytest.mark.parametrize("make", [private])
def test_100_000_anonymous_scopes_keep_memory_flat(store: ParamStoreDict) -> None:
    outer, growth = pyro.param("outer", torch.zeros(2)), Growth()
    for _ in range(MANY):
        with store.scope():
            pyro.param("inner", outer)
    growth.check(tensors=0)
    assert list(store) == ["outer"]
    assert store.param_name(outer) == "outer"


@pytest.mark.parametrize("make", [in_memory])
def test_100_000_anonymous_scopes_of_a_database_keep_memory_flat(store: ParamStoreDict) -> None:
    pyro.param("outer", torch.zeros(2))
    growth = Growth()
    for _ in range(MANY):
        with store.scope():
            pass
    growth.check(tensors=0)
    assert list(store) == ["outer"]
    assert store.scopes() == []  # nothing was in them, so nothing was written


@STORES
def test_100_000_times_into_plain_states_keeps_memory_flat(store: ParamStoreDict) -> None:
    pyro.param("outer", torch.zeros(2))
    states: list[dict[str, Any]] = [{"params": {}, "constraints": {}} for _ in range(2)]
    value, growth = torch.zeros(2), Growth()
    for i in range(MANY):
        with store.scope(states[i % 2]):
            pyro.param("inner", value)
    growth.check(tensors=2)
    assert list(store) == ["outer"]
    assert [list(state["params"]) for state in states] == [["inner"], ["inner"]]
    assert set(tables(store).values()) == {1}
