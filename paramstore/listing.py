"""Tables and numbers as people read them: what log, history and diff print.

Formats values that it is given; must never import anything but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final, TypeVar, overload

T = TypeVar("T")

_ENDS: Final = 20  # rows that a notebook shows of each end of a long table


class Listing(Sequence[T]):
    """An immutable sequence whose printed form is up to its subclass."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Iterable[T]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Listing[T]: ...
    def __getitem__(self, index: int | slice) -> T | Listing[T]:
        if isinstance(index, slice):
            return type(self)(self._rows[index])
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._rows == other._rows

    def __hash__(self) -> int:
        return hash(self._rows)

    def __repr__(self) -> str:
        return str(self)


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write rows under a head, in columns two spaces apart.

    A column without a single filled cell is left out, except for the first. Cells are passed
    through :func:`printable`.
    """
    lines = _filled(head, rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Write the same table for a notebook, escaped; of a long one, both ends.

    Without colours, so that it is as readable on a dark page.
    """
    top, *lines = _filled(head, rows)
    align = [
        "right" if _are_numbers(line[i] for line in lines) else "left" for i in range(len(top))
    ]
    cells = [_html_row("td", align, line) for line in lines]
    if hidden := max(0, len(cells) - 2 * _ENDS):
        gap = f"<tr><td colspan='{len(top)}' style='text-align:left'>… {hidden:,} more …</td></tr>"
        cells[_ENDS : len(cells) - _ENDS] = [gap]
    title = f"<caption style='text-align:left'>{escape(caption)}</caption>" if caption else ""
    body = f"<tbody>{''.join(cells)}</tbody>"
    return f"<table>{title}<thead>{_html_row('th', align, top)}</thead>{body}</table>"


def _filled(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[list[str]]:
    """The head and the rows, printable, without the columns that have no filled cell."""
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    used = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines[1:])]
    return [[line[i] for i in used] for line in lines]


def _html_row(tag: str, align: Sequence[str], cells: Sequence[str]) -> str:
    row = "".join(
        f"<{tag} style='text-align:{side}'>{escape(cell)}</{tag}>"
        for side, cell in zip(align, cells, strict=True)
    )
    return f"<tr>{row}</tr>"


def _are_numbers(cells: Iterable[str]) -> bool:
    try:
        return all(isinstance(float(cell or 0), float) for cell in cells)
    except ValueError:
        return False


def format_bytes(n: int) -> str:
    """Write a number of bytes in powers of 1024.

    >>> format_bytes(1_572_864)
    '1.5 MiB'
    """
    if n < 1024:
        return f"{n} B"
    power = min((n.bit_length() - 1) // 10, 5)
    return f"{n / 1024**power:.1f} {'KMGTP'[power - 1]}iB"


def format_number(value: float | complex | None, digits: int = 6) -> str:
    """Write a number with that many significant digits, and nothing for None."""
    return "" if value is None else f"{value:.{digits}g}"


def some(words: Iterable[str], separator: str = ", ") -> str:
    """List the first five of some words, and how many more there are."""
    words = list(words)
    more = f" and {len(words) - 5:,} more" if len(words) > 5 else ""
    return separator.join(words[:5]) + more


def printable(text: str) -> str:
    """Return the text with everything that a terminal would act on escaped.

    Names and messages come from anybody, and a table goes to a terminal.
    """
    return text if text.isprintable() else repr(text)[1:-1]
