"""A model that changed between two runs: what is taken over, what is refused, and what is said."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.distributions import Distribution
from torch.nn.parallel import DataParallel, DistributedDataParallel

import paramstore
from paramstore import MismatchError, ParamNotFoundError


@pytest.fixture
def checked() -> Iterator[None]:
    """Let torch.distributions go on to check values: torch.compile turns that off for good."""
    before = Distribution._validate_args
    yield
    Distribution.set_default_validate_args(before)


def made(*sizes: int) -> nn.Sequential:
    """Layers with running statistics."""
    pairs = pairwise(sizes)
    return nn.Sequential(*(nn.Sequential(nn.Linear(*p), nn.BatchNorm1d(p[1])) for p in pairs))


def stored(path: Path, net: nn.Module) -> dict[str, torch.Tensor]:
    with paramstore.open(path) as store:
        store.module("net", net)
        snapshot = store.commit(step=1)
        return dict(store.at(snapshot))


def of(layer: int) -> set[str]:
    parts = "0.weight 0.bias 1.weight 1.bias 1.running_mean 1.running_var 1.num_batches_tracked"
    return {f"net$$${layer}.{part}" for part in parts.split()}


# -- exclude when a module is bound ------------------------------------------------


def test_a_layer_of_another_shape_keeps_its_own_values_and_the_rest_is_filled(path: Path) -> None:
    before, net = stored(path, made(2, 3, 4)), made(2, 3, 5)
    own = {name: value.clone() for name, value in net.state_dict().items()}
    with paramstore.open(path) as store:
        store.module("net", net, exclude="net$$$1.*")
        for name, value in net.state_dict().items():
            wanted = own[name] if name.startswith("1.") else before[f"net$$${name}"]
            assert torch.equal(value, wanted), name
        last = store.resume(exclude="net$$$1.*")
        assert last is not None
        assert last.step == 1
        for name, value in net.state_dict().items():
            wanted = own[name] if name.startswith("1.") else before[f"net$$${name}"]
            assert torch.equal(value, wanted), name
        second = store.commit()
        assert second.parent == "main@1"
        assert store.at(second)["net$$$1.0.weight"].shape == (5, 3)
        store.resume()


def test_what_a_module_lacks_of_the_excluded_is_stored_no_more(path: Path) -> None:
    stored(path, made(2, 3, 4))
    with paramstore.open(path) as store:
        store.module("net", made(2, 3), exclude="net$$$1.*")
        store.resume(exclude="net$$$1.*")
        assert set(store.at(store.commit())) == of(0)
        assert set(store.at(1)) == of(0) | of(1)


def test_without_exclude_what_a_module_lacks_is_carried_on(path: Path) -> None:
    stored(path, made(2, 3, 4))
    with paramstore.open(path) as store:
        store.module("net", made(2, 3), strict=False)
        store.resume()
        assert set(store.at(store.commit())) == of(0) | of(1)


def test_a_layer_may_have_a_parameter_where_it_had_a_buffer(path: Path) -> None:
    class Net(nn.Module):
        def __init__(self, *, trained: bool) -> None:
            super().__init__()
            if trained:
                self.scale = nn.Parameter(torch.ones(2))
            else:
                self.register_buffer("scale", torch.zeros(2))

    for name, trained in (("to parameter", False), ("to buffer", True)):
        file = path.with_name(name)
        stored(file, Net(trained=trained))
        with paramstore.open(file) as store:
            with pytest.raises(MismatchError, match="a buffer in the"):
                store.module("net", Net(trained=not trained))
            net = store.module("net", Net(trained=not trained), exclude="net$$$scale")
            store.resume(exclude="net$$$scale")
            assert torch.equal(store.at(store.commit())["net$$$scale"], net.scale)


def test_other_shapes_are_refused_with_what_helps_and_nothing_that_does_not(path: Path) -> None:
    stored(path, made(2, 3, 4))
    with paramstore.open(path) as store, pytest.raises(MismatchError) as caught:
        store.module("net", made(2, 3, 5), strict=False)
    assert "exclude=[…]" in str(caught.value)
    assert "strict" not in str(caught.value)
    assert "stored as torch.float32 of shape (4, 3), torch.float32 of shape (5, 3) here" in str(
        caught.value
    )


def test_other_names_are_refused_with_what_helps(path: Path) -> None:
    stored(path, made(2, 3))
    with paramstore.open(path) as store, pytest.raises(MismatchError, match="strict=False"):
        store.module("net", made(2, 3, 4))


def test_of_many_misfits_five_are_named_and_the_advice_is_not_lost(path: Path) -> None:
    stored(path, nn.Sequential(*(nn.Linear(1, 1) for _ in range(100))))
    with paramstore.open(path) as store:
        with pytest.raises(MismatchError) as caught:
            store.module("net", nn.Sequential(*(nn.Linear(2, 2) for _ in range(100))))
        assert " and 195 more. Nothing has been changed" in str(caught.value)
        assert len(str(caught.value)) < 1000
        with pytest.raises(MismatchError, match=r" and 395 more\. Nothing has been changed"):
            store.module("net", nn.ModuleDict({f"x{i}": nn.Linear(1, 1) for i in range(100)}))
    with paramstore.open(path, scope="other") as store:
        store.module("net", nn.Sequential(*(nn.Linear(2, 2) for _ in range(100))))
        with pytest.raises(MismatchError, match=r" and 195 more\. Nothing has been changed"):
            store.restore("main@1")


# -- a filter on resume ------------------------------------------------------------


def test_resume_leaves_alone_what_is_excluded_and_brings_back_what_is_attached(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"], store["y"] = torch.zeros(1), torch.zeros(1)
        store.attach(rng=True)
        store.commit()
        wanted = torch.rand(3)
        for name in ("x", "y"):
            with torch.no_grad():
                store[name].fill_(7)
        store.resume(exclude="y")
        assert torch.equal(torch.rand(3), wanted)
        assert (store["x"].item(), store["y"].item()) == (0, 7)
        assert store.changed() == ("y",)
        with torch.no_grad():
            store["x"].fill_(7)
        store.resume(include=["y"])
        assert (store["x"].item(), store["y"].item()) == (7, 0)
        with pytest.raises(ParamNotFoundError, match="'z'"):
            store.resume(include="z")


def test_what_resume_refuses_can_be_done_as_it_says(path: Path) -> None:
    stored(path, made(2, 3))
    net = made(2, 3, 4)
    with paramstore.open(path) as store:
        store.module("net", net, strict=False)
        with pytest.raises(MismatchError) as caught:
            store.resume()
        assert "exclude=[…]" in str(caught.value)
        assert "strict=False" in str(caught.value)
        store.resume(exclude=["net$$$1.*"])
        store.resume(strict=False)


# -- wrappers ----------------------------------------------------------------------


@pytest.mark.usefixtures("checked")
def test_a_compiled_module_is_bound_by_the_names_that_it_has_without(path: Path) -> None:
    before, net = stored(path, made(2, 3)), made(2, 3)
    compiled = torch.compile(net, backend="eager")
    with paramstore.open(path) as store:
        assert store.module("net", compiled) is compiled  # type: ignore[type-var]  # it gives a function
        assert torch.equal(net.state_dict()["0.0.weight"], before["net$$$0.0.weight"])
        assert set(store.at(store.commit())) == of(0)


@pytest.mark.usefixtures("checked")
def test_a_module_for_several_devices_is_bound_by_the_names_that_it_has_without(
    path: Path,
) -> None:
    stored(path, made(2, 3))
    with paramstore.open(path) as store:
        store.module("net", DataParallel(torch.compile(made(2, 3), backend="eager")))  # type: ignore[type-var]  # it gives a function
        assert set(store.at(store.commit())) == of(0)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]  # documented, not in __all__
    try:
        with paramstore.open(path) as store:
            store.module("net", DistributedDataParallel(made(2, 3)))
            assert set(store.at(store.commit())) == of(0)
    finally:
        distributed.destroy_process_group()


@pytest.mark.usefixtures("checked")
def test_a_part_that_is_compiled_is_said_to_be_why_names_differ(path: Path) -> None:
    stored(path, made(2, 3))
    net = made(2, 3)
    net[0] = torch.compile(net[0], backend="eager")  # type: ignore[assignment]  # a module as any other
    with paramstore.open(path) as store:
        with pytest.raises(MismatchError, match=r"'_orig_mod' come of torch\.compile"):
            store.module("net", net)
        net = made(2, 3)
        net[0].compile(backend="eager")
        store.module("net", net)
