"""The drawing of ``log --graph``."""

from __future__ import annotations

from paramstore.cli.graph import draw


def drawn(*snapshots: tuple[str, str | None]) -> list[str]:
    return list(draw(snapshots, [ref for ref, _ in snapshots]))


def test_a_line_is_a_line() -> None:
    assert drawn(("a@2", "a@1"), ("a@1", None)) == ["*  a@2", "*  a@1"]


def test_branches_meet_at_their_parent() -> None:
    found = drawn(("c@1", "a@1"), ("b@1", "a@1"), ("a@2", "a@1"), ("a@1", None))
    assert found == ["*  c@1", "| *  b@1", "| | *  a@2", "| |/", "|/", "*  a@1"]


def test_a_branch_crosses_what_lies_between() -> None:
    found = drawn(("c@1", "a@1"), ("b@2", "b@1"), ("a@2", "a@1"), ("a@1", None), ("b@1", None))
    assert found == ["*  c@1", "| *  b@2", "| | *  a@2", "|_|/", "* |  a@1", " /", "*  b@1"]


def test_a_parent_that_is_not_listed_ends_its_line() -> None:
    assert drawn(("a@9", "a@8"), ("b@1", "x@1")) == ["*  a@9", "*  b@1"]
