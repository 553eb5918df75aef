"""The table of unconstrained tensors reads what is unread, and is a plain dict once nothing is."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from paramstore.lazy import UNREAD, Params


def half_read() -> tuple[Params, list[str]]:
    """A table of three names, two of them unread, and the names read so far."""
    read: list[str] = []

    def fill(names: Iterable[str]) -> None:
        for name in names:
            read.append(name)
            dict.__setitem__(table, name, torch.tensor(float(len(name))))

    table = Params()
    table.read_with(fill)
    dict.__setitem__(table, "there", torch.tensor(0.0))
    table.expect(["a", "bb"])
    return table, read


LOOKS: dict[str, Callable[[Params], Any]] = {
    "items": lambda table: [value for _, value in table.items()],
    "values": lambda table: list(table.values()),
    "getitem": lambda table: [table[name] for name in table],
    "get": lambda table: [table.get(name) for name in table],
    "setdefault": lambda table: [table.setdefault(name, torch.ones(1)) for name in list(table)],
    "pop": lambda table: [table.pop(name) for name in list(table)],
    "popitem": lambda table: [table.popitem()[1] for _ in range(3)],
    "dict": lambda table: list(dict(table).values()),
    "unpacked": lambda table: list({**table}.values()),
    "OrderedDict": lambda table: list(OrderedDict(table).values()),
    "copy": lambda table: list(table.copy().values()),
    "copy.copy": lambda table: list(copy.copy(table).values()),
    "deepcopy": lambda table: list(copy.deepcopy(table).values()),
    "pickle": lambda table: list(pickle.loads(pickle.dumps(table)).values()),
    "or": lambda table: list((table | {}).values()),
    "ror": lambda table: list(({} | table).values()),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_no_look_lets_a_placeholder_out(look: Callable[[Params], Any]) -> None:
    for again in (False, True):
        table, _ = half_read()
        if again:  # a table that had nothing unread in between
            table.load()
            assert not table.any_unread
            table.expect(["a", "bb"])
        assert sorted(value.item() for value in look(table)) == [0.0, 1.0, 2.0]


def test_a_table_is_read_at_once_and_then_never_again() -> None:
    table, read = half_read()
    assert table.any_unread
    assert UNREAD not in [value for _, value in table.live()]
    table.items()
    assert (read, table.any_unread, table.unread()) == (["a", "bb"], False, [])
    assert type(table).items is dict.items
    table.items()
    assert read == ["a", "bb"]


def test_the_last_unread_name_may_be_read_or_removed_by_itself() -> None:
    table, read = half_read()
    table["a"]
    assert table.discard("bb") is None
    table.load()
    assert (read, table.any_unread) == (["a"], False)


def test_tables_are_compared_by_what_is_in_them() -> None:
    table, _ = half_read()
    plain = table.copy()
    table.expect([])
    assert table == plain
    assert table != {}


def test_placeholders_that_are_put_back_into_a_table_that_was_read_are_unread() -> None:
    table, read = half_read()
    before = list(dict.items(table))
    table.load()
    table.replace(before)
    assert table.unread() == ["a", "bb"]
    assert UNREAD not in table.values()
    assert read == ["a", "bb"] * 2


def test_a_table_that_is_given_other_tensors_only_is_plain_dict() -> None:
    table, _ = half_read()
    table.replace([("b", torch.ones(1)), ("a", torch.zeros(1))])
    assert (list(table), table.any_unread) == (["b", "a"], False)
