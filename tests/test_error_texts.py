"""What an error prints stays readable, whatever a damaged file made it quote."""

from __future__ import annotations

from paramstore.errors import LONGEST, CorruptError


def test_a_message_that_quotes_a_huge_cell_is_cut_in_its_middle() -> None:
    text = str(CorruptError("tensor " + "f" * 500_000 + "; salvage it"))
    assert len(text) < LONGEST + 100
    assert text.startswith("tensor ffff")
    assert "… (490,019 characters) …" in text
    assert text.endswith("ffff; salvage it")


def test_an_ordinary_message_is_whole() -> None:
    assert str(CorruptError("x" * LONGEST)) == "x" * LONGEST
