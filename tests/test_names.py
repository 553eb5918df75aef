"""Names of modules' parameters: the same as Pyro's functions give."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramstore import names

param_store = pytest.importorskip("pyro.params.param_store")

TEXTS = st.lists(st.sampled_from(["net", "a.b", "$$$", "$", "$$", "", "weight"])).map("".join)


@given(TEXTS)
def test_names_are_taken_apart_as_pyro_does(name: str) -> None:
    for function in (
        "module_from_param_with_module_name",
        "normalize_param_name",
        "user_param_name",
    ):
        assert getattr(names, function)(name) == getattr(param_store, function)(name)


@given(TEXTS, TEXTS)
def test_names_are_put_together_as_pyro_does(module: str, path: str) -> None:
    ours = names.param_with_module_name(module, path)
    assert ours == param_store.param_with_module_name(module, path)


def test_a_module_and_a_path_come_back_from_a_full_name() -> None:
    name = names.param_with_module_name("net", "layer.0.weight")
    assert name == "net$$$layer.0.weight"
    assert names.module_from_param_with_module_name(name) == "net"
    assert names.user_param_name(name) == "layer.0.weight"
    assert names.normalize_param_name(name) == "net.layer.0.weight"
