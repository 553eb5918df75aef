"""Pyro on a store: its singleton, its optimisers, and runs that continue bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro_runs
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.util import zero_grads
from pyro.nn import PyroModule, PyroParam
from pyro.optim import Adam, ExponentialLR, PyroOptim  # type: ignore[attr-defined]
from pyro.params.param_store import ParamStoreDict as StockStore
from pyro.poutine.runtime import _PYRO_PARAM_STORE
from torch import Tensor, nn
from torch.distributions import constraints

import paramstore
from paramstore import MismatchError, ParamStoreDict, UsageError
from paramstore.attached import apply, capture
from paramstore.integrations.pyro import install, resume, uninstall
from paramstore.testing.bits import same_bits
from paramstore.testing.exact import exactly_equal

IMPORTED_EARLIER: Any = _PYRO_PARAM_STORE
"""What a module has that imported Pyro's store before another was installed."""


pytestmark = pytest.mark.usefixtures("stock_pyro")


def pyro_store() -> Any:
    return pyro.get_param_store()


# -- the same bits -----------------------------------------------------------------------------


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every combination, whole and killed and resumed, each in a process of its own."""
    folder = tmp_path_factory.mktemp("runs")
    subprocess.run([sys.executable, "-W", "error", pyro_runs.__file__, folder], check=True)
    return folder


@pytest.mark.parametrize("combination", pyro_runs.COMBINATIONS)
def test_a_killed_run_ends_with_the_bits_of_one_that_never_was(
    runs: Path, combination: str
) -> None:
    whole = torch.load(runs / f"{combination}.whole", weights_only=False)
    resumed = torch.load(runs / f"{combination}.resumed", weights_only=False)

    assert whole.keys() == resumed.keys()
    for part in whole:
        assert exactly_equal(resumed[part], whole[part]), (
            f"{part}, kill at {pyro_runs.kill_at(combination)}"
        )


def test_the_runs_were_killed_between_commits_and_continued(runs: Path) -> None:
    assert len({pyro_runs.kill_at(name) for name in pyro_runs.COMBINATIONS}) > 3
    for combination in pyro_runs.COMBINATIONS:
        with paramstore.open(runs / f"{combination}.db", readonly=True) as opened:
            steps = [snapshot.step for snapshot in opened.log()]
        assert steps == list(range(pyro_runs.STEPS, 0, -pyro_runs.EVERY))


# -- small runs in this process ----------------------------------------------------------------

DATA = torch.tensor([0.3, 0.1, 0.9, 0.4])


def model(data: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)


def guide(data: Tensor) -> None:
    loc = pyro.param("loc_q", torch.tensor(0.5))
    scale = pyro.param("scale_q", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("loc", dist.Normal(loc, scale))


def make_svi(**options: Any) -> SVI:
    optim = pyro.optim.ClippedAdam({"lr": 0.1, **options})
    return SVI(model, guide, optim, Trace_ELBO())


def train(svi: SVI, steps: int) -> None:
    for _ in range(steps):
        svi.step(DATA)


def values(store: ParamStoreDict) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in store.named_parameters()}


def test_on_a_new_run_resume_does_nothing_at_all(store: ParamStoreDict) -> None:
    install(store)
    svi = make_svi()
    store.attach(svi=svi, rng=True)
    before = torch.get_rng_state()

    assert resume(store, svi, DATA) is None

    assert torch.equal(torch.get_rng_state(), before)
    assert not store


def test_resume_wants_the_store_installed(store: ParamStoreDict) -> None:
    with pytest.raises(UsageError, match="install"):
        resume(store, make_svi(), DATA)


def test_resume_leaves_no_gradient_of_its_own_step(store: ParamStoreDict) -> None:
    install(store)
    svi = make_svi()
    store.attach(optim=svi.optim, rng=True)
    train(svi, 2)
    store.commit(step=2)
    pyro.clear_param_store()

    svi = make_svi()
    store.attach(optim=svi.optim)
    last = resume(store, svi, DATA)

    assert last is not None
    assert last.step == 2
    gradients = [tensor.grad for _, tensor in store.named_parameters()]
    assert all(grad is None or not grad.any() for grad in gradients)


def test_restoring_in_the_same_process_repeats_the_same_bits(store: ParamStoreDict) -> None:
    install(store)
    svi = make_svi(lrd=0.9)
    store.attach(svi=svi, rng=True)
    train(svi, 3)
    store.commit(step=3)
    train(svi, 4)
    wanted, state = values(store), capture(svi)
    before = dict(store.named_parameters())

    store.restore("main@1")
    train(svi, 4)

    assert exactly_equal(values(store), wanted)
    assert exactly_equal(capture(svi), state)
    assert all(tensor is before[name] for name, tensor in store.named_parameters())


def test_a_parameter_younger_than_the_snapshot_starts_afresh(store: ParamStoreDict) -> None:
    install(store)
    optim = Adam({"lr": 0.1})
    store.attach(optim=optim)

    def step(*names: str) -> None:
        for name in names:
            pyro.param(name, torch.zeros(2))
            store._params[name].grad = torch.ones(2)
        optim([store._params[name] for name in names])

    step("old")
    store.commit()
    step("old", "new")
    after = values(store)

    store.restore("main@1")
    assert list(store) == ["old"]
    step("old", "new")

    assert exactly_equal(values(store), after)
    assert optim.get_state()["new"]["state"][0]["step"].item() == 1


def test_momentum_moves_a_parameter_without_gradient_after_resuming_too(
    store: ParamStoreDict,
) -> None:
    """Pyro leaves gradients of zeros behind, and a step with one differs from a step without."""
    install(store)
    optim = pyro.optim.ClippedAdam({"lr": 0.1})
    store.attach(optim=optim)
    value = pyro.param("a", torch.zeros(2))
    value.grad = torch.ones(2)
    optim([value])
    zero_grads([value])
    store.commit()
    optim([value])
    wanted = values(store)

    store.restore("main@1")
    optim([value])

    assert exactly_equal(values(store), wanted)


# -- the state of optimisers -------------------------------------------------------------------


def named(optim: PyroOptim) -> list[str]:
    return sorted(capture(optim)["params"])  # type: ignore[index]


def test_state_that_waits_for_its_parameter_is_not_lost(tmp_path: Path) -> None:
    with paramstore.open(tmp_path / "run.db") as first, install(first):
        svi = make_svi()
        first.attach(optim=svi.optim)
        train(svi, 2)
        wanted: Any = capture(svi.optim)
        first.commit()
    pyro.clear_param_store()
    with paramstore.open(tmp_path / "run.db") as again, install(again):
        svi = make_svi()
        again.attach(optim=svi.optim)
        again.resume()  # before any parameter is read

        assert svi.optim.optim_objs == {}
        assert exactly_equal(capture(svi.optim)["params"], wanted["params"])  # type: ignore[index]


def test_state_belongs_to_the_working_set_and_never_to_none(store: ParamStoreDict) -> None:
    install(store)
    svi = make_svi()
    train(svi, 1)
    assert named(svi.optim) == ["loc_q", "scale_q"]

    del store["loc_q"]  # its optimiser stays behind, and has no name any more
    svi.optim.set_state({None: {}, "elsewhere": {}})
    assert named(svi.optim) == ["scale_q"]

    with store.scope():
        assert named(svi.optim) == []
        train(svi, 1)
        assert named(svi.optim) == ["loc_q", "scale_q"]
    assert named(svi.optim) == ["scale_q"]


def test_loading_leaves_the_state_of_other_working_sets_alone(store: ParamStoreDict) -> None:
    install(store)
    svi = make_svi()
    train(svi, 1)
    outer = capture(svi.optim)
    with store.scope():
        train(svi, 1)
        inner = capture(svi.optim)
        train(svi, 1)
        apply(svi.optim, inner)
        assert exactly_equal(capture(svi.optim), inner)
    assert exactly_equal(capture(svi.optim), outer)


def test_a_scheduler_and_its_optimiser_are_both_loaded_in_place(store: ParamStoreDict) -> None:
    install(store)
    optim = ExponentialLR(
        {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1.0, "momentum": 0.9}, "gamma": 0.5}
    )
    svi = SVI(model, guide, optim, Trace_ELBO())
    train(svi, 2)
    optim.step()
    state = capture(optim)
    objects = list(optim.optim_objs.values())
    train(svi, 1)
    optim.step()

    apply(optim, state)

    assert exactly_equal(capture(optim), state)
    assert list(optim.optim_objs.values()) == objects
    assert all(obj.get_last_lr() == [0.5] for obj in objects)


# -- the singleton -----------------------------------------------------------------------------


def test_pyro_writes_into_the_installed_store(store: ParamStoreDict) -> None:
    install(store)

    value: Any = pyro.param("scale", torch.tensor([2.0]), constraint=constraints.positive)

    assert pyro_store() is store
    assert torch.equal(store["scale"], value)
    assert value.unconstrained() is dict(store.named_parameters())["scale"]
    store.commit()
    pyro.clear_param_store()
    assert not store
    assert [version.version for version in store.history("scale")] == [1]


def test_who_imported_pyros_object_earlier_sees_the_store(store: ParamStoreDict) -> None:
    install(store)
    pyro.param("a", torch.ones(1))

    assert isinstance(IMPORTED_EARLIER, ParamStoreDict)
    assert list(IMPORTED_EARLIER) == ["a"]
    with IMPORTED_EARLIER.scope():
        pyro.param("b", torch.ones(1))
        assert list(store) == list(IMPORTED_EARLIER) == ["b"]
    assert IMPORTED_EARLIER._params is store._params
    IMPORTED_EARLIER.clear()
    assert not store
    assert not IMPORTED_EARLIER


def test_what_pyro_holds_is_carried_over_the_same_tensors(store: ParamStoreDict) -> None:
    net = nn.Linear(2, 1)
    pyro.module("net", net)
    pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    before = dict(pyro_store().named_parameters())

    install(store)

    assert list(store) == ["net$$$weight", "net$$$bias", "scale"]
    assert all(tensor is before[name] for name, tensor in store.named_parameters())
    assert store._params["net$$$weight"] is net.weight
    assert store._constraints["scale"] is constraints.positive
    assert store.param_name(net.bias) == "net$$$bias"


def test_names_that_both_hold_are_listed_and_nothing_changes(store: ParamStoreDict) -> None:
    for name in ("a", "b", "mine"):
        store[name] = torch.zeros(1)
    for name in ("b", "a", "theirs"):
        pyro.param(name, torch.ones(1))

    with pytest.raises(MismatchError, match=r"'a', 'b'; .*clear_param_store"):
        install(store)

    assert type(pyro_store()) is StockStore
    assert list(store) == ["a", "b", "mine"]
    assert list(pyro_store()) == ["b", "a", "theirs"]


def test_uninstall_leaves_pyro_its_own_class_with_the_current_tensors(
    store: ParamStoreDict,
) -> None:
    install(store)
    pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    tensor = dict(store.named_parameters())["scale"]

    uninstall()
    uninstall()

    stock = pyro_store()
    assert type(stock) is StockStore
    assert stock is IMPORTED_EARLIER
    assert type(stock._params) is dict
    assert stock._params == {"scale": tensor}
    assert stock._params["scale"] is tensor
    assert stock._constraints["scale"] is constraints.positive
    pyro.param("later", torch.ones(1))
    assert list(store) == ["scale"]
    assert torch.equal(store["scale"], stock["scale"])


def test_uninstall_brings_what_nobody_has_read(tmp_path: Path) -> None:
    with paramstore.open(tmp_path / "run.db") as first:
        first["a"] = torch.tensor([1.0, 2.0])
        first.commit()
    with paramstore.open(tmp_path / "run.db") as again:
        install(again)
        uninstall()
        assert pyro.param("a").tolist() == [1.0, 2.0]


def test_after_uninstall_a_store_can_be_installed_again(store: ParamStoreDict) -> None:
    install(store)
    uninstall()
    install(store)
    pyro.param("a", torch.ones(1))
    assert list(store) == ["a"]


def test_effect_handlers_see_params_of_the_store(store: ParamStoreDict) -> None:
    install(store)
    with poutine.trace(param_only=True) as trace:
        pyro.param("seen", torch.ones(1))
        with poutine.block():
            pyro.param("hidden", torch.ones(1))
    assert list(trace.trace.nodes) == ["seen"]
    assert list(store) == ["seen", "hidden"]


def test_pyro_modules_live_in_the_store(store: ParamStoreDict) -> None:
    class Net(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.ones(2), constraint=constraints.positive)
            self.linear: Any = PyroModule[nn.Linear](2, 1)  # type: ignore[call-arg, arg-type]

        def forward(self, x: Tensor) -> Any:
            return self.linear(x * self.scale)

    install(store)
    net: Any = Net()
    net(torch.ones(1, 2))

    assert sorted(store) == ["linear.bias", "linear.weight", "scale"]
    assert all(isinstance(tensor, nn.Parameter) for _, tensor in store.named_parameters())
    assert store._params["scale"] is net.scale_unconstrained
    store.commit()
    with torch.no_grad():
        net.scale_unconstrained += 1
    store.restore("main@1")
    assert torch.equal(net.scale, torch.ones(2))
    del net.linear
    assert list(store) == ["scale"]


def test_pyro_module_continues_a_run_unchanged(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with paramstore.open(tmp_path / "run.db") as first:
        install(first)
        trained: Any = pyro.module("net", nn.Linear(2, 1))
        first.commit()
        uninstall()
    pyro.clear_param_store()
    with paramstore.open(tmp_path / "run.db") as again:
        install(again)
        net = nn.Linear(2, 1)
        pyro.module("net", net)
        assert same_bits(net.weight, trained.weight)
        assert again._params["net$$$weight"] is net.weight


def test_an_autoguide_resumes_in_a_fresh_store_object(tmp_path: Path) -> None:
    def run(seed: int, end: int) -> dict[str, Tensor]:
        pyro.set_rng_seed(seed)
        with paramstore.open(tmp_path / "run.db") as store:
            install(store)
            svi = SVI(model, AutoNormal(model), Adam({"lr": 0.1}), Trace_ELBO())
            store.attach(svi=svi, rng=True)
            last = resume(store, svi, DATA)
            for step in range((last.step or 0) + 1 if last else 1, end + 1):
                svi.step(DATA)
                store.commit(step=step)
            found = values(store)
            uninstall()
        pyro.clear_param_store()
        return found

    whole = run(0, 6)
    (tmp_path / "run.db").unlink()
    run(0, 3)
    assert exactly_equal(run(1, 6), whole)


def test_without_pyro_the_import_says_what_to_install() -> None:
    code = "import sys; sys.modules['pyro'] = None; import paramstore.integrations.pyro"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'paramstore[pyro]'" in found.stderr
