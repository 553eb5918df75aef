"""Curves and bars made of characters."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from paramstore.cli.sketch import Level, bars, curve


def test_a_rising_line_goes_from_the_lower_left_to_the_upper_right() -> None:
    lines = curve([Level(0, 0, 0), Level(10, 10, 5)], 30, under="step").splitlines()
    assert lines[0].startswith("5 ┤")
    assert lines[9].startswith("0 ┤")
    assert lines[-1].split() == ["0", "step", "10"]
    starts = [len(line) for line in lines[:10]]
    assert starts == sorted(starts, reverse=True)


def test_what_is_not_finite_is_a_marked_gap() -> None:
    bad = [Level(5, 5, None), Level(10, 10, math.inf), Level(12, 14, None)]
    lines = curve([Level(0, 0, 1), *bad, Level(15, 15, 2)], 40, under="step").splitlines()
    assert [len(marks) for marks in lines[10].split()] == [1, 1, 6]
    assert "nothing to draw" in curve([Level(0, 0, None)], 40, under="step")


def test_a_value_is_level_for_as_long_as_it_was_kept() -> None:
    lines = curve([Level(0, 30, 1), Level(60, 90, 2, joined=False)], 93, under="step").splitlines()
    assert set(lines[0][3:62]) == {" "}
    assert set(lines[0][63:]) == {"⠉"}
    assert lines[1:9] == ["  │"] * 8
    assert set(lines[9][3:32]) == {"⣀"}
    assert lines[-1].split() == ["0", "step", "90"]


def test_the_longest_bar_is_that_of_the_largest_number() -> None:
    lines = bars([("a", 2.0), ("bb", 1.0), ("c", 0.0)], 40).splitlines()
    assert lines[0].count("█") == 2 * lines[1].count("█")
    assert "█" not in lines[2]


def test_numbers_that_are_far_apart_are_drawn_by_decades() -> None:
    lines = bars([("a", 1e6), ("b", 1e3), ("c", 1.0), ("d", math.inf)], 60).splitlines()
    found = [line.count("█") for line in lines]
    assert found[0] == found[3] > found[1] > found[2] > 0


numbers = st.none() | st.floats()


places = st.tuples(*[st.floats(allow_nan=False, allow_infinity=False)] * 2).map(sorted)


@given(st.lists(st.tuples(places, numbers, st.booleans()), min_size=1))
def test_any_numbers_can_be_drawn(held: list[tuple[list[float], float | None, bool]]) -> None:
    levels = [Level(begin, end, y, joined) for (begin, end), y, joined in held]
    lines = curve(levels, 50, under="step").splitlines()
    assert all(len(line) <= 90 for line in lines)


@given(st.lists(st.tuples(st.text(), st.floats(min_value=0))))
def test_any_bars_can_be_drawn(rows: list[tuple[str, float]]) -> None:
    bars([row for row in rows if not math.isnan(row[1])], 50)
