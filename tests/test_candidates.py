"""What a query leaves out before histories are read is what the condition does not hold for."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import paramstore
from paramstore import ParamStoreDict
from paramstore.condition import COLUMNS, COUNTS, parse_condition
from paramstore.db.looking import candidates

VALUES = {
    "nan": [torch.ones(3), torch.tensor([math.nan, 2.0, 3.0])],
    "inf": [torch.tensor([math.inf, -1.0])],
    "large": [torch.full((4,), 1e30), torch.full((4,), -1e30, dtype=torch.float64)],
    "one": [torch.tensor(0.5), torch.tensor(-2.0)],
    "empty": [torch.zeros(0), torch.zeros(0, 2)],
    "complex": [torch.tensor([1 + 1j, 2 - 1j])],
}
OF_ROWS = ("norm", "mean", "std", "min", "max", "nan", "inf")
"""Columns that the query knows; of the others it cannot tell."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ParamStoreDict]:
    with paramstore.open(tmp_path_factory.mktemp("candidates") / "run.db") as store:
        for step in range(2):
            for name, values in VALUES.items():
                store[name] = values[min(step, len(values) - 1)]
            store.commit(step=step)
        with store.scope("other"):
            store["elsewhere"] = torch.tensor([math.nan])
        yield store


def conditions(columns: tuple[str, ...]) -> st.SearchStrategy[str]:
    numbers = st.sampled_from(["0", "1", "-1", "0.5", "3", "1e30", "1e999", "-2"])
    measures = st.sampled_from([column for column in columns if column not in COUNTS]) | numbers
    counts = st.sampled_from(COUNTS)
    signs = st.sampled_from(["<", "<=", ">", ">=", "=", "!="])
    return st.recursive(
        st.builds("{} {} {}".format, measures, signs, measures)
        | st.builds("{} {} {}".format, counts, signs, numbers)
        | st.builds("{} {} {}".format, numbers, signs, counts),
        lambda inner: (
            st.builds("({} and {})".format, inner, inner)
            | st.builds("({} or {})".format, inner, inner)
            | st.builds("not {}".format, inner)
        ),
        max_leaves=6,
    )


def holding(store: ParamStoreDict, text: str) -> set[str]:
    condition = parse_condition(text)
    return {name for name in VALUES if any(condition(row) for row in store.history(name))}


def able(store: ParamStoreDict, text: str) -> set[str]:
    return candidates(store._session.repository.database, "main", parse_condition(text))


@given(text=conditions(OF_ROWS))
def test_what_statistics_decide_is_decided_by_the_query(store: ParamStoreDict, text: str) -> None:
    assert able(store, text) == holding(store, text)


@given(text=conditions(tuple(COLUMNS)))
def test_no_parameter_is_left_out_for_which_a_condition_holds(
    store: ParamStoreDict, text: str
) -> None:
    assert able(store, text) >= holding(store, text)


def test_what_only_a_history_knows_leaves_nothing_out(store: ParamStoreDict) -> None:
    assert able(store, "step = 10") == able(store, "not step = 10") == set(VALUES)
    assert able(store, "nan > 0 and step = 10") == {"nan"}
    assert able(store, "not (nan = 0 or step = 10)") == {"nan"}


def test_other_scopes_are_not_asked(store: ParamStoreDict) -> None:
    assert candidates(store._session.repository.database, "other", parse_condition("nan > 0")) == {
        "elsewhere"
    }
