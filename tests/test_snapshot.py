"""Snapshots, parameter versions and how their listings print."""

from __future__ import annotations

import math
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramstore.history import History, Log
from paramstore.listing import Listing, format_bytes, format_number, format_table, printable
from paramstore.snapshot import ParamVersion, Snapshot, Statistics, parse_value

FIRST = Snapshot(
    id=1,
    scope="main",
    version=1,
    parent=None,
    step=None,
    created_at=datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC),
    message=None,
    kind="commit",
    params=2,
    changed=2,
    nbytes=16,
    added_nbytes=16,
)
SECOND = replace(
    FIRST,
    id=2,
    version=2,
    parent="main@1",
    step=100,
    created_at=datetime(2026, 3, 1, 12, 0, 30, tzinfo=UTC),
    message="after warm-up",
    metrics={"elbo": -12.34567891, "loss": math.nan},
    tags=("best", "warm"),
    changed=1,
    added_nbytes=1_572_864,
)
BASE = ParamVersion(
    name="scale",
    scope="main",
    version=1,
    step=0,
    created_at=FIRST.created_at,
    since_version=1,
    until_version=1,
    until_step=0,
    removed=False,
    kind="tensor",
    requires_grad=True,
    dtype="F32",
    shape=(),
    nbytes=4,
    constraint='{"kind":"positive"}',
    digest="00" * 32,
    statistics=Statistics(norm=1.0, mean=1.0, std=0.0, min=1.0, max=1.0, value="1.0"),
)


def scalar(version: int, value: str | None, **fields: Any) -> ParamVersion:
    return replace(
        BASE, version=version, step=version * 10, statistics=Statistics(value=value), **fields
    )


def test_a_snapshot_knows_its_reference() -> None:
    assert SECOND.ref == "main@2"


def test_a_log_prints_one_line_per_snapshot_and_no_empty_column() -> None:
    assert str(Log([SECOND, FIRST])).splitlines() == [
        "snapshot  step  time                 changed  added    tags        metrics"
        "                  message",
        "main@2    100   2026-03-01 12:00:30  1/2      1.5 MiB  best, warm  "
        "elbo=-12.3457, loss=nan  after warm-up",
        "main@1          2026-03-01 12:00:00  2/2      16 B",
    ]
    assert str(FIRST).splitlines() == [
        "snapshot  time                 changed  added",
        "main@1    2026-03-01 12:00:00  2/2      16 B",
    ]


def test_what_an_exception_left_behind_is_told_apart_wherever_snapshots_are_listed() -> None:
    left = replace(SECOND, kind="interrupted")
    log = Log([left, FIRST])
    head, interrupted, whole = str(log).splitlines()
    at = slice(head.index("kind"), head.index("changed"))
    assert (interrupted[at].strip(), whole[at].strip()) == ("interrupted", "")
    for page in (str(left), left._repr_html_(), log._repr_html_()):
        assert "interrupted" in page
    for page in (str(FIRST), FIRST._repr_html_(), str(Log([FIRST]))):
        assert "kind" not in page


def test_a_history_of_one_number_prints_values_and_changes() -> None:
    rows = [scalar(1, "0.5"), scalar(3, "0.75"), scalar(4, '"NaN"')]
    assert str(History(rows)).splitlines() == [
        "version  step  value  change",
        "1        10    0.5",
        "3        30    0.75   +0.25",
        "4        40    nan    +nan",
    ]


def test_a_history_of_tensors_prints_shapes_and_statistics() -> None:
    first = Statistics(norm=5.0, mean=0.5, std=0.1, min=-1.0, max=2.0)
    later = Statistics(norm=4.0, mean=0.25, std=0.1, min=-1.0, max=2.0, nan_count=3)
    rows = [
        replace(BASE, shape=(3, 4), statistics=first),
        replace(BASE, shape=(3, 4), version=2, step=None, statistics=later),
    ]
    assert str(History(rows)).splitlines() == [
        "version  step  shape  norm  change  mean  min  max  nan",
        "1        0     3×4    5             0.5   -1   2",
        "2              3×4    4     -1      0.25  -1   2    3",
    ]


