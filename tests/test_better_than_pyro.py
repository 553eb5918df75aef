"""Where Pyro's own class is wrong and ours is not: each difference, shown on both.

A test that fails on its Pyro half says that Pyro was mended, and the row in the docs can go.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro.params.param_store as reference
import pytest
import torch
from torch.distributions import constraints

import paramstore
from paramstore import InvalidInputError, ParamNotFoundError, ParamStoreDict


def both() -> tuple[Any, Any]:
    """Pyro's store and ours, empty."""
    return reference.ParamStoreDict(), ParamStoreDict()


def _overwrite(store: Any) -> weakref.ref[torch.Tensor]:
    store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
    old = weakref.ref(dict(store.named_parameters())["scale"])
    for value in (2.0, 3.0):
        store["scale"] = torch.full((2,), value)
    gc.collect()
    return old


def test_overwriting_a_name_does_not_keep_the_old_tensor_alive() -> None:
    theirs, ours = both()
    assert _overwrite(theirs)() is not None
    assert len(theirs._param_to_name) == 3
    assert _overwrite(ours)() is None
    assert len(ours._param_to_name) == 1


def test_merging_a_state_does_not_keep_the_old_tensor_alive() -> None:
    for store, leaks in zip(both(), (True, False), strict=True):
        store["x"] = torch.zeros(1)
        old = weakref.ref(store["x"])
        state = {"params": {"x": torch.ones(1)}, "constraints": {"x": constraints.real}}
        store.set_state(state)
        gc.collect()
        assert (old() is not None) is leaks


def _fail() -> torch.Tensor:
    raise ZeroDivisionError


def test_a_setdefault_that_raises_leaves_nothing() -> None:
    theirs, ours = both()
    for store in (theirs, ours):
        with pytest.raises(ZeroDivisionError):
            store.setdefault("x", _fail, constraint=constraints.positive)
        assert "x" not in store
        store["x"] = torch.tensor([-1.0])
    assert bool(theirs["x"].isnan())  # the constraint stayed behind
    assert ours["x"].tolist() == [-1.0]


def test_deleting_one_of_two_names_of_a_tensor_keeps_the_other() -> None:
    theirs, ours = both()
    for store in (theirs, ours):
        store["a"] = tensor = torch.zeros(1)
        store["b"] = tensor
        del store["b"]
    assert theirs.param_name(theirs["a"]) is None
    with pytest.raises(KeyError):
        del theirs["a"]
    assert ours.param_name(ours["a"]) == "a"
    del ours["a"]
    assert not ours


def test_a_channels_last_parameter_stays_the_modules() -> None:
    for store, kept in zip(both(), (False, True), strict=True):
        weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        parameter = torch.nn.Parameter(weight)
        store["weight"] = parameter
        assert (store["weight"] is parameter) is kept


def test_the_result_of_a_calculation_does_not_drag_its_graph_along() -> None:
    for store, leaf in zip(both(), (False, True), strict=True):
        store["x"] = torch.ones(2, requires_grad=True) * 2
        assert store["x"].is_leaf is leaf


def _nested(store: Any) -> None:
    with store.scope():
        pass


CALLS: dict[str, Callable[[Any], Any]] = {
    "get_state": lambda store: store.get_state(),
    "scope": _nested,
    "items": lambda store: list(store.items()),
    "set_state": lambda store: store.set_state(store.get_state()),
}


@pytest.mark.parametrize("call", CALLS)
def test_no_call_strips_unconstrained_from_a_value_that_is_held(call: str) -> None:
    store = ParamStoreDict()
    store["x"] = torch.zeros(2)
    value = store["x"]
    CALLS[call](store)
    assert value.unconstrained() is value  # type: ignore[attr-defined]


def test_pyro_strips_unconstrained_when_the_state_is_taken() -> None:
    theirs, _ = both()
    theirs["x"] = torch.zeros(2)
    value = theirs["x"]
    theirs.get_state()
    assert not hasattr(value, "unconstrained")


def _state(store: Any) -> Any:
    store["x"] = torch.zeros(2)
    store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
    state = store.get_state()
    # Looked at again between taking the state and saving it, as a training loop does.
    assert store["x"].unconstrained() is store["x"]
    assert store["scale"].unconstrained() is state["params"]["scale"]
    return state


