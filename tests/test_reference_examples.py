"""The reference page of Pyro's ParamStoreDict: its examples run, and everything on it exists.

The examples are written as the page has them; ``pyro`` is this package there, which has Pyro's
functions by Pyro's names.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pyro
import pyro.params.param_store as reference
import pytest
import torch
from torch import nn
from torch.distributions import constraints

import paramstore

SETDEFAULT_EXAMPLE = """\
param_store.get("foo", lambda: (0.001 * torch.randn(1000, 1000)).exp(),
                constraint=constraints.positive)
"""

SCOPE_EXAMPLE = """\
param_store = pyro.get_param_store()

# Train multiple models, while avoiding param name conflicts.
with param_store.scope() as scope1:
    # ...Train one model,guide pair...
with param_store.scope() as scope2:
    # ...Train another model,guide pair...

# Now evaluate each, still avoiding name conflicts.
with param_store.scope(scope1):  # loads the first model's scope
   # ...evaluate the first model...
with param_store.scope(scope2):  # loads the second model's scope
   # ...evaluate the second model...
"""

LOAD_EXAMPLE = """\
pyro.get_param_store().load('saved_params.save')
pyro.module('module', nn, update_module_params=True)
"""

METHODS = [
    "clear",
    "items",
    "keys",
    "values",
    "setdefault",
    "named_parameters",
    "get_all_param_names",
    "replace_param",
    "get_param",
    "match",
    "param_name",
    "get_state",
    "set_state",
    "save",
    "load",
    "scope",
]
OPERATORS = [
    "__init__",
    "__bool__",
    "__len__",
    "__contains__",
    "__iter__",
    "__getitem__",
    "__setitem__",
    "__delitem__",
]
FUNCTIONS = [
    "param_with_module_name",
    "module_from_param_with_module_name",
    "user_param_name",
    "normalize_param_name",
]
MAIN_FUNCTIONS = ["param", "module", "get_param_store", "clear_param_store"]


def _filled(example: str, **statements: str) -> str:
    """Put a statement under each comment that stands for the reader's own code."""
    for comment, statement in statements.items():
        line = next(line for line in example.splitlines() if f"# ...{comment}" in line)
        indent = line[: line.index("#")]
        example = example.replace(line, f"{line}\n{indent}{statement}")
    return example


@pytest.fixture(params=["private", "opened"])
def param_store(request: pytest.FixtureRequest, path: Path) -> Any:
    store = paramstore.get_param_store()
    if request.param == "opened":
        store = paramstore.open(path)
        paramstore.set_param_store(store)
    return store


def test_the_example_of_setdefault_runs_verbatim(param_store: Any) -> None:
    namespace = {"param_store": param_store, "torch": torch, "constraints": constraints}
    exec(SETDEFAULT_EXAMPLE, namespace)
    first = param_store["foo"].detach().clone()
    assert first.shape == (1000, 1000)
    assert bool((first > 0).all())
    assert param_store._constraints["foo"] is constraints.positive
    exec(SETDEFAULT_EXAMPLE, namespace)
    assert torch.equal(param_store["foo"], first)


def test_the_example_of_scope_runs_with_statements_for_its_comments(param_store: Any) -> None:
    code = _filled(
        SCOPE_EXAMPLE,
        **{
            "Train one": "pyro.param('loc', torch.tensor(1.0))",
            "Train another": "pyro.param('loc', torch.tensor([2.0, 2.0]))",
            "evaluate the first": "first = pyro.param('loc').clone()",
            "evaluate the second": "second = pyro.param('loc').clone()",
        },
    )
    param_store["loc"] = torch.tensor(0.0)
    namespace = {"pyro": paramstore, "torch": torch}
    exec(code, namespace)
    assert namespace["first"].tolist() == 1.0
    assert namespace["second"].tolist() == [2.0, 2.0]
    assert param_store["loc"].item() == 0.0


def test_the_example_of_load_runs_verbatim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, param_store: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    param_store.module("module", nn.Linear(2, 2))
    wanted = param_store["module$$$weight"].detach().clone()
    param_store.save("saved_params.save")
    param_store.clear()
    fresh = nn.Linear(2, 2)
    exec(LOAD_EXAMPLE, {"pyro": paramstore, "nn": fresh})
    assert torch.equal(fresh.weight, wanted)
    assert fresh.weight is param_store["module$$$weight"]


