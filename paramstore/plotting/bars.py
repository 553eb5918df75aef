"""What differs between two snapshots, as bars.

Draws the largest changes and counts the rest; must never sort out what is worth knowing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paramstore.diff import Change, Diff
from paramstore.listing import format_number
from paramstore.plotting.style import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    PLAIN,
    VERMILLION,
    Picture,
    beside,
    drawable,
    dress,
    fitting,
    placed,
)

_CHANGED, _LISTED = 30, 10  # rows; of changes, and of names that only one snapshot has
_DECADES: Final = 100.0


class _Row(NamedTuple):
    name: str
    length: float
    note: str
    color: str


def plot_diff(diff: Diff) -> Figure:
    """Draw the relative change of the parameters that differ most, and name what only one has."""
    rows = [_bar(change) for change in diff.changed[:_CHANGED]]
    rows += _names(diff.added, "added", GREEN)
    rows += _names(diff.removed, "removed", VERMILLION)
    page = Picture(7.2, 1.1 + 0.24 * max(2, len(rows)))
    axes = page.add_subplot()
    dress(axes, 8)
    _draw(axes, rows)
    title = f"{diff.before.ref} → {diff.after.ref}"
    axes.set_title(drawable(title), loc="left", size=10, weight="bold", color=INK, pad=16, **PLAIN)
    beside(axes, _counts(diff), "left", 8, color=FAINT)
    return page


def _draw(axes: Axes, rows: Sequence[_Row]) -> None:
    if not rows:
        axes.text(0.5, 0.5, "nothing differs", transform=axes.transAxes, ha="center", va="center",
                  size=9, color=FAINT)  # fmt: skip
    lengths = [size for row in rows if row.length < math.inf and (size := placed(row.length))]
    longest, shortest = max(lengths, default=1.0), min(lengths, default=1.0)
    logarithmic = longest / shortest > _DECADES
    left = shortest / 3 if logarithmic else 0.0
    right = longest * (longest / left) ** 0.4 if logarithmic else longest * 1.45
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlim(left, right)
    for place, row in enumerate(rows):
        end = longest if row.length == math.inf else max(placed(row.length), left)
        axes.barh(place, end - left, left=left, height=0.68, color=row.color)
        axes.annotate(
            row.note, (end, place), xytext=(4, 0), textcoords="offset points", va="center",
            size=7.5, color=row.color if row.color != BLUE else INK, annotation_clip=False, **PLAIN,
        )  # fmt: skip
    names = [fitting(row.name, 2.6, 8) for row in rows]
    axes.set_yticks(range(len(rows)), names, size=8, **PLAIN)
    axes.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    scale = ", logarithmic" if logarithmic else ""
    axes.set_xlabel(f"|change| / |before|{scale}", size=8, color=FAINT)


def _bar(change: Change) -> _Row:
    if change.relative is None:
        return _Row(change.name, 0.0, f"{change.what} differs", FAINT)
    length = "∞, was 0" if change.relative == math.inf else format_number(change.relative, 3)
    cosine = "" if change.cosine is None else f"   cos {change.cosine:.3f}"
    what = "" if change.what == "value" else f"   {change.what} differs"
    return _Row(change.name, change.relative, f"{length}{cosine}{what}", BLUE)


def _names(names: Sequence[str], what: str, color: str) -> list[_Row]:
    rows = [_Row(name, 0.0, what, color) for name in names[:_LISTED]]
    if (more := len(names) - _LISTED) > 0:
        rows.append(_Row("", 0.0, f"and {more:,} more {what}", color))
    return rows


def _counts(diff: Diff) -> str:
    shown = f", the largest {_CHANGED} drawn" if len(diff.changed) > _CHANGED else ""
    return (
        f"{len(diff.changed):,} changed{shown}; {len(diff.added):,} added, "
        f"{len(diff.removed):,} removed, {diff.unchanged:,} unchanged"
    )
