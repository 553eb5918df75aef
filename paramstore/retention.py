"""Which snapshots of a scope to keep: small policies that can be joined by ``|``.

A policy decides and never acts; this module must never import anything but the standard library.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from numbers import Integral
from typing import Literal

from paramstore.errors import InvalidInputError
from paramstore.listing import format_bytes, format_number, format_table
from paramstore.snapshot import INTERRUPTED, Snapshot

Reasons = dict[int, tuple[str, ...]]
"""Why snapshots are kept, by version."""


class Policy(ABC):
    """Decides which snapshots of one scope to keep. A subclass of yours works like ours."""

    @abstractmethod
    def keep(self, snapshots: Sequence[Snapshot]) -> Mapping[int, Sequence[str]]:
        """Say which snapshots to keep, and why.

        Args:
            snapshots: All of one scope, newest first.

        Returns:
            Reasons by version; a version that is not in there need not be kept.
        """

    def __or__(self, other: object) -> Policy:
        """Keep what either keeps."""
        return AnyOf((self, other)) if isinstance(other, Policy) else NotImplemented


@dataclass(frozen=True, slots=True)
class AnyOf(Policy):
    """Keeps what any of several policies keeps; made by ``|``."""

    policies: tuple[Policy, ...]
    """Those that decide."""

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Join the reasons of all policies."""
        return joined(_asked(policy, snapshots) for policy in self.policies)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.policies))


@dataclass(frozen=True, slots=True)
class KeepLast(Policy):
    """Keeps the newest ``n`` snapshots; what an exception left behind does not count."""

    n: int
    """How many; 1 or more."""

    def __post_init__(self) -> None:
        _check_count("KeepLast", "n", self.n)

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Keep the first ``n`` of the list."""
        reason = "the newest" if self.n == 1 else f"one of the newest {self.n}"
        return {s.version: (reason,) for s in _whole(snapshots)[: self.n]}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepEvery(Policy):
    """Keeps the first snapshot of every so many steps: with 1,000, of 0–999, of 1000–1999, ….

    Of two with the same step, after a restore, the newer one. Snapshots without a step are not
    kept by it.
    """

    steps: int
    """Training steps between two that are kept; 1 or more."""

    def __post_init__(self) -> None:
        _check_count("KeepEvery", "steps", self.steps)

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Keep the smallest step of each span."""
        first: dict[int, tuple[int, int]] = {}
        for snapshot in _whole(snapshots):
            if snapshot.step is None:
                continue
            span, found = snapshot.step // self.steps, (snapshot.step, -snapshot.version)
            first[span] = min(first.get(span, found), found)
        return {
            -negative: (f"the first of steps {span * self.steps}–{(span + 1) * self.steps - 1}",)
            for span, (_, negative) in first.items()
        }


@dataclass(frozen=True, slots=True)
class KeepWithin(Policy):
    """Keeps what is at most so much older than the newest snapshot of the scope.

    A run that stopped long ago keeps its last days, too. What has a later time than the newest,
    because a clock went back, is kept.
    """

    age: timedelta
    """How much older; more than nothing."""

    def __post_init__(self) -> None:
        age: object = self.age
        if not isinstance(age, timedelta) or age <= timedelta(0):
            raise InvalidInputError(
                f"KeepWithin takes a positive datetime.timedelta, such as timedelta(days=7), got "
                f"{self.age!r}"
            )

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Keep what is young enough."""
        if not snapshots:
            return {}
        newest = snapshots[0].created_at  # not the latest time: a clock may have been wrong once
        return {
            s.version: (f"within {self.age} of the newest",)
            for s in snapshots
            if newest - s.created_at <= self.age
        }


@dataclass(frozen=True, slots=True)
class KeepBest(Policy):
    """Keeps the ``n`` snapshots with the largest (``"min"``: smallest) metric; NaN is none.

    Of equals the newest, as ``best`` chooses. What an exception left behind does not count.
    """

    metric: str
    """Name of the metric."""
    n: int = 1
    """How many; 1 or more."""
    mode: Literal["max", "min"] = "max"
    """Whether more is better."""

    def __post_init__(self) -> None:
        metric: object = self.metric
        if not isinstance(metric, str) or not metric:
            raise InvalidInputError(f"KeepBest takes the name of a metric, got {self.metric!r}")
        _check_count("KeepBest", "n", self.n)
        if self.mode not in ("max", "min"):
            raise InvalidInputError(f"KeepBest: mode is 'min' or 'max', got {self.mode!r}")

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Keep the first ``n`` by the metric."""
        sign = -1 if self.mode == "max" else 1
        ranked = sorted(
            (sign * value, -snapshot.version)
            for snapshot in _whole(snapshots)
            if not math.isnan(value := snapshot.metrics.get(self.metric, math.nan))
        )
        what = f"{'largest' if self.mode == 'max' else 'smallest'} {self.metric}"
        return {
            -negative: (f"{what} ({format_number(sign * value)}), number {rank}",)
            for rank, (value, negative) in enumerate(ranked[: self.n], 1)
        }


