"""Policies: what they keep, why, and what they refuse to be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramstore import (
    Expired,
    InvalidInputError,
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepTagged,
    KeepWithin,
    Kept,
    Policy,
    Snapshot,
)
from paramstore.retention import decide
from paramstore.snapshot import INTERRUPTED

START = datetime(2026, 1, 1, tzinfo=UTC)


def snapshot(version: int, **fields: Any) -> Snapshot:
    """A snapshot of scope ``main``, a minute after the one before."""
    given: dict[str, Any] = {
        "id": version,
        "scope": "main",
        "version": version,
        "parent": None,
        "step": None,
        "created_at": START + timedelta(minutes=version),
        "message": None,
        "kind": "commit",
    }
    return Snapshot(**given | fields)


def line(*fields: Mapping[str, Any]) -> list[Snapshot]:
    """Snapshots with these fields, given oldest first, in the order that policies get."""
    return [snapshot(i, **found) for i, found in enumerate(fields, 1)][::-1]


def steps(*numbers: int | None) -> list[Snapshot]:
    return line(*({"step": number} for number in numbers))


def losses(*values: float | None) -> list[Snapshot]:
    return line(*({"metrics": {} if v is None else {"loss": v}} for v in values))


def test_keep_last_keeps_the_newest() -> None:
    assert KeepLast(2).keep(steps(0, 1, 2, 3)).keys() == {4, 3}
    assert KeepLast(9).keep(steps(0, 1)).keys() == {1, 2}


def test_keep_last_does_not_count_what_exceptions_left_behind() -> None:
    found = line({}, {}, {"kind": INTERRUPTED}, {}, {"kind": INTERRUPTED})
    assert KeepLast(2).keep(found).keys() == {4, 2}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ([0, 100, 200, 300, 400, 500], {1, 3, 5}),
        (
            [99, 199, 299, 399, 499],
            {1, 3, 5},
        ),  # never a multiple, and one of each span all the same
        ([None, 7, None], {2}),
        ([-1, 0], {1, 2}),
        ([250, 200, 240], {2}),
        ([200, 300, 200], {3}),  # after a restore, the newer one
    ],
)
def test_keep_every_keeps_the_first_of_each_span(given: list[int | None], kept: set[int]) -> None:
    assert KeepEvery(steps=200).keep(steps(*given)).keys() == kept


def test_keep_every_says_which_span() -> None:
    assert KeepEvery(steps=200).keep(steps(250)) == {1: ("the first of steps 200–399",)}


def test_what_keep_every_keeps_stays_kept_while_a_run_goes_on() -> None:
    policy, kept = KeepEvery(steps=30) | KeepLast(3), []
    every: list[Snapshot] = []
    for version in range(1, 60):
        every.insert(0, snapshot(version, step=version * 7))
        reasons = policy.keep(every)
        every = [s for s in every if s.version in reasons]
        kept.append({s.version for s in every})
    assert kept[-1] == {
        s for s in range(1, 60) if s > 56 or s == 1 or s * 7 // 30 != (s - 1) * 7 // 30
    }


def test_keep_within_counts_from_the_newest_snapshot() -> None:
    found = steps(0, 1, 2, 3)
    assert KeepWithin(timedelta(minutes=2)).keep(found).keys() == {4, 3, 2}
    assert KeepWithin(timedelta(seconds=1)).keep(found).keys() == {4}
    assert KeepWithin(timedelta(days=1)).keep([]) == {}


def test_keep_within_forgets_nothing_recent_for_a_clock_that_was_wrong_once() -> None:
    found = steps(0, 1, 2, 3, 4)  # newest first, a minute apart
    ahead, behind = timedelta(days=3650), timedelta(days=-3650)
    wrong = replace(found[2], created_at=found[2].created_at + ahead)
    policy = KeepWithin(timedelta(minutes=2))
    assert policy.keep([*found[:2], wrong, *found[3:]]).keys() == {5, 4, 3}
    wrong = replace(found[0], created_at=found[0].created_at + behind)
    assert policy.keep([wrong, *found[1:]]).keys() == {5, 4, 3, 2, 1}


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (KeepBest("loss"), {2}),
        (KeepBest("loss", mode="min"), {6}),
        (KeepBest("loss", 2, "min"), {6, 4}),
        (KeepBest("loss", 99), {1, 2, 4, 6}),
        (KeepBest("other"), set()),
    ],
)
def test_keep_best_ranks_numbers_and_prefers_the_newer_of_equals(
    policy: KeepBest, kept: set[int]
) -> None:
    assert policy.keep(losses(0.5, 9.0, math.nan, 0.1, None, 0.1)).keys() == kept


def test_keep_best_says_what_for() -> None:
    found = KeepBest("loss", 2, "min").keep(losses(0.5, 0.25))
    assert found == {
        2: ("smallest loss (0.25), number 1",),
        1: ("smallest loss (0.5), number 2",),
    }


def test_keep_best_passes_over_what_exceptions_left_behind() -> None:
    found = line({"metrics": {"loss": 1.0}}, {"metrics": {"loss": 2.0}, "kind": INTERRUPTED})
    assert KeepBest("loss").keep(found).keys() == {1}


def test_infinity_is_a_number_that_can_be_best() -> None:
    assert KeepBest("loss").keep(losses(1.0, math.inf)).keys() == {2}


def test_keep_tagged_keeps_what_has_a_tag() -> None:
    found = KeepTagged().keep(line({"tags": ("a", "b")}, {}))
    assert found == {1: ("tagged 'a', 'b'",)}


def test_policies_are_joined_with_all_their_reasons() -> None:
    policy = KeepLast(1) | KeepEvery(steps=10) | KeepTagged()
    found = policy.keep(steps(5, 15, 25))
    assert found[3] == ("the newest", "the first of steps 20–29")
    assert found.keys() == {1, 2, 3}
    assert repr(policy) == "KeepLast(n=1) | KeepEvery(steps=10) | KeepTagged()"


def test_a_policy_is_a_value() -> None:
    assert KeepLast(3) == KeepLast(3) != KeepLast(4)
    assert len({KeepBest("a"), KeepBest("a"), KeepBest("b")}) == 2
    with pytest.raises(AttributeError):
        KeepLast(3).n = 4  # type: ignore[misc]


def test_the_head_what_resume_takes_and_what_is_tagged_always_stay() -> None:
    found = line({"tags": ("t",)}, {}, {}, {"kind": INTERRUPTED}, {"kind": INTERRUPTED})

    class Nothing(Policy):
        def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
            return {}

    assert decide(Nothing(), found) == {
        1: ("tagged 't'",),
        5: ("the head of its scope",),
        3: ("what resume() continues",),
    }
    assert decide(Nothing(), []) == {}


def test_a_policy_of_ones_own_can_be_joined_and_cannot_invent_snapshots() -> None:
    class KeepEven(Policy):
        def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
            return {s.version: ["even"] for s in snapshots if s.version % 2 == 0} | {99: ["new"]}

    found = decide(KeepEven() | KeepBest("loss"), steps(0, 1, 2, 3, 4))
    assert found.keys() == {2, 4, 5}
    assert found[2] == ("even",)


class Answering(Policy):
    """Answers what a test wants."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
        return self.answer  # type: ignore[no-any-return]  # which is the point