def test_a_state_can_be_saved_by_torch_save_at_any_time() -> None:
    theirs, ours = both()
    with pytest.raises(TypeError, match="weakref"):
        torch.save(_state(theirs), io.BytesIO())
    file = io.BytesIO()
    torch.save(_state(ours)["params"], file)
    file.seek(0)
    found = torch.load(file, weights_only=True)
    assert found["x"].tolist() == [0.0, 0.0]
    assert found["scale"].tolist() == [0.0, 0.0]


def test_a_whole_state_goes_through_pickle_and_back() -> None:
    _, ours = both()
    state = pickle.loads(pickle.dumps(_state(ours)))
    again = ParamStoreDict()
    again.set_state(state)
    assert again["scale"].tolist() == [1.0, 1.0]
    assert again["x"].unconstrained() is again["x"]  # type: ignore[attr-defined]


def test_a_state_and_a_value_can_be_deep_copied() -> None:
    theirs, ours = both()
    wrong = copy.deepcopy(_state(theirs))["params"]["x"]
    assert wrong.unconstrained() is theirs["x"]  # the original, not the copy
    twin = copy.deepcopy(_state(ours))
    assert twin["params"]["x"] is not ours["x"]
    assert torch.equal(twin["params"]["x"], ours["x"])
    value = copy.deepcopy(ours["x"])
    assert value.unconstrained == OrderedDict()


BAD: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a name that does not exist": (lambda s: s["y"], ParamNotFoundError, "'y'"),
    "deleting a name that does not exist": (
        lambda s: s.__delitem__("y"),
        ParamNotFoundError,
        "'y'",
    ),
    "a value that is no tensor": (lambda s: s.__setitem__("x", 1.0), InvalidInputError, "'x'"),
    "an integer tensor": (
        lambda s: s.__setitem__("x", torch.arange(2)),
        InvalidInputError,
        "'x'",
    ),
    "a name that is no text": (
        lambda s: s.__setitem__(3, torch.zeros(1)),
        InvalidInputError,
        "3",
    ),
    "a malformed state": (lambda s: s.set_state({"params": {}}), InvalidInputError, "constraints"),
    "a pattern that is no pattern": (lambda s: s.match("("), InvalidInputError, r"'\('"),
    "a missing file": (lambda s: s.load("/nowhere/at.all"), paramstore.StorageError, "nowhere"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_raises_an_error_of_ours_that_names_it(what: str) -> None:
    call, error, text = BAD[what]
    store = ParamStoreDict()
    store["x"] = torch.zeros(1)
    with pytest.raises(error, match=text) as caught:
        call(store)
    assert isinstance(caught.value, paramstore.ParamStoreError)
    assert caught.value.kind != "error"
    assert [(name, value.item()) for name, value in store.items()] == [("x", 0.0)]


def test_an_inadmissible_value_is_refused_instead_of_becoming_nan() -> None:
    theirs, ours = both()
    theirs.setdefault("scale", torch.tensor([-1.0]), constraint=constraints.positive)
    assert bool(theirs["scale"].isnan())
    with pytest.raises(InvalidInputError, match="'scale'"):
        ours.setdefault("scale", torch.tensor([-1.0]), constraint=constraints.positive)


class _Armed:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_load_runs_no_code_from_a_file(tmp_path: Path) -> None:
    file, ran = tmp_path / "armed.save", tmp_path / "it ran"
    torch.save({"params": {"x": _Armed(ran)}, "constraints": {}}, file)
    theirs, ours = both()
    ours["kept"] = torch.zeros(1)
    with pytest.raises(paramstore.UnsupportedFileError, match=r"armed\.save"):
        ours.load(str(file))
    assert not ran.exists()
    assert list(ours) == ["kept"]
    theirs.load(str(file))
    assert ran.exists()


def test_constraints_come_back_as_the_objects_that_pyro_compares_with(tmp_path: Path) -> None:
    theirs, ours = both()
    for number, store in enumerate((theirs, ours)):
        store.setdefault("scale", torch.ones(1), constraint=constraints.positive)
        store.save(str(tmp_path / str(number)))
        store.clear()
        store.load(str(tmp_path / str(number)))
    assert theirs._constraints["scale"] is not constraints.positive
    assert ours._constraints["scale"] is constraints.positive
