"""One tensor under several names: filled once, and never with a value that another name lacks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import paramstore
from paramstore import MismatchError, ParamStoreDict


def stored(path: Path, **values: float) -> ParamStoreDict:
    """A store with parameters of two elements in its file, unread."""
    with paramstore.open(path) as store:
        for name, value in values.items():
            store[name.replace("__", "$$$")] = nn.Parameter(torch.full((2,), value))
        store.commit()
    return paramstore.open(path)


class Holder(nn.Module):
    def __init__(self, w: nn.Parameter) -> None:
        super().__init__()
        self.w = w


def by_setdefault(store: ParamStoreDict, name: str, w: nn.Parameter) -> None:
    store.setdefault(f"{name}$$$w", w)


def by_module(store: ParamStoreDict, name: str, w: nn.Parameter) -> None:
    store.module(name, Holder(w))


WAYS = pytest.mark.parametrize("offer", [by_setdefault, by_module])
Offer = Callable[[ParamStoreDict, str, nn.Parameter], None]


@WAYS
def test_names_that_held_the_same_value_are_tied_and_what_was_trained_stays(
    path: Path, offer: Offer
) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0, b__w=3.0) as store:
        offer(store, "a", w)
        assert w.tolist() == [3.0, 3.0]
        with torch.no_grad():
            w.add_(1.0)
        offer(store, "b", w)
        assert w.tolist() == [4.0, 4.0]
        assert store._params["a$$$w"] is store._params["b$$$w"] is w
        store.commit()
        store.restore("@1")
        assert w.tolist() == [3.0, 3.0]


def test_a_parameter_that_is_offered_for_two_values_keeps_the_first(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0, b__w=5.0) as store:
        by_setdefault(store, "a", w)
        with caplog.at_level(logging.WARNING, logger="paramstore"):
            by_setdefault(store, "b", w)
        assert w.tolist() == store["a$$$w"].tolist() == [3.0, 3.0]
        assert store["b$$$w"].tolist() == [5.0, 5.0]
        assert any("'b$$$w'" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("read", [False, True])
def test_a_module_whose_tensor_would_have_two_values_is_refused(path: Path, read: bool) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0, b__w=5.0) as store:
        if read:
            store.load_all()
        by_module(store, "a", w)
        with pytest.raises(MismatchError, match=r"'b\$\$\$w': its tensor is that of 'a\$\$\$w'"):
            by_module(store, "b", w)
        assert w.tolist() == [3.0, 3.0]
        assert store["b$$$w"].tolist() == [5.0, 5.0]


def test_buffers_that_modules_share_are_not_overwritten_by_the_second(path: Path) -> None:
    with paramstore.open(path) as store:
        store.module("a", nn.BatchNorm1d(1)).running_mean.fill_(1.0)  # type: ignore[union-attr]
        store.module("b", nn.BatchNorm1d(1)).running_mean.fill_(2.0)  # type: ignore[union-attr]
        store.commit()
    with paramstore.open(path) as store:
        norm, other = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
        other.running_mean = norm.running_mean
        store.module("a", norm)
        with pytest.raises(MismatchError, match=r"'b\$\$\$running_mean': its tensor is that of"):
            store.module("b", other)
        assert norm.running_mean is not None
        assert norm.running_mean.item() == 1.0


@WAYS
def test_a_tied_name_that_is_new_joins_the_others(path: Path, offer: Offer) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0) as store:
        offer(store, "a", w)
        offer(store, "c", w)
        assert store._params["c$$$w"] is w
        store.commit()
        assert store.at("@2")["c$$$w"].tolist() == [3.0, 3.0]


def test_a_parameter_whose_first_name_was_deleted_is_filled(path: Path) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0, b__w=5.0) as store:
        by_setdefault(store, "a", w)
        del store["a$$$w"]
        by_setdefault(store, "b", w)
        assert w.tolist() == [5.0, 5.0]
        assert store._params["b$$$w"] is w


def test_binding_a_module_again_changes_nothing(path: Path) -> None:
    w = nn.Parameter(torch.zeros(2))
    with stored(path, a__w=3.0) as store:
        holder = store.module("a", Holder(w))
        with torch.no_grad():
            w.fill_(float("nan"))
        store.module("a", holder)
        assert w.isnan().all()
