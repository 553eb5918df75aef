"""save and load: one safetensors file out, that or one of Pyro's pickles in.

Part of the conformance suite; must never commit anything.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributions import constraints

from paramstore.errors import CorruptError, UnsupportedFileError
from paramstore.testing.bits import same_bits
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.exact import exactly_equal


class FilesConformance:
    """What goes into a file comes out of it, and nothing else is touched."""

    def test_a_saved_store_loads_with_its_bits_and_constraints(
        self, make_store: MakeStore, tmp_path: Path
    ) -> None:
        store, file = make_store(), str(tmp_path / "params.save")
        store["x"] = torch.tensor([float("nan"), -0.0, 1e-40])
        store["double"] = torch.tensor(1.0, dtype=torch.float64)
        store["half$$$of it"] = torch.ones(2, 0, 3, dtype=torch.bfloat16)
        store.setdefault("scale", torch.rand(3) + 0.1, constraint=constraints.positive)
        bounded = constraints.interval(-1.0, torch.tensor([1.0, 2.0, 3.0]))
        store.setdefault("bounded", torch.zeros(3), constraint=bounded)
        before = {name: value.detach().clone() for name, value in store.named_parameters()}
        store.save(file)
        store.clear()
        store.load(file)
        assert list(store) == list(before)
        for name, unconstrained in store.named_parameters():
            assert same_bits(unconstrained, before[name]), name
            assert unconstrained.requires_grad, name
        assert store._constraints["x"] is constraints.real
        assert store._constraints["scale"] is constraints.positive
        torch.testing.assert_close(store["bounded"], torch.zeros(3))
        assert exactly_equal(store._constraints["bounded"], bounded)

    def test_a_saved_file_is_safetensors_of_the_unconstrained_values(
        self, make_store: MakeStore, tmp_path: Path
    ) -> None:
        store = make_store()
        store["x"] = torch.arange(6.0).reshape(2, 3)
        store.setdefault("scale", torch.full((2,), 2.0), constraint=constraints.positive)
        store.save(str(tmp_path / "params.save"))
        found = load_file(tmp_path / "params.save")
        assert set(found) == {"x", "scale"}
        for name, unconstrained in store.named_parameters():
            assert same_bits(found[name], unconstrained.detach()), name

    def test_load_merges_into_what_is_there(self, make_store: MakeStore, tmp_path: Path) -> None:
        store, file = make_store(), str(tmp_path / "params.save")
        store["a"], store["b"] = torch.zeros(1), torch.zeros(1)
        store.save(file)
        store.clear()
        store["b"], store["c"] = torch.ones(1), torch.ones(1)
        store.load(file)
        assert {name: value.item() for name, value in store.items()} == {"a": 0, "b": 0, "c": 1}

    def test_load_reads_a_pickle_of_pyros_class(
        self, make_store: MakeStore, tmp_path: Path
    ) -> None:
        store, file = make_store(), str(tmp_path / "pyro.save")
        nested = constraints.independent(constraints.greater_than(torch.tensor(2.0)), 1)
        state = {
            "params": {
                "loc": torch.zeros(3, requires_grad=True),
                "scale": torch.zeros(3, requires_grad=True),
                "weight": torch.nn.Parameter(torch.ones(2, 2)),
                "nested": torch.zeros(3, requires_grad=True),
            },
            "constraints": {
                "loc": constraints.real,
                "scale": constraints.positive,
                "weight": constraints.real,
                "nested": nested,
            },
        }
        torch.save(state, file)
        store.load(file, map_location="cpu")
        assert list(store) == ["loc", "scale", "weight", "nested"]
        assert store["scale"].tolist() == [1.0, 1.0, 1.0]
        assert store["nested"].tolist() == [3.0, 3.0, 3.0]
        assert store._constraints["loc"] is constraints.real
        assert store._constraints["scale"] is constraints.positive
        assert isinstance(store["weight"], torch.nn.Parameter)
        assert all(value.requires_grad for _, value in store.named_parameters())

    @pytest.mark.parametrize("content", [b"", b"not a file of parameters", b"PK\x03\x04nothing"])
    def test_load_refuses_a_file_of_something_else_and_changes_nothing(
        self, make_store: MakeStore, tmp_path: Path, content: bytes
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        file = tmp_path / "other.save"
        file.write_bytes(content)
        with pytest.raises((UnsupportedFileError, CorruptError), match=r"other\.save"):
            store.load(str(file))
        assert [(name, value.item()) for name, value in store.items()] == [("x", 0.0)]

    def test_a_state_goes_round_through_get_state_and_set_state(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        store.setdefault("scale", torch.ones(2), constraint=constraints.positive)
        state = store.get_state()
        assert set(state) == {"params", "constraints"}
        assert state["params"]["x"] is store["x"]
        assert state["params"]["scale"] is dict(store.named_parameters())["scale"]
        assert state["constraints"]["scale"] is constraints.positive
        store.clear()
        store["kept"] = torch.ones(1)
        store.set_state(state)
        assert list(store) == ["kept", "x", "scale"]
        assert store["x"] is state["params"]["x"]
        assert store.param_name(state["params"]["scale"]) == "scale"

    def test_a_state_does_not_follow_the_store(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(2)
        state = store.get_state()
        store["y"] = torch.zeros(2)
        store["x"] = torch.ones(2)
        assert list(state["params"]) == ["x"]
        assert state["params"]["x"].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize(
        "state",
        [None, {}, {"params": {}}, {"params": {}, "constraints": {}, "more": {}}, []],
        ids=["None", "empty", "no constraints", "too much", "list"],
    )
    def test_a_malformed_state_is_refused_and_changes_nothing(
        self, make_store: MakeStore, state: object
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        with pytest.raises(ValueError, match="params"):
            store.set_state(state)  # type: ignore[arg-type]
        assert list(store) == ["x"]
