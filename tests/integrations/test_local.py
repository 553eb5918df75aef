"""Module-local parameters, which Pyro keeps out of every store, bound by ``store.module``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample, pyro_method
from pyro.optim import Adam  # type: ignore[attr-defined]  # made when it is imported
from torch import Tensor, nn
from torch.distributions import constraints

import paramstore
from paramstore import MismatchError, ParamStoreDict, UsageError
from paramstore.integrations.pyro import install, resume, uninstall
from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal

POSITIVE = constraints.positive
X, Y = torch.linspace(-1, 1, 12).reshape(6, 2), torch.linspace(0, 3, 6)


@pytest.fixture(autouse=True)
def local_pyro() -> Iterator[None]:
    """Pyro as it came but for module-local parameters, before and after each test."""
    pyro.clear_param_store()
    with pyro.settings.context(module_local_params=True):
        yield
        uninstall()
    pyro.clear_param_store()


class Inner(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.rate: Any = PyroParam(torch.full((2,), 0.5), constraint=constraints.unit_interval)
        self.shift = nn.Parameter(torch.zeros(2))
        self.register_buffer("seen", torch.zeros(1))


class Net(PyroModule):
    """Constraints, a plain network, a nested PyroModule, buffers and a shared submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: Any = PyroParam(torch.tensor(2.0), constraint=POSITIVE, event_dim=0)
        self.plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.inner: Any = Inner()
        self.again = self.inner
        self.weight: Any = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        self.inner.seen += 1
        mean = self.plain(x * self.inner.rate + self.inner.shift) @ self.weight
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    @pyro_method
    def spread(self) -> Any:
        return self.noise * 2


