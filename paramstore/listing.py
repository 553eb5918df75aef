"""Tables and numbers as people read them: what log, history and diff print.

Formats values that it is given; must never import anything but the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


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
    lines = [list(head), *([printable(cell) for cell in row] for row in rows)]
    used = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in used]
    return "\n".join(
        "  ".join(line[i].ljust(width) for i, width in zip(used, widths, strict=True)).rstrip()
        for line in lines
    )


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


def printable(text: str) -> str:
    """Return the text with everything that a terminal would act on escaped.

    Names and messages come from anybody, and a table goes to a terminal.
    """
    return text if text.isprintable() else repr(text)[1:-1]