def test_a_history_without_statistics_prints_shapes() -> None:
    rows = [replace(BASE, statistics=None), replace(BASE, version=2, statistics=None)]
    lines = str(History(rows)).splitlines()
    assert lines == ["version  step  shape", "1        0     ()", "2        0     ()"]


def test_a_history_of_complex_numbers_prints() -> None:
    rows = [scalar(1, "[1.0, -2.0]", dtype="C64"), scalar(2, "[1.5, 0.0]", dtype="C64")]
    assert rows[0].value == 1 - 2j
    assert "1-2j" in str(History(rows))
    assert "+0.5+2j" in str(History(rows))


def test_empty_listings_say_so() -> None:
    assert str(Log([])) == "no snapshots"
    assert str(History([])) == "no versions"


def test_a_listing_is_an_immutable_sequence() -> None:
    log = Log([SECOND, FIRST])
    assert (log[0], log[-1], len(log), list(log)) == (SECOND, FIRST, 2, [SECOND, FIRST])
    assert isinstance(log[:1], Log)
    assert log[:1] == Log([SECOND]) != [SECOND]
    assert hash(log) == hash(Log([SECOND, FIRST]))
    assert repr(log) == str(log)
    with pytest.raises(TypeError):
        log[0] = FIRST  # type: ignore[index]


def test_values_that_left_the_database_are_frozen_and_pickle() -> None:
    for value in (
        FIRST,
        replace(SECOND, metrics={"elbo": -1.5}),
        BASE,
        Log([FIRST]),
        History([BASE]),
    ):
        assert pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(FrozenInstanceError):
        FIRST.step = 3  # type: ignore[misc]


def test_a_param_version_passes_its_statistics_on() -> None:
    assert (BASE.norm, BASE.mean, BASE.std, BASE.min, BASE.max) == (1.0, 1.0, 0.0, 1.0, 1.0)
    assert (BASE.nan_count, BASE.inf_count, BASE.value) == (0, 0, 1.0)
    bare = replace(BASE, statistics=None)
    assert (bare.norm, bare.nan_count, bare.value) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.5", 1.5), ("3", 3), ("true", True), ('"-Infinity"', -math.inf), ("[0.0,1.0]", 1j)],
)
def test_a_stored_value_is_read_with_its_type(text: str, value: object) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)
    assert parse_value(None) is None


def test_complex_values_may_be_nan() -> None:
    found = parse_value('["NaN",1.0]')
    assert isinstance(found, complex)
    assert math.isnan(found.real)


ESCAPES = "\x1b[2J\x07\r\n\u202e\x9b"


@given(st.text(), st.text())
def test_tables_print_no_control_characters(name: str, message: str) -> None:
    hostile = replace(
        SECOND, message=message + ESCAPES, tags=(name + ESCAPES,), metrics={name + ESCAPES: 1.0}
    )
    for line in str(Log([hostile, FIRST])).split("\n"):
        assert line.isprintable()
    assert len(str(Log([hostile, FIRST])).split("\n")) == 3


@given(st.text())
def test_printable_text_is_printable_and_unchanged_when_it_was(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1_572_864, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (2**40 - 1, "1024.0 GiB"),
        (2**63, "8192.0 PiB"),
    ],
)
def test_bytes_are_written_in_powers_of_1024(n: int, text: str) -> None:
    assert format_bytes(n) == text


def test_numbers_are_written_with_significant_digits() -> None:
    assert format_number(1234567.0) == "1.23457e+06"
    assert format_number(0.123456, 4) == "0.1235"
    assert format_number(None) == ""


def test_a_table_of_no_rows_keeps_its_first_column() -> None:
    assert format_table(["a", "b"], []) == "a"


def test_a_listing_without_a_form_of_its_own_is_still_a_sequence() -> None:
    assert list(Listing([1, 2])) == [1, 2]
