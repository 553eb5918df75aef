"""A store opened again: lazy reading, adoption, resume, other starting points, read-only stores.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn
from torch.distributions import constraints

from paramstore.errors import (
    MismatchError,
    ReadOnlyError,
    ScopeNotFoundError,
    SnapshotNotFoundError,
    StoreClosedError,
)
from paramstore.testing.bits import differences, same_bits
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.modules import STORED, TRAINED, Net, state_of, train
from paramstore.testing.conformance.snapshots import fill
from paramstore.testing.exact import exactly_equal


class ReopeningConformance:
    """What a second store object finds on the database of a first one."""

    def test_a_reopened_store_has_the_names_constraints_and_bits(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"] = torch.tensor([math.nan, -0.0, 1e-40])
            store["half"] = torch.ones(2, 0, dtype=torch.bfloat16)
            bounded = constraints.interval(-1.0, torch.tensor([1.0, 2.0]))
            store.setdefault("bounded", torch.zeros(2), constraint=bounded)
            store.setdefault("scale", torch.rand(2) + 0.1, constraint=constraints.positive)
            wanted = {name: value.detach().clone() for name, value in store.named_parameters()}
            store.commit(step=3)
        again = make_store()
        assert list(again) == list(wanted)
        assert not differences(dict(again.named_parameters()), wanted)
        assert again._constraints["scale"] is constraints.positive
        assert again._constraints["x"] is constraints.real
        assert exactly_equal(again._constraints["bounded"], bounded)
        assert again.last is not None
        assert (again.last.version, again.last.step) == (1, 3)

    def test_the_next_version_follows_in_another_store(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(2)
            store["y"] = torch.zeros(2)
            store.commit()
        again = make_store()
        fill(again["x"], 1.0)
        second = again.commit()
        assert (second.version, second.parent, second.changed, second.params) == (
            2,
            "main@1",
            1,
            2,
        )
        assert again.at(2)["y"].tolist() == [0.0, 0.0]

    def test_what_was_not_committed_is_gone(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(1)
            store.commit()
            fill(store["x"], 1.0)
            store["y"] = torch.zeros(1)
        assert {name: value.item() for name, value in make_store().items()} == {"x": 0.0}

    def test_a_plain_tensor_or_callable_is_ignored_for_a_stored_name(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(2)
            store.setdefault("scale", torch.full((2,), 2.0), constraint=constraints.positive)
            store.commit()
        again = make_store()
        offered = torch.ones(2)
        assert again.setdefault("x", offered).tolist() == [0.0, 0.0]
        assert again["x"] is not offered
        assert offered.tolist() == [1.0, 1.0]
        value = again.get_param("scale", lambda: torch.ones(2), constraints.positive)
        torch.testing.assert_close(value, torch.full((2,), 2.0))

    def test_a_parameter_offered_for_a_stored_name_is_filled_and_stored(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"] = torch.full((2,), 7.0)
            store.commit()
        again, parameter = make_store(), nn.Parameter(torch.zeros(2))
        assert again.setdefault("x", parameter) is parameter
        assert parameter.tolist() == [7.0, 7.0]
        assert again["x"] is parameter
        fill(parameter, 8.0)
        assert again.commit().changed == 1
        assert again.at(2)["x"].tolist() == [8.0, 8.0]

    @pytest.mark.parametrize(
        "parameter",
        [torch.zeros(3), torch.zeros(2, dtype=torch.float64)],
        ids=["shape", "dtype"],
    )
    def test_a_parameter_that_does_not_fit_is_not_adopted(
        self, make_store: MakeStore, parameter: torch.Tensor
    ) -> None:
        with make_store() as store:
            store["x"] = torch.full((2,), 7.0)
            store.commit()
        again, offered = make_store(), nn.Parameter(parameter.clone())
        assert again.setdefault("x", offered).tolist() == [7.0, 7.0]
        assert same_bits(offered.detach(), parameter)

    def test_a_name_that_was_handed_out_is_not_adopted_and_a_log_line_says_so(
        self, make_store: MakeStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with make_store() as store:
            store["net$$$x"] = torch.full((2,), 7.0)
            store.commit()
        again, offered = make_store(), nn.Parameter(torch.zeros(2))
        handed_out = again["net$$$x"]
        with caplog.at_level(logging.INFO, logger="paramstore"):
            assert again.setdefault("net$$$x", offered) is handed_out
        assert offered.tolist() == [0.0, 0.0]
        assert any("store.module" in record.getMessage() for record in caplog.records)

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_module_is_filled_before_or_after_resume(
        self, make_store: MakeStore, when: str
    ) -> None:
        with make_store() as store:
            net = store.module("net", Net())
            train(net, seed=1)
            with torch.no_grad():
                net.frozen.fill_(2.5)
            wanted = state_of(net)
            store.commit()
        again, twin = make_store(), Net()
        own = twin.state_dict(keep_vars=True)
        if when == "after":
            again.resume()
        again.module("net", twin)
        if when == "before":
            again.resume()
        assert not differences(state_of(twin), wanted)
        for name, value in twin.state_dict(keep_vars=True).items():
            assert value is own[name], name
        assert set(again) >= TRAINED
        assert not twin.frozen.requires_grad
        assert not again.changed()
        train(twin, seed=2)
        again.commit()
        assert set(again.at(2)) == STORED
        assert same_bits(
            again.at(2)["net$$$norm.running_mean"], twin.state_dict()["norm.running_mean"]
        )

    def test_buffers_of_a_module_that_is_not_bound_again_are_carried_on(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store.module("net", Net())
            store.commit()
        again = make_store()
        again["x"] = torch.zeros(1)
        second = again.commit()
        assert set(again.at(second)) == STORED | {"x"}
        assert second.changed == 1

    def test_a_module_of_another_shape_is_refused_by_name_and_left_alone(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store.module("net", nn.Linear(2, 2))
            store.commit()
        again, other = make_store(), nn.Linear(3, 2)
        before = state_of(other)
        with pytest.raises(MismatchError, match=r"net\$\$\$weight"):
            again.module("net", other)
        assert not differences(state_of(other), before)

    def test_a_module_with_more_or_less_than_is_stored_needs_strict_false(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store.module("net", nn.Linear(2, 2, bias=False))
            store.commit()
        again, more = make_store(), nn.Linear(2, 2, bias=True)
        with pytest.raises(MismatchError, match=r"bias"):
            again.module("net", more)
        again.module("net", more, strict=False)
        assert set(again) == {"net$$$weight", "net$$$bias"}
        assert same_bits(more.weight.detach(), again.at(1)["net$$$weight"])

    def test_resume_continues_an_optimiser_bit_for_bit(self, make_store: MakeStore) -> None:
        def start(store: object, seed: int) -> tuple[Net, torch.optim.Optimizer]:
            torch.manual_seed(seed)
            net = store.module("net", Net())  # type: ignore[attr-defined]
            optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad])
            store.attach(optim=optimiser, rng=True)  # type: ignore[attr-defined]
            return net, optimiser

        def step(net: Net, optimiser: torch.optim.Optimizer) -> None:
            optimiser.zero_grad()
            net(torch.randn(5, 3)).pow(2).sum().backward()
            optimiser.step()

        with make_store() as store:
            net, optimiser = start(store, 0)
            step(net, optimiser)
            store.commit(step=0)
            step(net, optimiser)
            wanted = state_of(net)
        again = make_store()
        twin, optimiser = start(again, 1)
        last = again.resume()
        assert last is not None
        assert last.step == 0
        step(twin, optimiser)
        assert not differences(state_of(twin), wanted)

    def test_reading_is_right_inside_the_callers_modes(self, make_store: MakeStore) -> None:
        with make_store() as store:
            for name in ("inference", "meta", "grad", "dtype"):
                store[name] = torch.full((2,), 3.0)
            store.commit()
        again = make_store()
        with torch.inference_mode():
            again["inference"]
        with torch.device("meta"):
            again["meta"]
        with torch.no_grad():
            again["grad"]
        torch.set_default_dtype(torch.float64)
        try:
            again["dtype"]
        finally:
            torch.set_default_dtype(torch.float32)
        for name, value in again.items():
            assert not value.is_inference(), name
            assert value.requires_grad, name
            assert same_bits(value.detach(), torch.full((2,), 3.0)), name
            value.sum().backward()
            assert value.grad is not None, name

    def test_load_all_reads_everything(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.full((2,), 3.0)
            store.commit()
        again = make_store()
        again.load_all()
        again.close()
        assert again["x"].tolist() == [3.0, 3.0]

    def test_every_way_through_the_private_dictionary_gives_tensors(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"] = torch.full((), 3.0)
            store.commit()
        ways = {
            "get": lambda params: params.get("x"),
            "pop": lambda params: params.pop("x"),
            "popitem": lambda params: params.popitem()[1],
            "setdefault": lambda params: params.setdefault("x", None),
            "values": lambda params: next(iter(params.values())),
            "items": lambda params: next(iter(params.items()))[1],
            "copy": lambda params: params.copy()["x"],
            "dict": lambda params: dict(params)["x"],
            "splat": lambda params: {**params}["x"],
            "or": lambda params: (params | {})["x"],
            "ror": lambda params: ({} | params)["x"],
        }
        for way, read in ways.items():
            tensor = read(make_store()._params)  # type: ignore[no-untyped-call]
            assert isinstance(tensor, torch.Tensor), way
            assert tensor.item() == 3.0, way

    def test_a_stored_name_can_be_deleted_or_overwritten_unread(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"], store["y"] = torch.zeros(1), torch.zeros(1)
            store.setdefault("scale", torch.ones(1), constraint=constraints.positive)
            store.commit()
        again = make_store()
        del again["x"]
        again["y"] = torch.ones(3)
        again["scale"] = torch.full((1,), 2.0)
        assert set(again.changed()) == {"x", "y", "scale"}
        again.commit()
        assert set(again.at(2)) == {"y", "scale"}
        torch.testing.assert_close(again.at(2)["scale"], torch.full((1,), 2.0))

    def test_an_unread_name_that_is_set_to_what_is_stored_has_not_changed(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"], store["y"] = torch.zeros(3), torch.zeros(3)
            store.commit()
        again = make_store()
        again["x"], again["y"] = torch.zeros(3), torch.ones(3)
        assert set(again.changed()) == {"y"}
        assert again.commit().changed == 1
        assert [row.version for row in again.history("x")] == [1]

    def test_a_store_opens_on_another_scope(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(1)
            store.commit()
        with make_store(scope="other") as other:
            assert not other
            other["x"] = torch.ones(1)
            assert other.commit().ref == "other@1"
        assert make_store()["x"].item() == 0.0
        assert make_store(scope="other")["x"].item() == 1.0

    def test_a_store_starts_from_any_snapshot(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(1)
            store.commit()
            fill(store["x"], 1.0)
            store.commit()
        with make_store(scope="branch", start="main@1") as branch:
            assert branch["x"].item() == 0.0
            fill(branch["x"], 5.0)
            made = branch.commit()
            assert (made.ref, made.parent) == ("branch@1", "main@1")
        assert make_store()["x"].item() == 1.0

    def test_start_has_to_name_a_snapshot(self, make_store: MakeStore) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(1)
            store.commit()
        with pytest.raises(SnapshotNotFoundError, match="main@7"):
            make_store(scope="branch", start="main@7")
        with pytest.raises(ScopeNotFoundError, match="'maim'"):
            make_store(scope="branch", start="maim@1")

    def test_a_read_only_store_reads_trains_and_refuses_to_write(
        self, make_store: MakeStore
    ) -> None:
        with make_store() as store:
            store["x"] = torch.zeros(1)
            store.commit(tags=["warm"])
        with make_store(readonly=True) as reader:
            fill(reader["x"], 5.0)
            assert reader.at("@warm")["x"].item() == 0.0
            assert len(reader.log()) == len(reader.history("x")) == 1
            for write in (
                reader.commit,
                lambda: reader.tag("cold", 1),
                lambda: reader.untag("warm"),
                lambda: reader.rename("x", "y"),
            ):
                with pytest.raises(ReadOnlyError, match="readonly"):
                    write()
            assert reader["x"].item() == 5.0
            assert reader.resume() is not None
            assert reader["x"].item() == 0.0
        assert [s.tags for s in make_store().log()] == [("warm",)]

    def test_a_closed_store_keeps_its_tensors_and_refuses_the_rest(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.commit()
        fill(store["x"], 1.0)
        store.close()
        store.close()
        assert store["x"].item() == 1.0
        for use in (store.commit, store.resume, store.log, lambda: store.at(1)):
            with pytest.raises(StoreClosedError, match="closed"):
                use()
        assert len(make_store().log()) == 1
