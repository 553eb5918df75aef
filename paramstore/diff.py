"""The difference between two snapshots, as plain values.

Holds no tensor; must never ask the database, and imports matplotlib only to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from paramstore.listing import format_number, format_table, html_table, printable
from paramstore.snapshot import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_FINITE: Final = "NaN or inf"
"""What differs where elements are finite in one of two values only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """How one parameter differs between two snapshots."""

    name: str
    """Parameter name."""
    what: str
    """``value``, or what else differs: ``shape``, ``dtype``, ``constraint``, ``kind``; ``NaN or
    inf`` where an element is finite in one of both only."""
    norm: float | None = None
    """Euclidean norm of the difference of the constrained values, over elements finite in both;
    None where there is none."""
    relative: float | None = None
    """That norm over the norm of the earlier value; infinite when that is zero."""
    cosine: float | None = None
    """Cosine of the angle between both values; None where one of them is zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What differs between two snapshots; empty (false) when nothing does."""

    before: Snapshot
    """The first snapshot."""
    after: Snapshot
    """The second snapshot."""
    added: tuple[str, ...] = ()
    """Names that only the second has."""
    removed: tuple[str, ...] = ()
    """Names that only the first has."""
    changed: tuple[Change, ...] = ()
    """Names that both have with different content, the largest relative change first; before them
    those without one, and those that differ in NaN or inf."""
    unchanged: int = 0
    """How many names are the same in both."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        head, rows = self._head(), self._rows()
        return f"{head}\n{format_table(_COLUMNS, rows)}" if rows else head

    def _repr_html_(self) -> str:
        return html_table(_COLUMNS, self._rows(), self._head())

    def plot(self) -> Figure:
        """Draw the relative changes as bars, the largest 30, and name what was added and removed.

        Raises:
            UsageError: matplotlib is not installed.
        """
        from paramstore.plotting import plot_diff

        return plot_diff(self)

    def _head(self) -> str:
        return (
            f"{printable(self.before.ref)} → {printable(self.after.ref)}: "
            f"{len(self.added)} added, {len(self.removed)} removed, "
            f"{len(self.changed)} changed, {self.unchanged} unchanged"
        )

    def _rows(self) -> list[Sequence[str]]:
        rows: list[Sequence[str]] = [(f"+ {name}", "", "", "", "") for name in self.added]
        rows += [(f"- {name}", "", "", "", "") for name in self.removed]
        rows += [
            (f"~ {c.name}", c.what, *(format_number(n, 4) for n in (c.norm, c.relative, c.cosine)))
            for c in self.changed
        ]
        return rows


_COLUMNS = ("param", "differs in", "|change|", "relative", "cosine")
