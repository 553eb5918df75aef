"""Rows that no commit writes: SQLite takes any type in any column, and a stranger any value."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import paramstore
from paramstore import CorruptError, ParamStoreDict, UnknownConstraintError
from paramstore.constraints import from_spec
from paramstore.skeletons import decode
from paramstore.snapshot import parse_value


@pytest.fixture
def made(path: Path) -> Path:
    with paramstore.open(path) as store:
        store["x"] = torch.tensor(2.0)
        store.commit(metrics={"loss": 1.0}, tags=["best"], step=1)
    return path


def put(path: Path, statement: str, value: object) -> None:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(statement, (value,)).rowcount > 0
        connection.commit()


ROWS: dict[str, tuple[str, object]] = {
    "bytes as a number": ("UPDATE snapshots SET added_nbytes = ?", b"\xff"),
    "text as a step": ("UPDATE snapshots SET step = ?", "ten"),
    "bytes as a message": ("UPDATE snapshots SET message = ?", b"\xff"),
    "a number as a kind": ("UPDATE snapshots SET kind = ?", b"commit"),
    "text as a metric": ("UPDATE metrics SET value = ?", "low"),
    "bytes as the name of a metric": ("UPDATE metrics SET name = ?", b"loss"),
    "bytes as a tag": ("UPDATE tags SET name = ?", b"best"),
    "text as a norm": ("UPDATE param_versions SET norm = ?", "large"),
    "bytes as a shape": ("UPDATE param_versions SET shape = ?", b"[]"),
    "bytes as a value": ("UPDATE param_versions SET value = ?", b"2"),
    "no number as a value": ("UPDATE param_versions SET value = ?", '{"a":1}'),
    "nesting as a value": ("UPDATE param_versions SET value = ?", "[" * 50_000),
    "digits as a value": ("UPDATE param_versions SET value = ?", "9" * 50_000),
    "a huge value": ("UPDATE param_versions SET value = ?", "9" * 400),
}


def look(store: ParamStoreDict) -> None:
    for show in (store.log, lambda: store.history("x"), store.scopes):
        shown: Any = show()
        assert str(shown)
        assert repr(list(shown))


@pytest.mark.parametrize("what", ROWS)
def test_a_row_that_no_commit_writes_is_damage_to_whoever_looks(made: Path, what: str) -> None:
    put(made, *ROWS[what])
    with pytest.raises(CorruptError, match="database"), paramstore.open(made) as store:
        look(store)


@pytest.mark.parametrize("seq", ["text", b"bytes", 1.5, 2**63 - 1, 2**44, -5, None])
def test_a_counter_that_is_damaged_or_has_run_out_stops_a_commit(made: Path, seq: object) -> None:
    put(made, "UPDATE sqlite_sequence SET seq = ?", seq)
    with paramstore.open(made) as store:
        store["x"] = torch.tensor(3.0)
        if seq in (-5, None):  # no more than the rows that are there
            assert store.commit().version == 2
        else:
            with pytest.raises(CorruptError, match="counter"):
                store.commit()


@pytest.mark.parametrize("text", ["", "null", "[]", "[1,2,3]", '"x"', '["1","a"]', "1e999999"])
def test_text_that_is_no_value_of_a_tensor_is_damage(text: str) -> None:
    if text == "1e999999":  # JSON's way to write infinity
        assert parse_value(text) == float("inf")
    else:
        with pytest.raises(CorruptError, match="value of a tensor"):
            parse_value(text)


@pytest.mark.parametrize(
    "read",
    [
        lambda: decode('{"$size":[9223372036854775808]}', torch.zeros),
        lambda: from_spec('{"kind":"cat","parts":[],"dim":{"size":[9223372036854775808]}}'),
    ],
)
def test_a_size_that_torch_cannot_print_is_damage(read: Callable[[], object]) -> None:
    with pytest.raises(CorruptError):
        read()


def test_an_error_about_a_constraint_does_not_repeat_all_that_a_file_says() -> None:
    with pytest.raises(UnknownConstraintError) as caught:
        from_spec(f'{{"kind":"{"x" * 100_000}"}}')
    assert len(str(caught.value)) < 1000
