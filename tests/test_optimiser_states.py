"""An optimiser's state goes back to the parameters and the class that it was stored from."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, Optimizer

import paramstore
from paramstore import MismatchError, ParamStoreDict, capture
from paramstore.db.owners import KEY
from paramstore.testing.exact import exactly_equal

Make = Callable[[list[Any]], Optimizer]


class Two(nn.Module):
    """Two layers of the same shapes, whose gradients differ."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + 3 * self.b(x * x)  # type: ignore[no-any-return]  # modules return Any


def train(net: nn.Module, optim: Optimizer) -> None:
    def closure() -> float:
        optim.zero_grad()
        loss = net(torch.arange(6.0).reshape(3, 2)).square().mean()
        loss.backward()
        return float(loss.item())

    optim.step(closure)


def forwards(net: nn.Module) -> list[Any]:
    return list(net.parameters())


def backwards(net: nn.Module) -> list[Any]:
    return forwards(net)[::-1]


def moments(net: nn.Module, optim: Optimizer) -> dict[str, Any]:
    """The state of each parameter by its name."""
    state = {n: dict(optim.state[p]) for n, p in net.named_parameters() if p in optim.state}
    return deepcopy(state)


def stored(path: Path, make: Make = AdamW, net: nn.Module | None = None) -> dict[str, Any]:
    """Train two steps, commit, and return the moments."""
    net = net or Two()
    with paramstore.open(path) as store:
        store.module("net", net)
        optim = make(forwards(net))
        store.attach(optim=optim)
        train(net, optim)
        train(net, optim)
        store.commit(step=2)
        return moments(net, optim)


def resumed(
    store: ParamStoreDict, net: nn.Module, optim: Optimizer, *, strict: bool = True, **how: Any
) -> dict[str, Any]:
    store.module("net", net, strict=strict, exclude=how.get("exclude"))
    store.attach(optim=optim)
    store.resume(strict=strict, **how)
    return moments(net, optim)


# -- another order -----------------------------------------------------------------


def test_parameters_in_another_order_get_their_own_moments(path: Path) -> None:
    wanted, net = stored(path), Two()
    optim = AdamW(backwards(net))
    with paramstore.open(path) as store:
        assert exactly_equal(resumed(store, net, optim), wanted)
        train(net, optim)
        store.commit(step=3)
        wanted = moments(net, optim)
        train(net, optim)
        store.restore("@latest")
        assert exactly_equal(moments(net, optim), wanted)
    again = Two()
    with paramstore.open(path) as store:
        assert exactly_equal(resumed(store, again, AdamW(forwards(again))), wanted)


def test_the_names_of_torch_itself_stay_those_of_the_optimiser(path: Path) -> None:
    with paramstore.open(path) as store:
        net = store.module("net", Two())
        store.attach(optim=AdamW(list(net.named_parameters())))
        store.commit()
    net = Two()
    optim = AdamW(list(net.named_parameters())[::-1])
    with paramstore.open(path) as store:
        resumed(store, net, optim)
    assert optim.param_groups[0]["param_names"] == ["b.bias", "b.weight", "a.bias", "a.weight"]


def test_one_state_for_all_parameters_cannot_be_put_in_another_order(path: Path) -> None:
    stored(path, LBFGS)
    net = Two()
    with (
        paramstore.open(path) as store,
        pytest.raises(MismatchError, match="'optim': LBFGS has one state for all"),
    ):
        resumed(store, net, LBFGS(backwards(net)))


def test_a_tied_tensor_has_the_same_name_whichever_module_is_bound_last(path: Path) -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.weight = one.weight
    with paramstore.open(path) as store:
        for name, net in (("one", one), ("other", other)):
            store.module(name, net)
        optim = AdamW(one.parameters())
        train(one, optim)
        store.attach(optim=optim)
        store.commit()
        wanted = moments(one, optim)
    with paramstore.open(path) as store:
        for name, net in (("other", other), ("one", one)):
            store.module(name, net)
        optim = AdamW(one.parameters())
        store.attach(optim=optim)
        store.resume()
        assert exactly_equal(moments(one, optim), wanted)


