"""Exchanging Pyro's store: what is carried over, whose values win, and all of it or nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import ParamStoreDict as StockStore
from torch import Tensor, nn
from torch.distributions import constraints

import paramstore
from paramstore import (
    CorruptError,
    InvalidInputError,
    MismatchError,
    ParamStoreDict,
    ReadOnlyError,
    StoreClosedError,
    UsageError,
)
from paramstore.integrations.pyro import carrying, global_store, install, uninstall
from paramstore.integrations.pyro.global_store import _PLACES

POSITIVE = constraints.positive


pytestmark = pytest.mark.usefixtures("stock_pyro")


def pyro_store() -> Any:
    return pyro.get_param_store()


def stored(path: Path, **values: Tensor) -> ParamStoreDict:
    """A store whose values are in its file, and unread."""
    with paramstore.open(path) as first:
        for name, value in values.items():
            first.setdefault(name, value, POSITIVE)
        first.commit()
    return paramstore.open(path)


def tables(store: Any) -> list[dict[Any, Any]]:
    """What a store holds, by identity, unread names included."""
    own = vars(store)
    names = ("_params", "_param_to_name", "_constraints")
    return [{key: id(value) for key, value in dict.items(own[name])} for name in names]


class Everything:
    """What install must leave alone where it fails: Pyro's names, its store, ours, and values."""

    def __init__(self, store: ParamStoreDict | None = None) -> None:
        self.store = store
        self.before = self.now()
        self.values = self.pyros_values()

    def now(self) -> list[Any]:
        own = pyro_store()
        places = [id(getattr(module, name)) for module, name in _PLACES]
        ours = [] if self.store is None else tables(self.store)
        return [*places, type(own), id(vars(own)), *tables(own), *ours]

    @staticmethod
    def pyros_values() -> list[Any]:
        tensors = [tensor for _, tensor in pyro_store().named_parameters()]
        return [(tensor.tolist(), id(tensor.grad)) for tensor in tensors]

    def is_as_it_was(self) -> bool:
        return self.before == self.now() and self.values == self.pyros_values()


# -- as a context manager --------------------------------------------------------------------------


def test_a_block_uninstalls_at_its_end(store: ParamStoreDict) -> None:
    with install(store) as installed:
        assert installed is store
        assert pyro_store() is store
        pyro.param("a", torch.ones(1))
    assert type(pyro_store()) is StockStore
    assert list(pyro_store()) == list(store) == ["a"]


def test_a_block_that_fails_uninstalls_too(store: ParamStoreDict) -> None:
    with pytest.raises(OSError, match="stop"), install(store):
        raise OSError("stop")
    assert type(pyro_store()) is StockStore


def test_a_plain_call_installs_at_once_and_stays(store: ParamStoreDict) -> None:
    install(store)
    assert pyro_store() is store


def test_a_block_leaves_a_store_alone_that_was_installed_inside_of_it(
    store: ParamStoreDict,
) -> None:
    with install(ParamStoreDict()):
        uninstall()
        install(store)
    assert pyro_store() is store


# -- what is refused -------------------------------------------------------------------------------


def test_installing_twice_is_refused_and_changes_nothing(store: ParamStoreDict) -> None:
    install(store)
    pyro.param("a", torch.ones(1))
    with pytest.raises(UsageError, match=r"this store is installed.*uninstall\(\)"):
        install(store)
    with pytest.raises(UsageError, match=r"another store is installed.*uninstall\(\)"):
        install(ParamStoreDict())
    assert pyro_store() is store
    assert list(store) == ["a"]


def test_a_closed_store_is_refused(store: ParamStoreDict) -> None:
    private = ParamStoreDict()
    for each in (store, private):
        each.close()
        everything = Everything(each)
        with pytest.raises(StoreClosedError):
            install(each)
        assert everything.is_as_it_was()


