"""The difference between two snapshots as it prints."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from paramstore.diff import Change, Diff
from paramstore.snapshot import Snapshot

BEFORE = Snapshot(
    id=1,
    scope="main",
    version=1,
    parent=None,
    step=0,
    created_at=datetime(2026, 3, 1, tzinfo=UTC),
    message=None,
    kind="commit",
)
AFTER = replace(BEFORE, id=9, version=4, parent="main@3", step=30)


def test_a_diff_prints_what_was_added_removed_and_changed() -> None:
    diff = Diff(
        before=BEFORE,
        after=AFTER,
        added=("bias",),
        removed=("old",),
        changed=(
            Change(name="scale", what="value", norm=0.123456, relative=inf, cosine=None),
            Change(name="loc", what="shape"),
        ),
        unchanged=7,
    )
    assert str(diff).splitlines() == [
        "main@1 → main@4: 1 added, 1 removed, 2 changed, 7 unchanged",
        "param    differs in  |change|  relative",
        "+ bias",
        "- old",
        "~ scale  value       0.1235    inf",
        "~ loc    shape",
    ]


def test_a_diff_of_equal_snapshots_is_empty_and_false() -> None:
    same = Diff(before=BEFORE, after=AFTER, unchanged=3)
    assert not same
    assert str(same) == "main@1 → main@4: 0 added, 0 removed, 0 changed, 3 unchanged"


def test_any_difference_makes_a_diff_true() -> None:
    change = Change(name="x", what="value")
    assert Diff(before=BEFORE, after=AFTER, added=("x",))
    assert Diff(before=BEFORE, after=AFTER, removed=("x",))
    assert Diff(before=BEFORE, after=AFTER, changed=(change,))


@given(st.text(), st.text())
def test_a_diff_prints_no_control_characters(name: str, scope: str) -> None:
    hostile = "\x1b[2J\n" + name
    diff = Diff(
        before=replace(BEFORE, scope="\u202e" + scope),
        after=AFTER,
        added=(hostile,),
        removed=(hostile,),
        changed=(Change(name=hostile, what="value", norm=1.0),),
    )
    lines = str(diff).split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