def _is_real(value: object) -> bool:
    return isinstance(value, type(constraints.real))


def _same_default(ours: object, theirs: object) -> bool:
    return ours == theirs or (_is_real(ours) and _is_real(theirs))


def _assert_callable_alike(ours: Any, theirs: Any) -> None:
    here = list(inspect.signature(ours).parameters.values())
    there = list(inspect.signature(theirs).parameters.values())
    assert [p.name for p in here[: len(there)]] == [p.name for p in there]
    for mine, other in zip(here, there, strict=False):
        assert mine.kind is other.kind, mine
        assert _same_default(mine.default, other.default), mine
    for mine in here[len(there) :]:  # what we add must not be in the way of a position
        assert mine.default is not inspect.Parameter.empty, mine
        assert ours.__name__ == "__init__" or mine.kind is inspect.Parameter.KEYWORD_ONLY, mine


@pytest.mark.parametrize("name", METHODS + OPERATORS)
def test_a_method_of_the_reference_has_its_parameters_and_positions(name: str) -> None:
    _assert_callable_alike(
        getattr(paramstore.ParamStoreDict, name), getattr(reference.ParamStoreDict, name)
    )


def test_the_list_of_methods_is_all_of_the_reference() -> None:
    own = {
        name
        for name in vars(reference.ParamStoreDict)
        if callable(getattr(reference.ParamStoreDict, name))
    }
    assert own == {*METHODS, *OPERATORS}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_about_names_gives_pyros_answer(name: str) -> None:
    ours, theirs = getattr(paramstore, name), getattr(reference, name)
    _assert_callable_alike(ours, theirs)
    if name == "param_with_module_name":
        assert ours("net", "layer.weight") == theirs("net", "layer.weight")
        return
    for text in ("plain", "net$$$layer.weight", "a$$$b$$$c", "$$$", "$$", ""):
        assert ours(text) == theirs(text), text


@pytest.mark.parametrize("name", MAIN_FUNCTIONS)
def test_a_function_of_pyros_main_namespace_has_its_parameters(name: str) -> None:
    _assert_callable_alike(getattr(paramstore, name), getattr(pyro, name))


def test_the_module_level_functions_act_on_one_private_store() -> None:
    store = paramstore.get_param_store()
    value = paramstore.param("scale", torch.ones(2), constraint=constraints.positive)
    torch.testing.assert_close(value, torch.ones(2))
    assert paramstore.param("scale").unconstrained() is value.unconstrained()  # type: ignore[attr-defined]
    assert list(store) == ["scale"]
    paramstore.clear_param_store()
    assert paramstore.get_param_store() is store
    assert not store
    with pytest.raises(KeyError, match="'scale'"):
        paramstore.param("scale")


def test_the_module_level_store_can_be_chosen_for_a_block_or_for_good(path: Path) -> None:
    private = paramstore.get_param_store()
    with paramstore.open(path) as store:
        with paramstore.set_param_store(store):
            paramstore.param("x", torch.zeros(1))
            assert paramstore.get_param_store() is store
        assert paramstore.get_param_store() is private
        assert list(store) == ["x"]
        assert not private
        paramstore.set_param_store(store)
        assert paramstore.get_param_store() is store


def test_the_environment_can_choose_the_module_level_store(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAMSTORE_URL", str(path))
    with paramstore.open() as store:
        store["x"] = torch.zeros(1)
        store.commit()
    with paramstore.get_param_store() as chosen:
        assert list(chosen) == ["x"]


def test_a_state_dict_has_the_two_entries_of_the_reference() -> None:
    state = paramstore.ParamStoreDict().get_state()
    assert isinstance(state, dict)
    assert issubclass(paramstore.StateDict, dict)
    assert set(state) == set(reference.StateDict.__annotations__)


def test_the_class_can_take_the_place_of_pyros() -> None:
    assert paramstore.ParamStoreDict.__bases__ == (object,)
    assert "__slots__" not in vars(paramstore.ParamStoreDict)
    stock: Any = reference.ParamStoreDict()
    stock.__class__ = paramstore.ParamStoreDict
    store = paramstore.ParamStoreDict()
    stock.__dict__ = store.__dict__
    stock["x"] = torch.zeros(1)
    assert list(store) == ["x"]
    for table in ("_params", "_param_to_name", "_constraints"):
        assert isinstance(getattr(store, table), dict)