def test_a_read_only_store_is_refused(store: ParamStoreDict, tmp_path: Path) -> None:
    everything = Everything()
    with (
        paramstore.open(tmp_path / "run.db", readonly=True) as reader,
        pytest.raises(ReadOnlyError),
    ):
        install(reader)
    assert everything.is_as_it_was()


@pytest.mark.parametrize("other", [None, "run.db", StockStore()])
def test_what_is_no_store_is_refused(other: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"paramstore\.open"):
        install(other)


def test_an_unknown_preference_is_refused(store: ParamStoreDict) -> None:
    wrong: Any = "mine"
    with pytest.raises(InvalidInputError, match="'store', 'pyro' or None, got 'mine'"):
        install(store, prefer=wrong)


@pytest.mark.parametrize("place", _PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
def test_a_pyro_without_one_of_its_globals_is_refused(
    store: ParamStoreDict, place: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyro.param("a", torch.ones(1))
    with monkeypatch.context() as patch:
        patch.delattr(*place)
        with pytest.raises(UsageError, match=rf"{place[1]} is missing.*left as it was"):
            install(store)
    assert pyro_store()["a"].item() == 1.0
    assert not store


class Slotted:
    """A store without a ``__dict__``, as a compiled one would be."""

    __slots__ = ("_constraints", "_param_to_name", "_params")


class Renamed:
    def __init__(self) -> None:
        self.values: dict[str, Tensor] = {}


@pytest.mark.parametrize("other", [Slotted(), Renamed()], ids=["slots", "renamed tables"])
def test_a_pyro_whose_store_is_made_differently_is_refused(
    store: ParamStoreDict, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for module, name in _PLACES[:3]:
            patch.setattr(module, name, other)
        with pytest.raises(UsageError, match=rf"{type(other).__name__}, has no .*_params"):
            install(store)
        assert all(getattr(module, name) is other for module, name in _PLACES[:3])


def test_a_pyro_with_two_stores_or_no_function_is_refused(
    store: ParamStoreDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(*_PLACES[1], StockStore())
        with pytest.raises(UsageError, match="different stores"):
            install(store)
    monkeypatch.setattr(*_PLACES[3], None)
    with pytest.raises(UsageError, match="no function"):
        install(store)


def test_a_store_that_pyros_object_cannot_become_is_refused() -> None:
    class Another(ParamStoreDict):
        __slots__ = ("more",)

    other, everything = Another(), Everything()
    with pytest.raises(UsageError, match="not laid out"):
        install(other)
    assert everything.is_as_it_was()


def test_inside_a_scope_of_pyros_own_store_it_is_refused(store: ParamStoreDict) -> None:
    pyro.param("outer", torch.ones(1))
    with pyro_store().scope():
        pyro.param("inner", torch.ones(1))
        with pytest.raises(UsageError, match="inside scope"):
            install(store)
    assert list(pyro_store()) == ["outer"]
    install(store)
    assert list(store) == ["outer"]


def test_a_scope_of_pyros_own_store_that_nobody_has_entered_is_in_no_ones_way(
    store: ParamStoreDict,
) -> None:
    scope = pyro_store().scope()
    with install(store):
        assert pyro_store() is store
    with scope:
        assert not isinstance(pyro_store(), ParamStoreDict)


# -- whose values ----------------------------------------------------------------------------------


def both(path: Path, **options: Any) -> tuple[ParamStoreDict, Tensor]:
    """Stored 2.0 and 3.0 for ``both``; Pyro has 5.0 in a live tensor, with a gradient."""
    store = stored(path, both=torch.tensor([2.0, 3.0]), mine=torch.ones(1))
    pyro.param("both", torch.tensor([5.0, 5.0]), constraint=POSITIVE)
    pyro.param("theirs", torch.ones(1))
    live: Tensor = pyro_store()._params["both"]
    live.grad = torch.ones(2)
    return store, live


@pytest.mark.parametrize("read", [False, True])
def test_the_stores_values_go_into_pyros_tensors(tmp_path: Path, read: bool) -> None:
    store, live = both(tmp_path / "run.db")
    if read:
        store.load_all()
    with install(store, prefer="store"):
        assert store._params["both"] is live
        assert torch.allclose(store["both"], torch.tensor([2.0, 3.0]))
        assert live.grad is None
        assert list(store) == ["both", "mine", "theirs"]
        assert store.param_name(live) == "both"
        assert store.changed() == ("theirs",)
    store.close()


@pytest.mark.parametrize("read", [False, True])
def test_pyros_value_and_constraint_replace_the_stores(tmp_path: Path, read: bool) -> None:
    store = stored(tmp_path / "run.db", both=torch.tensor([2.0, 3.0]), mine=torch.ones(1))
    if read:
        store.load_all()
    interval = constraints.interval(0.0, 9.0)
    pyro.param("both", torch.full((3,), 5.0), constraint=interval)
    live = pyro_store()._params["both"]
    with install(store, prefer="pyro"):
        assert store._params["both"] is live
        assert store._constraints["both"] is interval
        assert torch.allclose(store["both"], torch.full((3,), 5.0))
        store.commit()
        assert store.at("@2")["both"].shape == (3,)
    store.close()


def test_a_store_that_was_uninstalled_is_installed_again_without_a_preference(
    store: ParamStoreDict,
) -> None:
    with install(store):
        pyro.param("a", torch.ones(1), constraint=POSITIVE)
    with install(store):
        assert list(store) == ["a"]


DIFFERENT: dict[str, Callable[[], Any]] = {
    "shape": lambda: pyro.param("both", torch.ones(3), constraint=POSITIVE),
    "dtype": lambda: pyro.param("both", torch.ones(2).double(), constraint=POSITIVE),
    "constraint": lambda: pyro.param("both", torch.ones(2), constraint=constraints.unit_interval),
    "no constraint": lambda: pyro.param("both", torch.ones(2)),
}


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("what", DIFFERENT)
def test_a_value_that_does_not_fit_pyros_tensor_is_named(
    tmp_path: Path, what: str, read: bool
) -> None:
    store = stored(tmp_path / "run.db", a=torch.ones(2), both=torch.ones(2))
    if read:
        store.load_all()
    pyro.param("a", torch.full((2,), 7.0), constraint=POSITIVE)
    DIFFERENT[what]()
    everything = Everything(store)
    with pytest.raises(MismatchError, match=r"'both': .*Nothing has been changed") as caught:
        install(store, prefer="store")
    assert "'a'" not in str(caught.value)
    assert everything.is_as_it_was()
    store.close()


def test_two_names_of_one_tensor_of_pyros_need_the_same_stored_value(tmp_path: Path) -> None:
    store = stored(tmp_path / "run.db", a=torch.ones(2), b=torch.zeros(2) + 2)
    pyro.param("a", torch.full((2,), 7.0), constraint=POSITIVE)
    pyro_store().set_state(
        {"params": {"b": pyro_store()._params["a"]}, "constraints": {"b": POSITIVE}}
    )
    everything = Everything(store)
    with pytest.raises(MismatchError, match="'b': its tensor in Pyro is that of 'a'"):
        install(store, prefer="store")
    assert everything.is_as_it_was()
    store["b"] = store["a"].detach()
    store.commit()
    store.clear()
    store.resume()
    with install(store, prefer="store"):
        assert store._params["a"] is store._params["b"]
        assert torch.allclose(store["b"], torch.ones(2))
    store.close()


@pytest.mark.parametrize("prefer", ["store", "pyro"])
def test_a_tensor_of_a_bound_module_is_never_replaced(prefer: Any) -> None:
    store, net = ParamStoreDict(), nn.BatchNorm1d(2)
    store.module("net", net)
    pyro.param("net$$$weight", torch.zeros(2))
    everything = Everything(store)
    with pytest.raises(MismatchError, match=r"'net\$\$\$weight': belongs to a module"):
        install(store, prefer=prefer)
    assert everything.is_as_it_was()
    assert store._params["net$$$weight"] is net.weight

    pyro.clear_param_store()
    pyro.param("net$$$running_mean", torch.zeros(2))
    with pytest.raises(MismatchError, match=r"'net\$\$\$running_mean': a buffer"):
        install(store, prefer=prefer)


def test_a_module_that_both_hold_is_the_same_in_both() -> None:
    store, net = ParamStoreDict(), nn.Linear(2, 1)
    pyro.module("net", net)
    store.module("net", net)
    with install(store):
        assert store._params["net$$$weight"] is net.weight


def test_a_damaged_value_leaves_everything_as_it_was(tmp_path: Path) -> None:
    store, _ = both(tmp_path / "run.db")
    with store._session.backend.database.write() as connection:
        entry = store._current.stored["both"].entry
        connection.exec_driver_sql(
            "UPDATE chunks SET data = zeroblob(length(data)) WHERE id >> 20 = ?", (entry.blob_id,)
        )
    everything = Everything(store)
    with pytest.raises(CorruptError, match="'both'"):
        install(store, prefer="store")
    assert everything.is_as_it_was()
    store.close()


# -- all or nothing --------------------------------------------------------------------------------


class BrokenError(RuntimeError):
    pass


def failing(function: Callable[..., Any], *, at: int, after: bool) -> Callable[..., Any]:
    """The function, whose call number ``at`` raises, before it does anything or after."""
    calls = 0

    def called(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at and not after:
            raise BrokenError
        result = function(*args, **kwargs)
        if calls == at:
            raise BrokenError
        return result

    return called


STEPS: list[tuple[Any, str, int]] = [
    (carrying, "take_values", 1),
    (paramstore.working_set.WorkingSet, "put", 1),
    (paramstore.working_set.WorkingSet, "put", 2),
    (pyro.poutine.runtime, "effectful", 1),
    *((global_store, "setattr", number) for number in range(1, 5)),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "step", STEPS, ids=lambda step: f"{getattr(step[0], '__name__', '')}.{step[1]}-{step[2]}"
)
def test_a_step_that_fails_leaves_everything_as_it_was(
    tmp_path: Path, step: tuple[Any, str, int], after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = both(tmp_path / "run.db")
    store["theirs_not"] = torch.ones(1)
    owner, name, number = step
    function = getattr(owner, name, setattr)
    everything = Everything(store)
    with monkeypatch.context() as patch:
        broken = failing(function, at=number, after=after)
        patch.setattr(owner, name, broken, raising=name != "setattr")
        with pytest.raises(BrokenError):
            install(store, prefer="store")
    assert everything.is_as_it_was()
    assert pyro.param("both").tolist() == pytest.approx([5.0, 5.0])

    with install(store, prefer="store"):
        assert pyro.param("both").tolist() == pytest.approx([2.0, 3.0])
    store.close()


def test_what_was_unread_is_unread_again_although_a_failed_install_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = both(tmp_path / "run.db")

    def read_and_fail(*_: object) -> None:
        store.load_all()
        raise BrokenError

    with monkeypatch.context() as patch:
        patch.setattr(carrying, "take_values", read_and_fail)
        with pytest.raises(BrokenError):
            install(store, prefer="pyro")
    assert store._params.unread()
    assert all(isinstance(value, Tensor) for _, value in store.named_parameters())
    store.close()


@pytest.mark.parametrize("number", range(1, 5))
def test_an_uninstall_that_fails_leaves_the_store_installed(
    store: ParamStoreDict, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyro.param("a", torch.ones(1))
    install(store)
    with monkeypatch.context() as patch:
        broken = failing(setattr, at=number, after=False)
        patch.setattr(global_store, "setattr", broken, raising=False)
        with pytest.raises(BrokenError):
            uninstall()
    assert all(getattr(module, name) is store for module, name in _PLACES[:3])
    pyro.param("b", torch.ones(1))
    assert list(store) == ["a", "b"]
    uninstall()
    assert list(pyro_store()) == ["a", "b"]


def test_pyro_is_exactly_as_it_was_after_uninstall(store: ParamStoreDict) -> None:
    before = [getattr(module, name) for module, name in _PLACES], vars(pyro_store())
    with install(store):
        pass
    assert all(getattr(m, n) is b for (m, n), b in zip(_PLACES, before[0], strict=True))
    assert vars(pyro_store()) is before[1]


def test_a_store_that_was_closed_leaves_pyro_what_was_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = stored(tmp_path / "run.db", read=torch.ones(1), unread=torch.ones(1))
    install(store)
    pyro.param("read")
    store.close()
    with caplog.at_level(logging.WARNING, logger="paramstore"):
        uninstall()
    assert list(pyro_store()) == ["read"]
    assert any("without 1 stored values" in record.getMessage() for record in caplog.records)


# -- scopes and threads ----------------------------------------------------------------------------


def test_a_store_is_installed_in_its_current_scope_and_follows_it(store: ParamStoreDict) -> None:
    store["base"] = torch.ones(1)
    pyro.param("pyros", torch.ones(1))
    with store.scope("inner"):
        install(store)
        assert list(pyro_store()) == ["pyros"]
        pyro.param("more", torch.ones(1))
    assert list(pyro_store()) == ["base"]
    assert list(store.at("inner")) == ["more", "pyros"]
    with pyro_store().scope("inner"):
        uninstall()
        assert list(pyro_store()) == ["pyros", "more"]
        pyro.param("stock", torch.ones(1))
    assert list(pyro_store()) == ["pyros", "more", "stock"]
    assert list(store) == ["base"]
    with store.scope("inner"):
        assert list(store) == ["pyros", "more"]


def test_leaving_a_scope_of_the_store_after_uninstall_does_not_touch_pyro(
    store: ParamStoreDict,
) -> None:
    install(store)
    pyro.param("outer", torch.ones(1))
    with pyro_store().scope(None):
        pyro.param("inner", torch.ones(1))
        uninstall()
    assert list(pyro_store()) == ["inner"]
    assert list(store) == ["outer"]


def test_every_thread_uses_the_installed_store(store: ParamStoreDict) -> None:
    install(store)
    thread = threading.Thread(target=lambda: pyro.param("a", torch.ones(1)))
    thread.start()
    thread.join()
    assert list(store) == ["a"]


def test_of_threads_that_install_at_once_one_wins() -> None:
    stores, barrier, errors = [ParamStoreDict() for _ in range(4)], threading.Barrier(4), []

    def run(store: ParamStoreDict) -> None:
        barrier.wait(20)
        try:
            install(store)
        except UsageError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert len({id(getattr(module, name)) for module, name in _PLACES[:3]}) == 1
    assert pyro_store() in stores


def test_installing_in_inference_mode_makes_trainable_tensors(tmp_path: Path) -> None:
    store, live = both(tmp_path / "run.db")
    with torch.inference_mode():
        install(store, prefer="store")
    assert torch.allclose(store["both"], torch.tensor([2.0, 3.0]))
    assert not store["mine"].is_inference()
    live.sum().backward()
    store.close()


def test_a_pyro_module_that_was_built_before_uses_the_installed_store(
    store: ParamStoreDict,
) -> None:
    net: Any = PyroModule[nn.Linear](2, 1)  # type: ignore[call-arg, arg-type]
    net(torch.ones(1, 2))
    with install(store):
        assert sorted(store) == ["bias", "weight"]
        net(torch.ones(1, 2))
        assert store._params["weight"] is net.weight
        del net.bias
        assert list(store) == ["weight"]
