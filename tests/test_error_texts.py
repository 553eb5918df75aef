"""What an error prints stays readable, whatever a damaged file made it quote."""

from __future__ import annotations

from paramstore.errors import LONGEST, CorruptError


def test_a_message_that_quotes_a_huge_cell_is_cut_and_says_how_long_it_was() -> None:
    text = str(CorruptError("tensor " + "f" * 500_000))
    assert len(text) < LONGEST + 100
    assert text.startswith("tensor ffff")
    assert text.endswith("… (500,007 characters)")


def test_an_ordinary_message_is_whole() -> None:
    assert str(CorruptError("x" * LONGEST)) == "x" * LONGEST
