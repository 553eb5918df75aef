"""What log and history return: snapshots and param versions in a row, to print, draw and tabulate.

Holds values; must never ask the database, and imports matplotlib and pandas only when asked for
what they make.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import TYPE_CHECKING

from paramstore.listing import Listing, format_number, format_table, html_table, printable
from paramstore.snapshot import SNAPSHOT_HEAD, ParamVersion, Snapshot, snapshot_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


class Log(Listing[Snapshot]):
    """Snapshots of a scope, newest first."""

    __slots__ = ()

    def __str__(self) -> str:
        return format_table(SNAPSHOT_HEAD, map(snapshot_row, self)) if self else "no snapshots"

    def _repr_html_(self) -> str:
        return html_table(SNAPSHOT_HEAD, map(snapshot_row, self), _count(len(self), "snapshot"))

    def to_pandas(self) -> DataFrame:
        """Return a data frame: a row per snapshot in this order, a column ``metrics.…`` per metric.

        Steps are ``Int64``, because they may be missing; times are UTC; tags are tuples.

        Raises:
            UsageError: pandas is not installed.
        """
        from paramstore.frames import log_frame

        return log_frame(self)


class History(Listing[ParamVersion]):
    """The versions of one parameter, oldest first."""

    __slots__ = ()

    def __str__(self) -> str:
        return format_history(self, {row.version for row in self})

    def _repr_html_(self) -> str:
        name = f"{printable(self[0].name)}: " if self else ""
        return html_table(*self._table(), name + _count(len(self), "version"))

    def _table(self) -> tuple[Sequence[str], list[list[str]]]:
        scalar = all(row.value is not None for row in self)
        row_of, head = (_value_row, _VALUE_HEAD) if scalar else (_shape_row, _SHAPE_HEAD)
        return head, [row_of(row, before) for row, before in zip(self, (None, *self), strict=False)]

    def plot(self, ax: Axes | None = None) -> Figure:
        """Draw how the parameter moved: its value where it has one element, else a band.

        The band is from the smallest to the largest element, with mean and standard deviation
        inside; of a complex parameter, the norm. Over steps; over versions where one has no step.
        Versions with NaN or infinite elements are marked. A line ends where the parameter was
        removed, and where the step goes back.

        Args:
            ax: Where to draw; default: a figure of its own.

        Raises:
            InvalidInputError: ``ax`` is nothing to draw a curve in.
            UsageError: matplotlib is not installed.
        """
        from paramstore.plotting import plot_histories

        return plot_histories([self], ax=ax)

    def to_pandas(self) -> DataFrame:
        """Return a data frame: a row per version, its fields and statistics in columns.

        Steps and counts are ``Int64``, because they may be missing; times are UTC; shapes are
        tuples.

        Raises:
            UsageError: pandas is not installed.
        """
        from paramstore.frames import history_frame

        return history_frame(self)


def format_history(history: History, versions: Container[int]) -> str:
    """Write some versions of a history, each with its change to the one before it in the whole.

    Args:
        history: all of them.
        versions: the numbers of those to write.
    """
    head, rows = history._table()
    chosen = [line for row, line in zip(history, rows, strict=True) if row.version in versions]
    return format_table(head, chosen) if chosen else "no versions"


_VALUE_HEAD = ("version", "step", "value", "change")
_SHAPE_HEAD = ("version", "step", "shape", "norm", "change", "mean", "min", "max", "nan", "inf")


def _value_row(row: ParamVersion, before: ParamVersion | None) -> list[str]:
    value, last = row.value, before.value if before else None
    return [*_point(row), format_number(value), _change(value, last)]


def _shape_row(row: ParamVersion, before: ParamVersion | None) -> list[str]:
    return [
        *_point(row),
        "×".join(map(str, row.shape)) or "()",
        format_number(row.norm),
        _change(row.norm, before.norm if before else None),
        *map(format_number, (row.mean, row.min, row.max)),
        format_number(row.nan_count or None),
        format_number(row.inf_count or None),
    ]


def _point(row: ParamVersion) -> tuple[str, str]:
    return str(row.version), "" if row.step is None else str(row.step)


def _change(value: complex | None, last: complex | None) -> str:
    return "" if value is None or last is None else f"{value - last:+.3g}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}" if number else f"no {what}s"
