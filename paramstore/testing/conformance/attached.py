"""Extras and attached objects: what travels with a commit beside the parameters.

Part of the conformance suite; must never look below the public face.
"""

from __future__ import annotations

import random
from collections import Counter, OrderedDict
from typing import Any

import numpy as np
import pytest
import torch

from paramstore.errors import MismatchError, UnsupportedExtraError
from paramstore.testing.bits import same_bits
from paramstore.testing.conformance.backend import MakeStore
from paramstore.testing.conformance.snapshots import fill
from paramstore.testing.exact import exactly_equal

EXTRAS: dict[str, Any] = {
    "keys": {0: "int", "0": "str", True: "bool", None: "none", (1, "a"): "tuple", 0.5: "float"},
    "numbers": [1, True, 1.0, -0.0, float("nan"), float("inf"), float("-inf"), 2**200, -1],
    "text": ["", "☃", "a\0b", "line\n"],
    "ordered": OrderedDict([("b", 1), ("a", 2)]),
    "counter": Counter("abba"),
    "tuple": ((), [], {}, ((),)),
    "bytes": b"\x00\xff",
    "tensor": torch.tensor([float("nan"), -0.0]),
    "large": torch.arange(10_000.0),
    "integers": torch.arange(5, dtype=torch.uint8),
    "array": np.arange(6, dtype=np.int16).reshape(2, 3),
    "scalar": np.float32(1.5),
    "none": None,
}


class _Counting:
    """An attachable object that is not torch's."""

    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


class _Refusing(_Counting):
    """One that does not take the state of a beginner."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["count"] == 0:
            raise RuntimeError("no")
        self.count = state["count"]


class AttachedConformance:
    """Plain values and live objects that come back as they were."""

    @pytest.mark.parametrize("name", EXTRAS)
    def test_extras_come_back_with_their_types_and_bits(
        self, make_store: MakeStore, name: str
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        made = store.commit(extras={name: EXTRAS[name]})
        assert exactly_equal(dict(store.at(made).extras)[name], EXTRAS[name])
        assert exactly_equal(dict(store.log()[0].extras)[name], EXTRAS[name])

    @pytest.mark.parametrize(
        ("extras", "place"),
        [
            ({"a": [0, {"b": object()}]}, r"extras\['a'\]\[1\]\['b'\]"),
            ({"f": lambda: None}, r"extras\['f'\]"),
            ({"s": {1, 2}}, r"extras\['s'\]"),
            ({"k": {frozenset(): 1}}, r"extras\['k'\]"),
            ({"module": torch.nn.Linear(1, 1)}, r"extras\['module'\]"),
        ],
        ids=["nested object", "function", "set", "key", "module"],
    )
    def test_an_extra_that_cannot_be_stored_is_refused_with_its_path(
        self, make_store: MakeStore, extras: dict[str, Any], place: str
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.commit()
        with pytest.raises(UnsupportedExtraError, match=place):
            store.commit(extras=extras)
        assert len(store.log()) == 1
        assert store.commit(extras={"fine": 1}).version == 2

    def test_an_optimiser_continues_as_if_nothing_had_happened(self, make_store: MakeStore) -> None:
        store, tensor = make_store(), torch.zeros(3)
        store["x"] = tensor
        optimiser = torch.optim.Adam([tensor], lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5)
        store.attach(optim=optimiser, schedule=schedule)

        def train() -> None:
            optimiser.zero_grad()
            (tensor - 1.0).pow(3).sum().backward()
            optimiser.step()
            schedule.step()

        train()
        first = store.commit()
        train()
        wanted = tensor.detach().clone(), optimiser.state_dict(), schedule.state_dict()
        wanted_moment = wanted[1]["state"][0]["exp_avg"].clone()
        train()
        store.restore(first)
        train()
        assert same_bits(tensor.detach(), wanted[0])
        assert same_bits(optimiser.state_dict()["state"][0]["exp_avg"], wanted_moment)
        assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1 * 0.25)
        assert schedule.state_dict() == wanted[2]

    def test_the_generators_continue_where_they_were(self, make_store: MakeStore) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.attach(rng=True)
        store.commit()

        def draw() -> tuple[object, ...]:
            return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: S311

        wanted = draw()
        assert draw() != wanted
        store.resume()
        assert draw() == wanted

    def test_any_object_with_a_state_dict_can_be_attached(self, make_store: MakeStore) -> None:
        store, counting = make_store(), _Counting()
        store["x"] = torch.zeros(1)
        store.attach(counting=counting)
        counting.count = 7
        made = store.commit()
        counting.count = 9
        store.restore(made)
        assert counting.count == 7
        assert store.at(made).state("counting") == {"count": 7}

    def test_an_object_without_a_state_is_refused(self, make_store: MakeStore) -> None:
        store = make_store()
        with pytest.raises(ValueError, match="state_dict"):
            store.attach(thing=object())
        store["x"] = torch.zeros(1)
        assert store.commit().version == 1

    def test_resume_says_which_attached_object_the_snapshot_lacks(
        self, make_store: MakeStore
    ) -> None:
        store = make_store()
        store["x"] = torch.zeros(1)
        store.commit()
        store.attach(late=_Counting())
        fill(store["x"], 1.0)
        with pytest.raises(MismatchError, match="'late'"):
            store.resume()
        assert store["x"].item() == 1.0
        store.resume(strict=False)
        assert store["x"].item() == 0.0

    def test_an_attached_module_is_put_back_when_a_later_object_refuses(
        self, make_store: MakeStore
    ) -> None:
        store, average, broken = make_store(), torch.nn.Linear(2, 2), _Refusing()
        store["x"] = torch.zeros(1)
        store.attach(average=average, broken=broken)
        store.commit()
        broken.count = 5
        fill(average.weight, 3.0)
        with pytest.raises(MismatchError, match="'broken'"):
            store.restore(1)
        assert average.weight.tolist() == [[3.0, 3.0], [3.0, 3.0]]

    def test_an_object_that_refuses_its_state_is_named_and_nothing_changes(
        self, make_store: MakeStore
    ) -> None:
        store, fine, broken = make_store(), _Counting(), _Refusing()
        store["x"] = torch.zeros(1)
        store.attach(fine=fine, broken=broken)
        store.commit()
        fill(store["x"], 1.0)
        fine.count = 4
        broken.count = 5
        with pytest.raises(MismatchError, match="'broken'"):
            store.restore(1)
        assert (store["x"].item(), fine.count, broken.count) == (1.0, 4, 5)
