"""Restoring at the edges: what does not fit, what is tied or expanded, what breaks off half way."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn

import paramstore
from paramstore import CorruptError, MismatchError, RestoreInterruptedError
from paramstore.reader import Reader

MIB = 1 << 18  # float32 elements


def drop_chunk(path: Path, name: str, *, version: int, place: int) -> None:
    """Delete one chunk of a parameter behind the store's back."""
    with closing(sqlite3.connect(path)) as connection:
        (blob,) = connection.execute(
            "SELECT blob_id FROM v_sizes WHERE name = ? AND version = ?", (name, version)
        ).fetchone()
        chunk = (blob << 20 | place,)
        assert connection.execute("DELETE FROM chunks WHERE id = ?", chunk).rowcount == 1
        connection.commit()


def after_the_check(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Act between the first pass of the next restore and its second."""
    check = Reader.check

    def checked(self: Reader, *args: object, **kwargs: object) -> None:
        check(self, *args, **kwargs)  # type: ignore[arg-type]
        monkeypatch.setattr(Reader, "check", check)
        act()

    monkeypatch.setattr(Reader, "check", checked)


def net_with_buffer(size: int) -> nn.Module:
    net = nn.Linear(2, 2)
    net.register_buffer("seen", torch.full((size,), float(size)))
    return net


# -- buffers -------------------------------------------------------------------------


def test_restore_refuses_a_snapshot_whose_buffer_does_not_fit_the_bound_module(
    tmp_path: Path,
) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        net = store.module("net", net_with_buffer(3))
        store.commit()
        net.register_buffer("seen", torch.zeros(5))
        with torch.no_grad():
            net.get_parameter("bias").fill_(7.0)
        for call in (
            lambda: store.restore(1),
            store.resume,
            lambda: store.restore(1, strict=False),
        ):
            with pytest.raises(MismatchError, match=r"net\$\$\$seen.*\(3,\), .*\(5,\) here"):
                call()
        assert net.get_parameter("bias").tolist() == [7.0, 7.0]
        store.restore(1, exclude=["net$$$seen"])
        assert net.get_buffer("seen").tolist() == [0.0] * 5


def test_restore_refuses_a_snapshot_that_lacks_a_buffer_of_the_bound_module(
    tmp_path: Path,
) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        net = store.module("net", nn.Linear(2, 2))
        store.commit()
        net.register_buffer("seen", torch.ones(2))
        with pytest.raises(MismatchError, match=r"net\$\$\$seen': not in the snapshot"):
            store.restore(1)
        store.restore(1, strict=False)
        assert net.get_buffer("seen").tolist() == [1.0, 1.0]


# -- half way ------------------------------------------------------------------------


def test_a_tensor_that_is_half_written_is_named_among_the_changed_ones(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(2 * MIB)
        store.commit()
        with torch.no_grad():
            store["x"].fill_(7.0)
        drop_chunk(path, "x", version=1, place=1)
        with pytest.raises(RestoreInterruptedError, match="'x'") as caught:
            store.restore(1, verify=False)
        assert store["x"][0] == 0.0
        assert store["x"][-1] == 7.0
        assert caught.value.params == ("x",)
        assert caught.value.snapshots == ("main@1",)
        assert "Nothing has been changed" not in str(caught.value)


def test_a_restore_that_breaks_off_names_every_tensor_that_it_changed_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store["whole"], store["half"] = torch.zeros(4), torch.zeros(2 * MIB)
        store["gone"] = torch.ones(4)
        store.commit()
        with torch.no_grad():
            for _, value in store.named_parameters():
                value.fill_(7.0)

        def drop() -> None:
            drop_chunk(path, "half", version=1, place=1)
            drop_chunk(path, "gone", version=1, place=0)

        after_the_check(monkeypatch, drop)
        with pytest.raises(RestoreInterruptedError) as caught:
            store.restore(1)
        changed = {name for name, value in store.items() if not bool((value == 7.0).all())}
        assert set(caught.value.params) == changed == {"whole", "half"}


def test_a_restore_that_has_changed_nothing_yet_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(4)
        store.commit()
        with torch.no_grad():
            store["x"].fill_(7.0)
        drop_chunk(path, "x", version=1, place=0)
        with pytest.raises(CorruptError, match="Nothing has been changed") as caught:
            store.restore(1, verify=False)
        assert type(caught.value) is CorruptError
        assert store["x"].tolist() == [7.0] * 4


def test_binding_that_breaks_off_names_the_tensors_that_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store.module("net", nn.Linear(2, 2))
        store.commit()
    with paramstore.open(path) as store:
        net, drop = nn.Linear(2, 2), lambda: drop_chunk(path, "net$$$bias", version=1, place=0)
        after_the_check(monkeypatch, drop)
        with pytest.raises(RestoreInterruptedError, match="half way") as caught:
            store.module("net", net)
        assert caught.value.params == ("net$$$weight",)


# -- tied tensors --------------------------------------------------------------------


def test_tied_names_get_tensors_of_their_own_where_the_snapshot_holds_two_values(
    tmp_path: Path,
) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        store["a"], store["b"] = torch.zeros(2), torch.ones(2)
        store.commit()
        tied = torch.full((2,), 7.0)
        store["a"] = store["b"] = tied
        store.commit()
        store.restore(1)
        assert store["a"].tolist() == [0.0, 0.0]
        assert store["b"].tolist() == [1.0, 1.0]
        assert not store.changed()
        store["b"] = store["a"]
        with torch.no_grad():
            store["a"].fill_(9.0)
        store.restore(2)
        assert store["a"] is store["b"]
        assert store["a"].tolist() == [7.0, 7.0]


def test_restore_refuses_two_values_for_a_tensor_that_two_bound_modules_share(
    tmp_path: Path,
) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        store.module("a", nn.Linear(2, 2))
        store.module("b", nn.Linear(2, 2))
        store.commit()
        store.clear()
        shared = nn.Linear(2, 2)
        store.module("a", shared)
        store.module("b", shared)
        before = shared.weight.tolist()
        with pytest.raises(MismatchError, match=r"b\$\$\$weight': is tied to 'a\$\$\$weight'"):
            store.restore(1)
        assert shared.weight.tolist() == before


# -- expanded tensors ----------------------------------------------------------------


def test_an_expanded_tensor_becomes_one_that_can_be_restored_in_place(tmp_path: Path) -> None:
    with paramstore.open(tmp_path / "run.db") as store:
        store["x"] = torch.zeros(1).expand(3)
        store.setdefault("y", torch.ones(2, 1).expand(2, 3))
        images = nn.Parameter(torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last))
        store["images"] = images
        assert store["images"] is images
        store.commit()
        x = store["x"]
        with torch.no_grad():
            x[0] = 7.0
        assert x.tolist() == [7.0, 0.0, 0.0]
        store.restore(1)
        assert store["x"] is x
        assert x.tolist() == [0.0] * 3


def test_an_expanded_tensor_of_a_module_is_refused_before_anything_is_filled(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run.db"

    def net() -> nn.Module:
        made = nn.Linear(2, 2)
        made.register_buffer("seen", torch.ones(1).expand(3))
        return made

    with paramstore.open(path) as store:
        bound = store.module("net", net())
        store.commit()
        with torch.no_grad():
            bound.get_parameter("bias").fill_(7.0)
        with pytest.raises(MismatchError, match=r"net\$\$\$seen': its elements share memory"):
            store.restore(1)
        assert bound.get_parameter("bias").tolist() == [7.0, 7.0]
    with paramstore.open(path) as store:
        with pytest.raises(MismatchError, match=r"net\$\$\$seen': its elements share memory"):
            store.module("net", net())
        store.module("net", net_with_buffer(3))


# -- which snapshots are named -------------------------------------------------------


def test_binding_names_only_the_snapshots_that_hold_the_damaged_bytes(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        net = store.module("net", nn.Linear(2, 2))
        store.commit()
        with torch.no_grad():
            net.bias.fill_(7.0)
        store.commit()
    drop_chunk(path, "net$$$bias", version=1, place=0)
    with paramstore.open(path) as store:
        store.restore(1, include=["net$$$bias"], verify=False)
        with pytest.raises(CorruptError) as caught:
            store.module("net", nn.Linear(2, 2))
        assert caught.value.snapshots == ("main@1",)
        assert caught.value.params == ("net$$$bias",)


def test_damaged_extras_are_no_parameter(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with paramstore.open(path) as store:
        store["x"] = torch.zeros(1)
        store.commit(extras={"large": torch.arange(10_000.0)})
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM chunks WHERE id = (SELECT blob_id << 20 FROM extra_blobs)")
        connection.commit()
    with paramstore.open(path) as store:
        with pytest.raises(CorruptError, match="of the extras") as caught:
            dict(store.at(1).extras)
        assert caught.value.params == ()
        assert caught.value.snapshots == ("main@1",)