# -- something else ----------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda p: SGD(p, momentum=0.9), Adam], ids=["SGD", "Adam, of equal form"]
)
def test_the_state_of_another_class_is_refused_and_both_are_named(path: Path, make: Make) -> None:
    stored(path)
    net = Two()
    optim, before = make(forwards(net)), [p.detach().clone() for p in net.parameters()]
    with paramstore.open(path) as store:
        store.attach(optim=optim)
        text = f"'optim': its state is one of AdamW, and {type(optim).__name__} is attached"
        for strict in (True, False):
            with pytest.raises(MismatchError, match=text):
                store.resume(strict=strict)
            with pytest.raises(MismatchError, match=text):
                store.restore(1, strict=strict)
        assert all(map(torch.equal, before, net.parameters()))
        assert not optim.state


def test_another_class_under_another_name_begins_anew(path: Path) -> None:
    stored(path)
    net = Two()
    optim = SGD(net.parameters(), momentum=0.9)
    with paramstore.open(path) as store:
        store.module("net", net)
        store.attach(sgd=optim)
        store.resume(strict=False)
        train(net, optim)
        store.commit()
        assert store.at("@latest").state("sgd")


def test_new_and_lost_parameters_are_named_with_what_to_do(path: Path) -> None:
    stored(path)
    net = Two()
    net.b, net.c = nn.Identity(), nn.Linear(2, 2)  # type: ignore[assignment]  # a module as any other
    with paramstore.open(path) as store:
        store.module("net", net, strict=False)
        store.attach(optim=AdamW(net.parameters()))
        with pytest.raises(MismatchError) as caught:
            store.restore("@latest", strict=True)
    assert "'net$$$c.weight'" in str(caught.value)  # the tensors are looked at first, or last
    with paramstore.open(path) as store:
        store["extra"] = torch.zeros(1, requires_grad=True)
        store.attach(optim=AdamW([store["extra"]]))
        with pytest.raises(MismatchError) as caught:
            store.resume()
    text = str(caught.value)
    assert "it has no state for 'extra'" in text
    assert "it has one for 'net$$$a.weight', 'net$$$a.bias', 'net$$$b.weight'" in text
    assert "with strict=False those that both have go on" in text


def test_without_strict_known_parameters_go_on_and_new_ones_begin_anew(path: Path) -> None:
    wanted, net = stored(path), Two()
    net.c = nn.Linear(2, 2)
    optim = AdamW([*net.c.parameters(), *backwards(net)[2:]])
    with paramstore.open(path) as store:
        assert exactly_equal(resumed(store, net, optim, strict=False), wanted)
        optim.zero_grad()
        net.c(net(torch.ones(1, 2))).sum().backward()
        optim.step()
        store.commit()
        assert len(optim.state) == 6


def test_without_strict_the_moments_of_a_lost_layer_are_dropped(path: Path) -> None:
    wanted, net = stored(path), Two()
    net.b = nn.Linear(2, 2, bias=False)
    optim = AdamW(net.parameters())
    with paramstore.open(path) as store:
        found = resumed(store, net, optim, strict=False)
        assert exactly_equal(found, {name: wanted[name] for name in found})
        assert set(found) == {"a.weight", "a.bias", "b.weight"}
        train(net, optim)
        store.commit()
        assert len(store.at("@latest").state("optim")["state"]) == 3  # type: ignore[index]  # a state is a dict


def test_excluded_parameters_begin_anew(path: Path) -> None:
    wanted, net = stored(path), Two()
    net.b = nn.Linear(2, 3)
    own = net.b.weight.detach().clone()
    optim = AdamW(net.parameters())
    with paramstore.open(path) as store:
        found = resumed(store, net, optim, exclude="net$$$b.*")
        assert exactly_equal(found, {name: wanted[name] for name in ("a.weight", "a.bias")})
        assert torch.equal(net.b.weight, own)
        assert store.last
        assert set(store.changed()) == {"net$$$b.weight", "net$$$b.bias"}


def test_a_parameter_in_another_group_is_refused(path: Path) -> None:
    def grouped(first: nn.Module, second: nn.Module) -> Optimizer:
        groups: list[dict[str, Any]] = [{"params": m.parameters()} for m in (first, second)]
        groups[1]["lr"] = 0.1
        return AdamW(groups)

    net = Two()
    stored(path, lambda _: grouped(net.a, net.b), net)
    with (
        paramstore.open(path) as store,
        pytest.raises(MismatchError, match=r"'net\$\$\$b.weight' is in group 1 there, 0 here"),
    ):
        resumed(store, net, grouped(net.b, net.a))
    with (
        paramstore.open(path) as store,
        pytest.raises(MismatchError, match="of 2 groups of parameters, and it has 1"),
    ):
        resumed(store, net, AdamW(net.parameters()))