@dataclass(frozen=True, slots=True)
class KeepTagged(Policy):
    """Keeps what has a tag: alone, it lets go of everything that may go at all."""

    def keep(self, snapshots: Sequence[Snapshot]) -> Reasons:
        """Keep what has a tag."""
        return {s.version: (f"tagged {', '.join(map(repr, s.tags))}",) for s in snapshots if s.tags}


def decide(policy: Policy, snapshots: Sequence[Snapshot]) -> Reasons:
    """Say which snapshots of a scope stay: what the policy keeps, and what always stays.

    That is what has a tag, the newest, and the newest that no exception left behind, which
    ``resume`` continues.

    Args:
        policy: What the caller wants to keep.
        snapshots: All of one scope, newest first.

    Raises:
        InvalidInputError: not a policy, or one that answers something else.
    """
    if not isinstance(policy, Policy):
        raise InvalidInputError(
            f"a policy says what to keep, such as KeepLast(10) | KeepEvery(steps=1000); got "
            f"{policy!r}"
        )
    always = [KeepTagged().keep(snapshots)]
    always += [{s.version: ("the head of its scope",)} for s in snapshots[:1]]
    always += [{s.version: ("what resume() continues",)} for s in _whole(snapshots)[:1]]
    known = {snapshot.version for snapshot in snapshots}
    reasons = joined([*always, _asked(policy, snapshots)])
    return {version: found for version, found in reasons.items() if version in known}


def _asked(policy: Policy, snapshots: Sequence[Snapshot]) -> Reasons:
    """Ask a policy, which may be anybody's: what it means to keep must not be lost."""
    found: object = policy.keep(snapshots)
    if not isinstance(found, Mapping) or not all(isinstance(v, Integral) for v in found):
        raise InvalidInputError(
            f"keep() of {type(policy).__name__} returns reasons by version, such as "
            f"{{3: ('it is mine',)}}; got {found!r:.99}"
        )
    by_name = (f"kept by {type(policy).__name__}",)
    return {
        int(version): tuple(filter(None, [why] if isinstance(why, str) else why)) or by_name
        for version, why in found.items()
    }


def joined(parts: Iterable[Mapping[int, Sequence[str]]]) -> Reasons:
    """Join reasons, each of them once."""
    found: dict[int, dict[str, None]] = {}
    for part in parts:
        for version, reasons in part.items():
            found.setdefault(version, {}).update(dict.fromkeys(reasons))
    return {version: tuple(reasons) for version, reasons in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A snapshot that stays."""

    snapshot: Snapshot
    """The snapshot."""
    reasons: tuple[str, ...]
    """Why it stays; one reason at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """What ``expire`` did, or with ``dry_run`` would do."""

    kept: tuple[Kept, ...]
    """What stays, with the reasons: scope after scope, newest first."""
    expired: tuple[Snapshot, ...]
    """What is forgotten, in the same order."""
    nbytes: int
    """Bytes of tensors that nothing else holds, so that ``gc`` frees them."""
    dry_run: bool
    """Whether nothing was changed."""

    def __str__(self) -> str:
        rows = {k.snapshot.id: [*_point(k.snapshot), "; ".join(k.reasons)] for k in self.kept}
        rows |= {s.id: [*_point(s), ""] for s in self.expired}
        every = sorted([*(k.snapshot for k in self.kept), *self.expired], key=_place)
        table = format_table(_HEAD, [rows[s.id] for s in every]) if every else "no snapshots"
        return f"{table}\n{self.summary}"

    @property
    def summary(self) -> str:
        """One line about it."""
        verb = "would forget" if self.dry_run else "forgot"
        return (
            f"{verb} {len(self.expired):,} of {len(self.kept) + len(self.expired):,} snapshots, "
            f"and with them {format_bytes(self.nbytes)} of tensors that gc frees"
        )


_HEAD = ("snapshot", "step", "time", "kept because")


def _point(s: Snapshot) -> list[str]:
    return [s.ref, "" if s.step is None else str(s.step), f"{s.created_at:%Y-%m-%d %H:%M:%S}"]


def _place(s: Snapshot) -> tuple[str, int]:
    return s.scope, -s.version


def _whole(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Those that are not the half step that an exception left behind."""
    return [snapshot for snapshot in snapshots if snapshot.kind != INTERRUPTED]


def _check_count(policy: str, name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{policy}: {name} is a whole number from 1, got {value!r}")
