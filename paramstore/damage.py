"""What checking and salvaging a store found, as plain values.

Describes and never decides; must never import anything but the standard library and listing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from paramstore.listing import format_bytes, format_table, printable

_SHOWN: Final = 50
"""Rows in a printed table; the values themselves are all there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something in a store that is not as it was written."""

    kind: str
    """``file``, ``row``, ``snapshot``, ``bytes``, ``constraint``, ``statistics``, ``history``,
    ``version``, ``parent`` or ``tag``."""
    message: str
    """What is wrong, in a sentence."""
    params: tuple[str, ...] = ()
    """Names of the parameters that are affected, where known."""
    snapshots: tuple[str, ...] = ()
    """References of the snapshots that are affected, where known."""
    advice: str
    """What to do about it."""

    def __str__(self) -> str:
        return f"{self.kind}: {printable(self.message)}; {printable(self.advice)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a look at everything in a store found."""

    where: str
    """The file, for people."""
    sample: float
    """The fraction of the tensors that was asked for."""
    snapshots: int
    """Snapshots whose rows were compared with their digest."""
    tensors: int
    """Stored tensors whose bytes were read and compared with their digest."""
    stored_tensors: int
    """Stored tensors in all."""
    nbytes: int
    """Bytes that were read for that."""
    statistics: int | None
    """Values whose statistics were computed again; None where torch was not asked."""
    orphans: int
    """Stored tensors that no snapshot holds, those of a commit under way included: no problem."""
    orphan_nbytes: int
    """Bytes of those, which ``gc`` would free."""
    problems: tuple[Problem, ...] = ()
    """What is wrong; empty where all is well."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def __str__(self) -> str:
        found = "no problem" if self.ok else _count(len(self.problems), "problem")
        lines = [
            f"{printable(self.where)}: {found}",
            f"checked {_count(self.snapshots, 'snapshot')}, {self.tensors} of "
            f"{_count(self.stored_tensors, 'stored tensor')} ({format_bytes(self.nbytes)})"
            + ("" if self.statistics is None else f", {self.statistics} statistics"),
        ]
        if self.orphans:
            lines.append(
                f"{_count(self.orphans, 'stored tensor')} ({format_bytes(self.orphan_nbytes)}) "
                f"of no snapshot; gc() frees them"
            )
        return "\n".join([*lines, *_some(map(str, self.problems))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A snapshot that could not be salvaged whole."""

    snapshot: str
    """Its reference in the damaged store, e.g. ``main@3``."""
    kept_as: str | None
    """What is left of it, e.g. ``main (salvaged)@3``; None where nothing is."""
    params: tuple[str, ...] = ()
    """Names of the parameters that are lost, where known."""
    extras: tuple[str, ...] = ()
    """Names of the extras and attached states that are lost."""
    kept: int = 0
    """How many parameters are left."""
    is_doubtful: bool = False
    """Whether its rows are not those that were committed, so that what is left may be wrong: a
    value may stand under another name, a number may be another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """What could be read out of a damaged store, and what could not."""

    where: str
    """The damaged file, for people."""
    into: str
    """The new file."""
    snapshots: int
    """Snapshots that are whole, under their own names."""
    tensors: int
    """Stored tensors that are whole."""
    lost: tuple[Loss, ...] = ()
    """Snapshots that are not."""
    notes: tuple[str, ...] = ()
    """What else is lost: rows that cannot be read, tags that point nowhere."""

    @property
    def ok(self) -> bool:
        """Whether nothing is lost."""
        return not (self.lost or self.notes)

    def __str__(self) -> str:
        head = (
            f"{printable(self.into)}: {_count(self.snapshots, 'snapshot')} whole, "
            f"{len(self.lost)} not; {_count(self.tensors, 'tensor')}"
        )
        rows = [[x.snapshot, x.kept_as or "", str(x.kept), _lost(x)] for x in self.lost]
        table = format_table(("snapshot", "left as", "params left", "lost"), rows).splitlines()
        lines = [head, *(_some(table) if rows else ())]
        return "\n".join([*lines, *_some(map(printable, self.notes))])


def _lost(loss: Loss) -> str:
    words = ["doubtful"] if loss.is_doubtful else []
    words += [*map(repr, loss.params[:10]), *(["…"] if len(loss.params) > 10 else [])]
    return ", ".join([*words, *(f"extras {name!r}" for name in loss.extras)])


def _some(lines: Iterable[str]) -> list[str]:
    lines = list(lines)
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"… and {more} more"] if more > 0 else lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