class Line(PyroModule):
    """Nothing but PyroParams: SVI.step knows no other module-local parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.noise: Any = PyroParam(torch.tensor(2.0), constraint=POSITIVE)
        self.shift: Any = PyroParam(torch.zeros(()))
        self.weight: Any = PyroSample(dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        mean = x @ self.weight + self.shift
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


NAMES = [
    "net$$$noise",
    "net$$$plain.0.weight",
    "net$$$plain.0.bias",
    "net$$$plain.1.weight",
    "net$$$plain.1.bias",
    "net$$$inner.rate",
    "net$$$inner.shift",
]
BUFFERS = [
    "net$$$plain.1.running_mean",
    "net$$$plain.1.running_var",
    "net$$$plain.1.num_batches_tracked",
    "net$$$inner.seen",
]


def test_parameters_are_stored_by_their_own_names_with_their_constraints(
    store: ParamStoreDict,
) -> None:
    net = store.module("net", Net())

    assert sorted(store) == sorted(NAMES)
    assert store._params["net$$$noise"] is net.noise_unconstrained
    assert store._params["net$$$inner.shift"] is net.inner.shift
    assert store["net$$$noise"].item() == pytest.approx(2.0)
    assert store._constraints["net$$$noise"] is POSITIVE
    assert store._constraints["net$$$inner.rate"] is constraints.unit_interval
    store.commit()
    assert sorted(store.at("@1")) == sorted(NAMES + BUFFERS)


def test_history_diff_and_statistics_are_of_the_constrained_value(store: ParamStoreDict) -> None:
    net = store.module("net", Net())
    store.commit()
    net.noise = torch.tensor(3.0)  # Pyro's way to set the value of a PyroParam
    with torch.no_grad():
        net.inner.rate_unconstrained.fill_(0.0)
    store.commit()

    assert [version.value for version in store.history("net$$$noise")] == pytest.approx([2.0, 3.0])
    assert store.at("@1")["net$$$noise"].item() == pytest.approx(2.0)
    assert store.history("net$$$inner.rate")[-1].mean == pytest.approx(0.5)
    assert [change.name for change in store.diff("@1", "@2").changed] == ["net$$$noise"]
    net.noise = torch.tensor(9.0)
    unconstrained = net.noise_unconstrained
    store.restore("@2")
    assert net.noise_unconstrained is unconstrained
    assert net.noise.item() == pytest.approx(3.0)
    assert net.spread().item() == pytest.approx(6.0)


def test_stored_values_go_into_the_tensors_of_a_new_module(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with paramstore.open(tmp_path / "run.db") as first:
        net = first.module("net", Net())
        net.noise = torch.tensor(7.0)
        net(X)
        first.commit()
    torch.manual_seed(1)
    with paramstore.open(tmp_path / "run.db") as again:
        fresh = Net()
        tensors = dict(fresh.named_parameters())
        again.module("net", fresh)
        assert fresh.noise.item() == pytest.approx(7.0)
        assert all(tensor is tensors[path] for path, tensor in fresh.named_parameters())
        assert exactly_equal(fresh.state_dict(), net.state_dict())
        assert again.changed() == ()


def test_a_constraint_that_differs_is_named_and_nothing_changes(tmp_path: Path) -> None:
    with paramstore.open(tmp_path / "run.db") as first:
        first.module("net", Net())
        first.commit()
    for read in (False, True):
        with paramstore.open(tmp_path / "run.db") as again:
            if read:
                again.load_all()
            net = Net()
            net.noise = PyroParam(torch.tensor(5.0), constraint=constraints.greater_than(1.0))
            with pytest.raises(MismatchError, match=r"'net\$\$\$noise': has the constraint") as e:
                again.module("net", net)
            assert "inner" not in str(e.value)
            assert net.noise.item() == pytest.approx(5.0)


def test_a_pyro_module_inside_a_plain_one_is_found(store: ParamStoreDict) -> None:
    store.module("net", nn.Sequential(nn.Linear(2, 2), Inner()))
    assert "net$$$1.rate" in store
    assert store._constraints["net$$$1.rate"] is constraints.unit_interval
    assert store._constraints["net$$$0.weight"] is constraints.real


def test_a_parameter_that_only_ends_like_a_constrained_one_keeps_its_name(
    store: ParamStoreDict,
) -> None:
    net: Any = PyroModule[nn.Linear](2, 1)  # type: ignore[call-arg, arg-type]
    net.odd_unconstrained = nn.Parameter(torch.ones(1))
    store.module("net", net)
    assert sorted(store) == ["net$$$bias", "net$$$odd_unconstrained", "net$$$weight"]


def test_a_module_that_is_not_local_is_refused_with_the_call_to_make(
    store: ParamStoreDict,
) -> None:
    with pyro.settings.context(module_local_params=False):
        net, holder = Inner(), nn.Sequential(Inner())
        for module in (net, holder):
            with pytest.raises(UsageError, match=r"enable_module_local_param\(True\)"):
                store.module("net", module)
    assert not store


def test_names_do_not_mix_with_parameters_of_the_outer_store(store: ParamStoreDict) -> None:
    install(store)
    pyro.param("noise", torch.ones(1))
    net = store.module("net", Net())
    pyro.set_rng_seed(0)
    for _ in range(3):
        net(X)
    assert set(store) == {"noise", *NAMES}
    assert store.scopes() == []


# -- training and continuing -----------------------------------------------------------------------


def run(path: Path, *, seed: int, end: int) -> tuple[list[float], dict[str, Any]]:
    """Train by SVI, from the newest snapshot; the losses, and what the last snapshot holds."""
    pyro.set_rng_seed(seed)
    with paramstore.open(path) as store, install(store):
        net = store.module("net", Line())
        guide = AutoNormal(net)
        guide(X, Y)  # sets itself up at its first call
        store.module("guide", guide)
        svi = SVI(net, guide, Adam({"lr": 0.05}), Trace_ELBO())
        store.attach(svi=svi, rng=True)
        last = resume(store, svi, X, Y)
        losses = []
        for step in range((last.step or 0) + 1 if last else 1, end + 1):
            losses.append(svi.step(X, Y))
            store.commit(step=step)
        newest: Any = store.at("@latest")
        found = {**newest, "svi": newest.state("svi"), "rng": newest.state("rng")}
    pyro.clear_param_store()
    return losses, found


def test_a_run_continues_with_the_same_bits_its_optimiser_by_these_names(tmp_path: Path) -> None:
    losses, whole = run(tmp_path / "whole.db", seed=0, end=8)
    first, _ = run(tmp_path / "parts.db", seed=0, end=3)
    second, parts = run(tmp_path / "parts.db", seed=1, end=8)

    assert first + second == losses
    assert exactly_equal(parts, whole)
    names = {"net$$$noise", "net$$$shift", "guide$$$locs.weight", "guide$$$scales.weight"}
    assert set(whole) == {*names, "svi", "rng"}
    assert set(whole["svi"]["params"]) == names


def test_a_run_of_an_elbo_module_and_a_torch_optimiser_continues_with_the_same_bits(
    tmp_path: Path,
) -> None:
    """What Pyro recommends for module-local parameters, with a network in the model."""

    def run(path: Path, seed: int, end: int) -> tuple[list[float], dict[str, Any]]:
        pyro.set_rng_seed(seed)
        with paramstore.open(path) as store:
            net = Net()
            guide = AutoNormal(net)
            elbo: Any = Trace_ELBO()(net, guide)
            elbo(X, Y)  # sets up the guide, and draws for that
            store.module("net", net)
            store.module("guide", guide)
            optim = torch.optim.Adam(elbo.parameters(), lr=0.05)
            store.attach(optim=optim, rng=True)
            last = store.resume()
            losses = []
            for step in range((last.step or 0) + 1 if last else 1, end + 1):
                optim.zero_grad()
                loss = elbo(X, Y)
                loss.backward()
                optim.step()
                losses.append(loss.item())
                store.commit(step=step)
            return losses, dict(store.at("@latest"))

    losses, whole = run(tmp_path / "whole.db", seed=0, end=6)
    first, _ = run(tmp_path / "parts.db", seed=0, end=2)
    second, parts = run(tmp_path / "parts.db", seed=1, end=6)

    assert first + second == losses
    assert exactly_equal(parts, whole)
    assert {*NAMES, *BUFFERS} < whole.keys()


def test_the_parameters_of_a_guide_have_a_history(tmp_path: Path) -> None:
    run(tmp_path / "run.db", seed=0, end=3)
    with paramstore.open(tmp_path / "run.db") as store:
        scales = store.history("guide$$$scales.weight")
        assert [version.step for version in scales] == [1, 2, 3]
        assert scales[0].mean == pytest.approx(0.1, rel=0.2)


def test_a_torch_optimiser_is_attached_as_it_is(tmp_path: Path) -> None:
    def train(path: Path, seed: int, end: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        with paramstore.open(path) as store:
            net = store.module("net", Net())
            optim = torch.optim.Adam(net.parameters(), lr=0.1)
            store.attach(optim=optim, rng=True)
            last = store.resume()
            for step in range((last.step or 0) + 1 if last else 1, end + 1):
                optim.zero_grad()
                (net.spread() + net.inner.rate.sum()).backward()
                optim.step()
                store.commit(step=step)
            state: dict[str, Any] = net.state_dict()
        return state

    train(tmp_path / "parts.db", 0, 2)
    assert exactly_equal(train(tmp_path / "parts.db", 1, 5), train(tmp_path / "whole.db", 0, 5))


def test_gradients_of_local_parameters_that_are_not_bound_are_dropped_too(
    tmp_path: Path,
) -> None:
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        pyro.param("x", torch.ones(1))
        store.commit()
        net = Net()
        svi = SVI(net, AutoNormal(net), Adam({"lr": 0.05}), Trace_ELBO())
        resume(store, svi, X, Y)
        assert all(parameter.grad is None for parameter in net.parameters())


def test_a_bound_local_module_follows_named_scopes(store: ParamStoreDict) -> None:
    nets = {}
    for name in ("a", "b"):
        with store.scope(name):
            nets[name] = store.module("net", Net())
            nets[name].noise = torch.tensor(3.0 if name == "a" else 4.0)
    with store.scope("a"):
        nets["a"].noise = torch.tensor(9.0)
    with store.scope("a"):
        store.restore("@1")
    assert nets["a"].noise.item() == pytest.approx(3.0)
    assert nets["b"].noise.item() == pytest.approx(4.0)
    assert same_bits(nets["b"].noise_unconstrained, store.at("b").unconstrained("net$$$noise"))
