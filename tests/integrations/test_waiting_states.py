"""States of Pyro's optimisers that wait for a parameter which has not been stepped yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import SGD, PyroOptim  # type: ignore[attr-defined]  # made when it is imported
from pyro.optim.multi import MixedMultiOptimizer, PyroMultiOptimizer

import paramstore
from paramstore import ParamStoreDict, UsageError
from paramstore.attached import capture
from paramstore.integrations.pyro import install, uninstall

pytestmark = pytest.mark.usefixtures("stock_pyro")


def momentum() -> PyroOptim:
    made: PyroOptim = SGD({"lr": 0.1, "momentum": 0.9})
    return made


def step(optim: Any, **grads: float | None) -> None:
    """A step as SVI makes it: gradients are added, None is none, and zeros are left behind."""
    trained = []
    for name, grad in grads.items():
        pyro.param(name, torch.zeros(2))
        param = dict(pyro.get_param_store().named_parameters())[name]
        if grad is not None:
            param.grad = torch.full((2,), grad) + (0 if param.grad is None else param.grad)
        trained.append(param)
    optim(trained)
    for param in trained:
        if param.grad is not None:
            param.grad = torch.zeros_like(param)


def values() -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in pyro.get_param_store().named_parameters()}


def stored(path: Path) -> dict[str, Any]:
    """Two steps of ``a`` and ``b``, a commit; the values after a third in which ``b`` has none."""
    with paramstore.open(path) as store, install(store):
        optim = momentum()
        store.attach(optim=optim)
        step(optim, a=1.0, b=2.0)
        step(optim, a=1.0, b=2.0)
        store.commit()
        step(optim, a=1.0, b=None)
        wanted = values()
    pyro.clear_param_store()
    return wanted


HOLDERS: list[Callable[[PyroOptim], Any]] = [
    lambda optim: optim,
    lambda optim: SVI(print, print, optim, Trace_ELBO()),
    PyroMultiOptimizer,
    lambda optim: MixedMultiOptimizer([(["a"], optim)]),
]


def test_a_gradient_of_zeros_comes_back_with_the_first_step_of_an_unread_parameter(
    tmp_path: Path,
) -> None:
    wanted = stored(tmp_path / "run.db")
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = momentum()
        store.attach(optim=optim)
        store.resume()
        assert store._params.unread()
        step(optim, a=1.0, b=None)
        assert values() == wanted


def test_a_commit_before_the_first_step_keeps_what_waits(tmp_path: Path) -> None:
    wanted = stored(tmp_path / "run.db")
    for _ in range(2):
        with paramstore.open(tmp_path / "run.db") as store, install(store):
            optim = momentum()
            store.attach(optim=optim)
            store.resume()
            before = capture(optim)
            store.commit()
            assert capture(optim) == before
        pyro.clear_param_store()
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = momentum()
        store.attach(optim=optim)
        store.resume()
        step(optim, a=1.0, b=None)
        assert values() == wanted


@pytest.mark.parametrize("holder", HOLDERS, ids=["optim", "svi", "multi", "mixed"])
def test_what_waits_for_a_parameter_follows_it_to_another_name(
    tmp_path: Path, holder: Callable[[PyroOptim], Any]
) -> None:
    path, optim = tmp_path / "run.db", momentum()
    with paramstore.open(path) as store, install(store):
        store.attach(optim=holder(optim))
        step(optim, a=1.0)
        store.commit()
        step(optim, a=1.0)
        wanted = values()["a"]
    pyro.clear_param_store()
    optim = momentum()
    with paramstore.open(path) as store, install(store):
        store.attach(optim=holder(optim))
        store.resume()
        store.rename("a", "renamed")
        step(optim, renamed=1.0)
        assert values() == {"renamed": wanted}


def test_a_state_that_was_stored_under_the_old_name_is_not_lost_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = momentum()
        store.attach(optim=optim)
        step(optim, a=1.0)
        store.commit()
        store.rename("a", "renamed")
        store.resume()
        assert "'a' have no parameter" in caplog.text
        caplog.clear()
        step(optim, renamed=1.0)
        store.commit()
        store.resume()
        assert not caplog.text


def test_what_was_put_there_by_pyros_set_state_follows_too() -> None:
    optim = momentum()
    with install(ParamStoreDict()) as store:
        store.attach(optim=optim)
        step(optim, a=1.0)
        other = momentum()
        other.set_state(optim.get_state())
        store.attach(optim=other)
        store.rename("a", "renamed")
        assert list(other._state_waiting_to_be_consumed) == ["renamed"]


@pytest.mark.parametrize("holder", HOLDERS, ids=["optim", "svi", "multi", "mixed"])
def test_the_store_that_it_is_attached_to_has_to_be_the_one_in_pyro(
    holder: Callable[[PyroOptim], Any],
) -> None:
    optim, other = momentum(), ParamStoreDict()
    other["a"] = torch.ones(2)
    with install(other):
        other.attach(optim=holder(optim))
        step(optim, a=1.0)
        other.commit()
        tensor = other["a"].tolist()
    pyro.clear_param_store()
    with install(ParamStoreDict()):
        step(optim, a=5.0)
        for verb in (other.commit, other.resume):
            with pytest.raises(UsageError, match=r"'optim'.*another.*call uninstall\(\)"):
                verb()
    assert other["a"].tolist() == tensor
    with pytest.raises(UsageError, match=r"'optim'.*install\(store\)"):
        other.commit()


def test_what_waits_at_uninstall_is_taken_by_stock_pyro(tmp_path: Path) -> None:
    wanted = stored(tmp_path / "run.db")
    with paramstore.open(tmp_path / "run.db") as store, install(store):
        optim = momentum()
        store.attach(optim=optim)
        store.resume()
    assert sorted(optim._state_waiting_to_be_consumed) == ["a", "b"]
    step(optim, a=1.0, b=None)
    assert values() == wanted
    assert not optim._state_waiting_to_be_consumed


def test_what_waits_in_another_scope_stays_there_at_uninstall(tmp_path: Path) -> None:
    wanted = stored(tmp_path / "run.db")
    with paramstore.open(tmp_path / "run.db") as store:
        optim = momentum()
        with install(store):
            store.attach(optim=optim)
            store.resume()
            with store.scope("other"):
                uninstall()
        assert not optim._state_waiting_to_be_consumed
        with install(store):
            step(optim, a=1.0, b=None)
            assert values() == wanted