# -- names that are not known ------------------------------------------------------


def test_a_renamed_parameter_keeps_its_moments(path: Path) -> None:
    wanted = stored(path)
    with paramstore.open(path) as store:
        for part in ("weight", "bias"):
            store.rename(f"net$$$b.{part}", f"net$$$c.{part}")
    net = Two()
    net.c, net.b = net.b, nn.Identity()  # type: ignore[assignment]  # a module as any other
    optim = AdamW(net.parameters())
    with paramstore.open(path) as store:
        found = resumed(store, net, optim)
    assert exactly_equal({n.replace("c.", "b."): state for n, state in found.items()}, wanted)


def test_layers_whose_numbers_move_up_keep_their_moments(path: Path) -> None:
    def chain(*layers: nn.Module) -> nn.Sequential:
        return nn.Sequential(*layers)

    wanted = stored(path, net=chain(*(nn.Linear(2, 2) for _ in range(3))))
    with paramstore.open(path) as store:
        for number in (2, 1):
            for part in ("weight", "bias"):
                store.rename(f"net$$${number}.{part}", f"net$$${number + 1}.{part}")
        assert not store.changed()
    net = chain(*(nn.Linear(2, 2) for _ in range(4)))
    optim = AdamW(net.parameters())
    with paramstore.open(path) as store:
        found = resumed(store, net, optim, strict=False)
        moved = {"0": "0", "1": "2", "2": "3"}
        assert exactly_equal(found, {moved[n[0]] + n[1:]: state for n, state in wanted.items()})
        store.commit()
    with paramstore.open(path) as store:
        assert store.verify().ok


def test_a_rename_changes_nothing_in_what_a_scope_goes_on_from(path: Path) -> None:
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(1)
        store.attach(optim=AdamW([store["x"].unconstrained()]))  # type: ignore[attr-defined]  # Pyro's attribute
        with store.scope("other") as state:
            store["x"] = torch.zeros(1)
            store.attach(optim=AdamW([store["x"].unconstrained()]))  # type: ignore[attr-defined]  # Pyro's attribute
            assert state
        with store.scope("other"):
            store.rename("x", "y")
        assert [snapshot.version for snapshot in store.log(scope="other")] == [1]


def test_parameters_that_no_store_knows_go_by_position(path: Path) -> None:
    net = Two()
    optim = AdamW(net.parameters())
    train(net, optim)
    with paramstore.open(path) as store:
        store.attach(optim=optim)
        store.commit()
        wanted = moments(net, optim)
        train(net, optim)
        store.resume()
        assert exactly_equal(moments(net, optim), wanted)
    with paramstore.open(path) as store:
        store.attach(optim=AdamW([*net.a.parameters()]))
        with pytest.raises(MismatchError, match="parameter 0 of group 0, whose name is not known"):
            store.resume()


def test_a_state_that_was_stored_without_names_goes_by_position(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(capture, "with_owners", lambda _, states: states)
        wanted = stored(path)
    net = Two()
    optim = AdamW(net.parameters())
    with paramstore.open(path) as store:
        assert exactly_equal(resumed(store, net, optim), wanted)
        store.attach(optim=AdamW(net.a.parameters()))
        with pytest.raises(MismatchError, match="'optim' refused its state"):
            store.resume()


@pytest.mark.parametrize(
    "wrong",
    [{"class": "AdamW", "params": [["x"]]}, {"class": "AdamW", "params": [[1] * 4]}, 7, {}],
    ids=repr,
)
def test_names_that_are_altered_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, wrong: object
) -> None:
    def altered(_: object, states: dict[str, Any]) -> dict[str, Any]:
        return {name: {**state, KEY: wrong} for name, state in states.items()}

    with monkeypatch.context() as altering:
        altering.setattr(capture, "with_owners", altered)
        stored(path)
    net = Two()
    with (
        paramstore.open(path) as store,
        pytest.raises(paramstore.ParamStoreError, match="'optim'"),
    ):
        resumed(store, net, AdamW(net.parameters()))


# -- what is shown -----------------------------------------------------------------


def test_the_state_that_a_snapshot_shows_is_what_the_optimiser_gave(path: Path) -> None:
    with paramstore.open(path) as store:
        net = store.module("net", Two())
        optim = AdamW(net.parameters())
        store.attach(optim=optim)
        train(net, optim)
        store.commit()
        assert exactly_equal(store.at(1).state("optim"), optim.state_dict())
