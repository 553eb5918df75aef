"""The state of Pyro's optimisers in snapshots: every kind, by parameter name, scope by scope."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam, PyroOptim  # type: ignore[attr-defined]  # made when it is imported
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.multi import (
    MixedMultiOptimizer,
    MultiOptimizer,
    Newton,
    PyroMultiOptimizer,
    TorchMultiOptimizer,
)
from torch import Tensor, nn
from torch.distributions import constraints

import paramstore
from paramstore import InvalidInputError, MismatchError, ParamStoreDict, UsageError
from paramstore.attached import capture
from paramstore.integrations.pyro import install, resume, uninstall
from paramstore.testing.exact import exactly_equal

pytestmark = pytest.mark.usefixtures("stock_pyro")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParamStoreDict]:
    with paramstore.open(tmp_path / "run.db") as opened, install(opened):
        yield opened


def step(store: ParamStoreDict, optim: Any, *names: str, grad: float = 1.0) -> None:
    """One step of the named parameters, which are made where they are new."""
    for name in names:
        pyro.param(name, torch.zeros(2))
        store._params[name].grad = torch.tensor([grad, 2 * grad])
    optim([store._params[name] for name in names])


def values(store: ParamStoreDict) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in store.named_parameters()}


# -- every optimiser and every scheduler ---------------------------------------------------------

OPTIMISERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "AdagradRMSProp",
    "Adam",
    "AdamW",
    "Adamax",
    "ClippedAdam",
    "DCTAdam",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
]
OPTIONS: dict[str, dict[str, float]] = {
    "AdagradRMSProp": {"eta": 0.1},
    "ClippedAdam": {"lr": 0.1, "lrd": 0.99},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


def decay(epoch: int) -> float:
    return 0.9**epoch


SCHEDULERS: dict[str, dict[str, Any]] = {
    "ConstantLR": {},
    "CosineAnnealingLR": {"T_max": 5},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 2},
    "ExponentialLR": {"gamma": 0.9},
    "LambdaLR": {"lr_lambda": decay},
    "LinearLR": {},
    "MultiplicativeLR": {"lr_lambda": decay},
    "MultiStepLR": {"milestones": [1, 3]},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
    "PolynomialLR": {"total_iters": 7},
    "ReduceLROnPlateau": {"patience": 0},
    "StepLR": {"step_size": 2},
}


def make_optimiser(name: str) -> PyroOptim:
    made: PyroOptim = getattr(pyro.optim, name)(OPTIONS.get(name, {"lr": 0.1}))
    return made


def make_scheduler(name: str) -> Any:
    options = {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1, "momentum": 0.9}}
    return getattr(pyro.optim, name)({**options, **SCHEDULERS[name]})


def train(store: ParamStoreDict, optim: PyroOptim, first: int, last: int) -> None:
    for number in range(first, last):
        step(store, optim, "a", "b", grad=float(number))
        if isinstance(optim, PyroLRScheduler):
            loss = (1.0,) if optim.pt_scheduler_constructor.__name__ == "ReduceLROnPlateau" else ()
            optim.step(*loss)


@pytest.mark.parametrize("live", [False, True], ids=["waiting", "live"])
@pytest.mark.parametrize("name", [*OPTIMISERS, *SCHEDULERS])
def test_every_optimiser_continues_with_the_same_bits(
    tmp_path: Path, name: str, live: bool
) -> None:
    make = make_scheduler if name in SCHEDULERS else make_optimiser
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = make(name)
        store.attach(optim=optim)
        train(store, optim, 0, 3)
        store.commit()
        train(store, optim, 3, 6)
        wanted, state = values(store), capture(optim)
    pyro.clear_param_store()
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = make(name)
        store.attach(optim=optim)
        if live:
            store.load_all()
        store.resume()
        train(store, optim, 3, 6)
        assert exactly_equal(values(store), wanted)
        assert exactly_equal(capture(optim), state)


def test_every_optimiser_and_scheduler_of_pyro_is_tried() -> None:
    exported = set(pyro.optim.pytorch_optimizers.__all__)
    sparse_or_matrices = {"SparseAdam", "Muon"}
    made_of_others = {"LRScheduler", "_LRScheduler", "ChainedScheduler", "SequentialLR"}
    assert exported - set(OPTIMISERS) - SCHEDULERS.keys() <= sparse_or_matrices | made_of_others


# -- scopes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_hand", [False, True], ids=["on leaving", "by commit"])
def test_one_optimiser_in_two_scopes_stores_the_state_of_the_current_one(
    store: ParamStoreDict, by_hand: bool
) -> None:
    optim = pyro.optim.ClippedAdam({"lr": 0.1})
    for turn in range(1, 4):
        for name in ("a", "b"):
            with store.scope(name, commit=not by_hand):
                store.attach(optim=optim)
                for _ in range(turn if name == "a" else 1):
                    step(store, optim, "loc")
                step(store, optim, f"only {name}")
                if by_hand:
                    store.commit()

    for name, count in (("a", 6), ("b", 3)):
        with store.scope(name):
            states: Any = store.at("@latest").state("optim")
        assert sorted(states["params"]) == ["loc", f"only {name}"]
        assert states["params"]["loc"]["state"][0]["step"] == count


@pytest.mark.parametrize("read", [False, True], ids=["waiting", "live"])
def test_states_that_wait_in_two_scopes_do_not_replace_each_other(
    tmp_path: Path, read: bool
) -> None:
    def turns(store: ParamStoreDict, optim: PyroOptim, first: int, last: int) -> list[Any]:
        for number in range(first, last):
            for name, grad in (("a", 1.0), ("b", -3.0)):
                with store.scope(name):
                    step(store, optim, "loc", grad=grad * number)
        found = []
        for name in ("a", "b"):
            with store.scope(name, commit=False):
                found.append((values(store), capture(optim)))
        return found

    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = Adam({"lr": 0.1})
        for name in ("a", "b"):
            with store.scope(name):
                store.attach(optim=optim)
        turns(store, optim, 1, 4)
        wanted = turns(store, optim, 4, 7)
        with store.scope("a", commit=False):
            store.restore("a@4")
        with store.scope("b", commit=False):
            store.restore("b@4")
        assert exactly_equal(turns(store, optim, 4, 7), wanted)

    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = Adam({"lr": 0.1})
        for name in ("a", "b"):  # both are restored before either is trained
            with store.scope(name, commit=False):
                store.attach(optim=optim)
                if read:
                    store.load_all()
                store.restore(f"{name}@4")
        assert exactly_equal(turns(store, optim, 4, 7), wanted)


def test_restoring_one_scope_leaves_the_optimiser_of_the_other_alone(
    store: ParamStoreDict,
) -> None:
    optim = Adam({"lr": 0.1})
    with store.scope("a"):
        store.attach(optim=optim)
        step(store, optim, "loc")
    with store.scope("b"):
        store.attach(optim=optim)
        step(store, optim, "loc")
        step(store, optim, "loc", "more")
        wanted = capture(optim)
    with store.scope("a"):
        step(store, optim, "loc")
        store.restore("a@1")
        state: Any = capture(optim)
        assert state["params"]["loc"]["state"][0]["step"] == 1
    with store.scope("b"):
        assert exactly_equal(capture(optim), wanted)


def test_a_state_that_users_set_themselves_is_taken_by_name_as_in_pyro(
    store: ParamStoreDict,
) -> None:
    def count(optim: PyroOptim) -> float:
        found: float = optim.get_state()["loc"]["state"][0]["step"].item()
        return found

    optim = Adam({"lr": 0.1})
    step(store, optim, "loc")
    state = optim.get_state()
    store.attach(optim=optim)
    store.commit()
    fresh = Adam({"lr": 0.1})
    store.attach(optim=fresh)
    store.restore("@1")  # from here on it knows of scopes
    store.clear()
    fresh.set_state(copy.deepcopy(state))
    step(store, fresh, "loc")
    assert count(fresh) == 2
    uninstall()
    pyro.clear_param_store()
    fresh.optim_objs.clear()
    fresh.set_state(copy.deepcopy(state))
    fresh([pyro.param("loc", torch.zeros(2))])
    assert count(fresh) == 1  # a step without a gradient is none
    assert not fresh._state_waiting_to_be_consumed


def test_states_of_a_scope_that_is_gone_are_gone_and_an_optimiser_pickles(
    store: ParamStoreDict,
) -> None:
    optim = Adam({"lr": 0.1})
    with store.scope() as state:
        store.attach(optim=optim)
        step(store, optim, "loc")
        store.commit()
        store.restore("@1")
    waiting: Any = optim._state_waiting_to_be_consumed
    assert len(waiting.of_scope) == 1
    assert type(pickle.loads(pickle.dumps(waiting))) is not type(waiting)
    assert copy.deepcopy(optim)._state_waiting_to_be_consumed == {}
    del state
    gc.collect()
    assert len(waiting.of_scope) == 0


def test_a_tied_parameter_has_one_state_whatever_name_comes_first(tmp_path: Path) -> None:
    def run(path: Path, end: int, *, bare: bool) -> dict[str, Tensor]:
        w = nn.Parameter(torch.zeros(2))
        with paramstore.open(path) as store, install(store):
            optim = Adam({"lr": 0.1})
            store.attach(optim=optim)
            last = store.resume() if bare else None
            pyro.param("a", w)
            pyro.param("b", w)
            last = last or store.resume()
            for number in range((last.step or 0) + 1 if last else 1, end + 1):
                w.grad = torch.ones(2) * number
                optim([w])
                store.commit(step=number)
            found = values(store)
        pyro.clear_param_store()
        return found

    wanted = run(tmp_path / "whole.db", 5, bare=False)
    for bare in (False, True):
        run(tmp_path / f"{bare}.db", 2, bare=bare)
        assert exactly_equal(run(tmp_path / f"{bare}.db", 5, bare=bare), wanted)


# -- what holds optimisers -----------------------------------------------------------------------


def test_optimisers_of_several_parts_are_stored_part_by_part(tmp_path: Path) -> None:
    def run(path: Path, end: int) -> dict[str, Tensor]:
        with paramstore.open(path) as store, install(store):
            sgd: Any = torch.optim.SGD  # declared as an optimiser, and called
            optim = MixedMultiOptimizer(
                [
                    (["a"], Adam({"lr": 0.1})),
                    (["b"], TorchMultiOptimizer(sgd, {"lr": 0.1, "momentum": 0.9})),
                    (["c"], Newton()),
                ]
            )
            store.attach(optim=optim)
            last = store.resume()
            for number in range((last.step or 0) + 1 if last else 1, end + 1):
                for name in ("a", "b", "c"):
                    pyro.param(name, torch.ones(1) * number)
                params = dict(store.named_parameters())
                loss = (torch.cat([params[name] for name in "abc"]) ** 2).sum() * (number + 1)
                optim.step(loss, params)
                store.commit(step=number)
            found = values(store)
        pyro.clear_param_store()
        return found

    run(tmp_path / "parts.db", 2)
    assert exactly_equal(run(tmp_path / "parts.db", 5), run(tmp_path / "whole.db", 5))


def test_a_part_whose_state_nobody_knows_is_refused(store: ParamStoreDict) -> None:
    class Mine(MultiOptimizer):
        pass

    store["a"] = torch.ones(1)
    store.attach(optim=MixedMultiOptimizer([(["a"], Mine())]))
    with pytest.raises(InvalidInputError, match=r"'optim'.*Mine has no state_dict"):
        store.commit()
    with pytest.raises(InvalidInputError, match="Newton"):
        store.attach(optim=Newton())
    store.attach(optim=PyroMultiOptimizer(Adam({"lr": 0.1})))
    store.commit()


def test_without_an_installed_store_its_state_has_no_names() -> None:
    store = ParamStoreDict()
    store.attach(optim=Adam({"lr": 0.1}))
    store["a"] = torch.ones(1)
    with pytest.raises(UsageError, match=r"'optim'.*install\(store\)"):
        store.commit()


def test_an_optimiser_is_as_it_was_where_a_later_object_refuses(store: ParamStoreDict) -> None:
    optim = Adam({"lr": 0.1})
    store.attach(optim=optim, zlast=Refusing())
    step(store, optim, "old")
    store.commit()
    step(store, optim, "old", "new")
    before, after = capture(optim), values(store)
    with pytest.raises(MismatchError, match="'zlast' refused"):
        store.restore("@1")
    assert exactly_equal(capture(optim), before)
    assert exactly_equal(values(store), after)


class Refusing:
    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: object) -> None:
        raise OSError("no")


# -- resume --------------------------------------------------------------------------------------

DATA = torch.tensor([0.3, 0.1, 0.9, 0.4, 0.7, 0.2])


def mixture(data: Tensor, late: bool = False) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(data)):
        which = pyro.sample("which", dist.Bernoulli(0.5))
        pyro.sample("obs", dist.Normal(loc[..., which.long()], 1.0), obs=data)


enumerated = config_enumerate(mixture)


def guide(data: Tensor, late: bool = False) -> None:
    loc = pyro.param("loc_q", lambda: torch.randn(2))
    scale = pyro.param("scale_q", torch.ones(2), constraint=constraints.positive)
    if late:
        loc = loc + pyro.param("late", nn.Parameter(torch.randn(2)))
    pyro.sample("loc", dist.Normal(loc, scale).to_event(1))


def make_svi(elbo: Any = None) -> SVI:
    return SVI(enumerated, guide, Adam({"lr": 0.1}), elbo or TraceEnum_ELBO())


def run(path: Path, *, seed: int, end: int, stepped: int = 0, late: int = 99) -> dict[str, Any]:
    """Train in a named scope, from its newest snapshot; what the last snapshot holds."""
    pyro.set_rng_seed(seed)
    with paramstore.open(path) as store, install(store), store.scope("guide", commit=False):
        svi = make_svi()
        for _ in range(stepped):
            svi.step(DATA[:2], late=True)
        store.attach(svi=svi, rng=True)
        last = resume(store, svi, DATA)
        for number in range((last.step or 0) + 1 if last else 1, end + 1):
            rows = torch.randperm(len(DATA))[:3]
            svi.step(DATA[rows], late=number >= late)
            store.commit(step=number)
        newest: Any = store.at("@latest")
        found = {**newest, "svi": newest.state("svi"), "rng": newest.state("rng")}
    pyro.clear_param_store()
    return found


@pytest.mark.parametrize("stepped", [0, 2], ids=["fresh", "stepped before"])
@pytest.mark.parametrize("late", [99, 3], ids=["", "a late parameter"])
def test_an_enumerated_model_resumes_in_a_named_scope(
    tmp_path: Path, stepped: int, late: int
) -> None:
    whole = run(tmp_path / "whole.db", seed=0, end=8, late=late)
    run(tmp_path / "parts.db", seed=0, end=4, late=late)
    parts = run(tmp_path / "parts.db", seed=1, end=8, stepped=stepped, late=late)
    assert exactly_equal(parts, whole)
    assert ("late" in whole) == (late == 3)


@pytest.mark.filterwarnings("ignore:`torch.jit.*:DeprecationWarning")
def test_a_compiled_elbo_resumes(tmp_path: Path) -> None:
    def model(data: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(data)):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    def run(path: Path, seed: int, end: int) -> dict[str, Tensor]:
        pyro.set_rng_seed(seed)
        with paramstore.open(path) as store, install(store):
            elbo = JitTrace_ELBO(ignore_jit_warnings=True)
            svi = SVI(model, AutoNormal(model), Adam({"lr": 0.1}), elbo)
            store.attach(svi=svi, rng=True)
            last = resume(store, svi, DATA)
            for number in range((last.step or 0) + 1 if last else 1, end + 1):
                svi.step(DATA)
                store.commit(step=number)
            found = values(store)
        pyro.clear_param_store()
        return found

    whole = run(tmp_path / "whole.db", 0, 6)
    run(tmp_path / "parts.db", 0, 2)
    assert exactly_equal(run(tmp_path / "parts.db", 1, 6), whole)


def test_a_parameter_of_another_shape_is_replaced_and_its_state_waits(
    store: ParamStoreDict,
) -> None:
    svi = make_svi()
    store.attach(svi=svi)
    svi.step(DATA)
    store.commit()
    wanted: Any = capture(svi)
    store.clear()
    pyro.param("loc_q", torch.zeros(3))
    svi = make_svi()
    store.attach(svi=svi)
    svi.optim([pyro.param("loc_q").unconstrained()])  # type: ignore[attr-defined]

    store.resume()

    assert pyro.param("loc_q").shape == (2,)
    assert exactly_equal(capture(svi)["params"], wanted["params"])  # type: ignore[index]
    svi.step(DATA)
    assert capture(svi)["params"]["loc_q"]["state"][0]["step"] == 2  # type: ignore[index]


def test_resume_on_a_new_scope_of_a_store_with_snapshots_does_nothing(
    store: ParamStoreDict,
) -> None:
    store["x"] = torch.ones(1)
    store.commit()
    with store.scope("new", commit=False):
        before = torch.get_rng_state()
        assert resume(store, make_svi(), DATA) is None
        assert torch.equal(torch.get_rng_state(), before)
        assert not store


def test_a_guide_that_fails_is_not_half_restored(store: ParamStoreDict) -> None:
    svi = make_svi()
    store.attach(svi=svi, rng=True)
    svi.step(DATA)
    store.commit()
    svi.step(DATA)
    before = values(store)
    with pytest.raises(TypeError):
        resume(store, svi)  # what svi.step gets is missing
    assert exactly_equal(values(store), before)


def test_one_step_of_resume_uses_one_batch(store: ParamStoreDict) -> None:
    def model(batches: Iterator[Tensor]) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("obs", dist.Normal(loc, 1.0).expand([6]).to_event(1), obs=next(batches))

    svi = SVI(model, lambda batches: None, Adam({"lr": 0.1}), Trace_ELBO())
    store.attach(svi=svi)
    batches = iter([DATA] * 4)
    svi.step(batches)
    store.commit()
    resume(store, svi, batches)
    assert len(list(batches)) == 2