def test_what_a_policy_keeps_without_words_is_kept() -> None:
    found = steps(0, 1, 2)
    for policy in (Answering({1: (), 2: "mine"}), Answering({1: []}) | Answering({2: "mine"})):
        assert decide(policy, found) | {3: ()} == {1: ("kept by Answering",), 2: ("mine",), 3: ()}


@pytest.mark.parametrize("answer", [None, [1, 2], {"main@1": ("best",)}, {1.5: ("best",)}])
def test_a_policy_whose_answer_makes_no_sense_is_refused(answer: object) -> None:
    for policy in (Answering(answer), Answering(answer) | KeepLast(1)):
        with pytest.raises(InvalidInputError, match="reasons by version"):
            decide(policy, steps(0, 1, 2))


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 50), st.booleans(), st.floats()), max_size=12),
    st.integers(1, 12),
)
def test_a_decision_is_stable_and_never_loses_the_newest(
    rows: list[tuple[int | None, bool, float]], n: int
) -> None:
    """Thinning what was thinned changes nothing; whatever stays has a reason."""
    every = line(
        *(
            {"step": step, "kind": INTERRUPTED if broken else "commit", "metrics": {"m": value}}
            for step, broken, value in rows
        )
    )
    policy = KeepLast(n) | KeepEvery(steps=n) | KeepBest("m", n)
    reasons = decide(policy, every)
    left = [s for s in every if s.version in reasons]
    assert all(reasons.values())
    assert decide(policy, left) == reasons
    if every:
        assert every[0] in left


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: KeepLast(0), "KeepLast: n is a whole number from 1, got 0"),
        (lambda: KeepLast(-1), "got -1"),
        (lambda: KeepLast(2.0), "got 2.0"),  # type: ignore[arg-type]
        (lambda: KeepLast(True), "got True"),
        (lambda: KeepEvery(steps=0), "KeepEvery: steps is a whole number from 1"),
        (lambda: KeepEvery(steps="10"), "got '10'"),  # type: ignore[arg-type]
        (lambda: KeepWithin(timedelta(0)), r"timedelta\(days=7\)"),
        (lambda: KeepWithin(3600), "got 3600"),  # type: ignore[arg-type]
        (lambda: KeepBest(""), "name of a metric"),
        (lambda: KeepBest(3), "got 3"),  # type: ignore[arg-type]
        (lambda: KeepBest("a", 0), "KeepBest: n is"),
        (lambda: KeepBest("a", mode="largest"), "'largest'"),  # type: ignore[arg-type]
        (lambda: decide(KeepTagged, []), "KeepLast"),  # type: ignore[arg-type]
        (lambda: decide(5, []), "got 5"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_told_what_is_wanted(make: Callable[[], object], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        make()


def test_only_policies_can_be_joined() -> None:
    with pytest.raises(TypeError):
        KeepLast(1) | 3
    with pytest.raises(TypeError):
        Policy()  # type: ignore[abstract]


def test_what_was_expired_prints_as_a_table_with_the_reasons() -> None:
    two, one = steps(10, 20)
    kept = Kept(snapshot=two, reasons=("the newest", "tagged 'a\x1b'"))
    found = Expired(kept=(kept,), expired=(one,), nbytes=2048, dry_run=True)
    assert str(found).splitlines() == [
        "snapshot  step  time                 kept because",
        "main@2    20    2026-01-01 00:02:00  the newest; tagged 'a\\x1b'",
        "main@1    10    2026-01-01 00:01:00",
        "would forget 1 of 2 snapshots, and with them 2.0 KiB of tensors that gc frees",
    ]
    assert "no snapshots" in str(Expired(kept=(), expired=(), nbytes=0, dry_run=False))
