"""Modules: their own tensors are the stored ones, frozen parameters and buffers included.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from paramstore.errors import InvalidInputError
from paramstore.testing.bits import differences, same_bits
from paramstore.testing.conformance.backend import MakeStore


class Net(nn.Module):
    """A layer, batch normalisation, a frozen parameter, tied weights, a buffer that is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.full((2,), 5.0), requires_grad=False)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.first.weight
        self.register_buffer("scratch", torch.zeros(4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Use every layer."""
        out: torch.Tensor = self.tied(self.norm(self.first(x)))
        return out


TRAINED = {f"net$$${name}" for name in ("first.weight", "first.bias", "norm.weight", "norm.bias")}
BUFFERS = {f"net$$$norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
STORED = TRAINED | BUFFERS | {"net$$$frozen"}


def state_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of everything that ``net`` would save."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def train(net: nn.Module, steps: int = 1, seed: int = 0) -> None:
    """Change every trained parameter and every buffer of ``net``, the same way for a seed."""
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(trained, lr=0.1)
    net.train()
    for _ in range(steps):
        optimiser.zero_grad()
        net(torch.randn(5, 3, generator=generator)).pow(2).sum().backward()
        optimiser.step()


class ModuleConformance:
    """store.module on one store object."""

    def test_a_module_comes_back_as_itself_with_its_own_tensors_stored(
        self, make_store: MakeStore
    ) -> None:
        store, net = make_store(), Net()
        before = {name: id(value) for name, value in net.named_parameters()}
        assert store.module("net", net) is net
        assert set(store) >= TRAINED
        assert not set(store) & BUFFERS
        assert {name: id(value) for name, value in net.named_parameters()} == before
        assert store["net$$$first.weight"] is net.first.weight

    def test_a_snapshot_holds_frozen_parameters_and_buffers_but_no_scratch(
        self, make_store: MakeStore
    ) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        train(net)
        view = store.at(store.commit())
        assert set(view) == STORED
        for name in STORED:
            value = net.state_dict()[name.removeprefix("net$$$")]
            assert same_bits(view[name], value), name

    def test_restore_fills_the_modules_own_tensors(self, make_store: MakeStore) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        train(net, seed=1)
        wanted, first = state_of(net), store.commit()
        own = dict(net.state_dict(keep_vars=True))
        train(net, seed=2)
        with torch.no_grad():
            net.frozen.zero_()
        assert differences(state_of(net), wanted)
        store.restore(first)
        assert not differences(state_of(net), wanted)
        for name, value in net.state_dict(keep_vars=True).items():
            assert value is own[name], name
        assert not net.frozen.requires_grad
        assert net.first.weight.requires_grad
        assert net.tied.weight is net.first.weight

    def test_a_buffer_that_the_module_replaced_is_read_through_the_module(
        self, make_store: MakeStore
    ) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        net.norm.running_mean = torch.full((3,), 7.0)
        first = store.commit()
        assert store.at(first)["net$$$norm.running_mean"].tolist() == [7.0, 7.0, 7.0]
        net.norm.running_mean = torch.full((3,), 8.0)
        store.restore(first)
        assert net.norm.running_mean.tolist() == [7.0, 7.0, 7.0]

    def test_a_buffer_has_a_history_and_shows_in_a_diff(self, make_store: MakeStore) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        store.commit(step=0)
        store.commit(step=1)
        train(net)
        store.commit(step=2)
        counter = store.history("net$$$norm.num_batches_tracked")
        assert [(row.version, row.step, row.value) for row in counter] == [(1, 0, 0), (3, 2, 1)]
        assert {row.kind for row in counter} == {"buffer"}
        changed = {change.name for change in store.diff("@1", "@3").changed}
        assert changed == TRAINED | BUFFERS

    def test_tied_weights_are_one_entry(self, make_store: MakeStore) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        assert "net$$$tied.weight" not in store.at(store.commit())
        assert store.param_name(net.tied.weight) == "net$$$first.weight"

    def test_a_module_can_be_bound_again(self, make_store: MakeStore) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        store.commit()
        train(net)
        wanted = state_of(net)
        store.module("net", net)  # a cell of a notebook that runs twice
        assert store["net$$$first.weight"] is net.first.weight
        assert not differences(state_of(net), wanted)

    def test_a_module_built_again_takes_the_values_of_the_one_before(
        self, make_store: MakeStore
    ) -> None:
        store, net = make_store(), Net()
        store.module("net", net)
        train(net)
        twin = store.module("net", Net())
        assert not differences(state_of(twin), state_of(net))
        train(twin, seed=2)
        store.commit()
        assert same_bits(store.at(1)["net$$$first.weight"], twin.state_dict()["first.weight"])

    @pytest.mark.parametrize("name", ["", "a$$$b", "a\0b"])
    def test_a_name_that_no_module_can_have_is_refused(
        self, make_store: MakeStore, name: str
    ) -> None:
        store = make_store()
        with pytest.raises(InvalidInputError):
            store.module(name, Net())
        assert not store

    def test_a_class_in_place_of_a_module_is_refused(self, make_store: MakeStore) -> None:
        store = make_store()
        with pytest.raises((InvalidInputError, TypeError), match="Net"):
            store.module("net", Net)  # type: ignore[type-var]
        assert not store
