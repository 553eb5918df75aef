"""The conditions of ``--where``: numbers and columns, and nothing that runs."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramstore.condition import parse_condition
from paramstore.errors import InvalidInputError
from paramstore.snapshot import ParamVersion, Statistics


def version(**statistics: Any) -> ParamVersion:
    given: dict[str, Any] = dict.fromkeys(ParamVersion.__dataclass_fields__) | {
        "version": 3,
        "step": 20,
        "nbytes": 8,
        "created_at": datetime.now(UTC),
    }
    return ParamVersion(**given | {"statistics": Statistics(**statistics)})


ROW = version(norm=2.5, mean=-1.0, min=-3.0, max=1e3, nan_count=1, value=None)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("nan > 0", True),
        ("nan>0 and step<20", False),
        ("nan > 0 and step <= 20", True),
        ("step == 20", True),
        ("step = 20", True),
        ("step != 20", False),
        ("not nan > 0", False),
        ("not (nan > 0 and step < 20)", True),
        ("mean < -0.5", True),
        ("norm >= 2.5e0 or nothing_else > 1", None),
        ("inf > 0 or norm > 2 and step = 1", False),
        ("(inf > 0 or norm > 2) and step = 20", True),
        ("min < mean", True),
        ("20 = step", True),
        ("std > 0", False),
        ("std < 1", False),
        ("value = 1", False),
        ("MAX > 999", True),
    ],
)
def test_a_condition_holds_as_it_reads(condition: str, holds: bool | None) -> None:
    if holds is None:
        with pytest.raises(InvalidInputError, match="nothing_else"):
            parse_condition(condition)
    else:
        assert parse_condition(condition)(ROW) is holds


@pytest.mark.parametrize(
    "text",
    ["", "nan", "nan >", "> 0", "nan > 0 step", "nan > 0 and", "(nan > 0", "nan > 0)", "nan > x",
     "nan => 0", "__import__('os')", "nan > 0; step", "norm.real > 0", "1 < step < 3", "not", "\0"],
)  # fmt: skip
def test_what_is_no_condition_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(InvalidInputError, match="is not a condition"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "instead"),
    [("value == nan", "nan"), ("max == inf", "inf"), ("nan = value", "nan"), ("inf < max", "inf"),
     ("nan != nan", "nan"), ("step > 3 and not (MAX = INF)", "inf")],
)  # fmt: skip
def test_counts_of_elements_are_not_taken_for_numbers(text: str, instead: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{instead} counts elements: write '{instead} > 0"):
        parse_condition(text)
    assert parse_condition("0 < nan and inf = 0")(ROW)


def test_a_column_that_is_nearly_right_gets_a_suggestion() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'norm'"):
        parse_condition("nrom > 1")


def test_parentheses_without_end_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="parentheses deep"):
        parse_condition("(" * 5_000)
    with pytest.raises(InvalidInputError, match="parentheses deep"):
        parse_condition("not " * 5_000)


@given(st.text(max_size=40))
def test_any_text_is_a_condition_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidInputError):
        parse_condition(text)(ROW)
