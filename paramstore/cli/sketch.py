"""Pictures made of characters: a curve of dots, and bars.

Draws numbers that it is given; must never need more than a terminal that knows Unicode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

from paramstore.listing import format_number, printable

HEIGHT: Final = 10
"""Lines of a curve."""
_DOTS: Final = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of a Braille character
_EMPTY: Final = 0x2800
_PARTS: Final = " ▏▎▍▌▋▊▉█"
_DECADES: Final = 100.0  # from this ratio of the largest to the smallest, bars grow by decades


class Level(NamedTuple):
    """A value, and from where to where it was held."""

    begin: float
    end: float
    y: float | None
    """None, or not finite: not drawn, and marked × instead."""
    joined: bool = True
    """Whether a line leads to it from the one before."""


def curve(levels: Sequence[Level], width: int, *, under: str) -> str:
    """Draw levels and the lines between them, in their order.

    Args:
        levels: What to draw.
        width: Characters in a line, labels included.
        under: What begin and end are.
    """
    seen = [y for level in levels if (y := _finite(level.y)) is not None]
    if not seen:
        return f"nothing to draw: no {'value is finite' if levels else 'versions'}"
    low, high = min(seen), max(seen)
    labels = [format_number(high, 4), format_number(low, 4)]
    margin = max(map(len, labels))
    canvas = _Canvas(max(width - margin - 2, 8), HEIGHT)
    left, right = min(level.begin for level in levels), max(level.end for level in levels)
    gaps, before = set[int](), None
    for level in levels:
        begin, end = (_place(x, left, right, 2 * canvas.width - 1) for x in level[:2])
        y = _finite(level.y)
        if y is None:
            gaps.update(range(begin // 2, end // 2 + 1))
            before = None
            continue
        row = 4 * HEIGHT - 1 - _place(y, low, high, 4 * HEIGHT - 1)
        if before is not None and level.joined:
            canvas.line(*before, begin, row)
        canvas.line(begin, row, end, row)
        before = end, row
    marks = [labels[0], *[""] * (HEIGHT - 2), labels[1]]
    drawn = [f"{mark:>{margin}} {'┤' if mark else '│'}{line}" for mark, line in
             zip(marks, canvas.lines(), strict=True)]  # fmt: skip
    if gaps:
        drawn.append(" " * (margin + 2) + _row_of(gaps, canvas.width))
    drawn.append(" " * (margin + 2) + _scale(left, right, under, canvas.width))
    return "\n".join(line.rstrip() for line in drawn)


def _finite(y: float | None) -> float | None:
    return y if y is not None and math.isfinite(y) else None


def _scale(left: float, right: float, under: str, width: int) -> str:
    ends = format_number(left), format_number(right)
    return ends[0] + under.center(max(width - len(ends[0]) - len(ends[1]), 1)) + ends[1]


def bars(rows: Sequence[tuple[str, float]], width: int) -> str:
    """Draw a bar for each name; by decades where the largest is a hundred times the smallest."""
    finite = [value for _, value in rows if 0 < value < math.inf]
    high, low = max(finite, default=1.0), min(finite, default=1.0)
    names = max((len(printable(name)) for name, _ in rows), default=0)
    room = max(width - names - 12, 8)
    lines = []
    for name, value in rows:
        share = 1.0 if value == math.inf else _share(value, low, high)
        lines.append(f"{printable(name):{names}}  {format_number(value, 4):>8}  "
                     f"{_bar(share * room)}".rstrip())  # fmt: skip
    return "\n".join(lines)


def _share(value: float, low: float, high: float) -> float:
    if value <= 0:
        return 0.0
    if high / low < _DECADES:
        return value / high
    least = math.log10(low) - 1
    return (math.log10(value) - least) / (math.log10(high) - least)


def _bar(length: float) -> str:
    whole = int(length)
    return "█" * whole + _PARTS[int((length - whole) * 8)]


def _row_of(places: set[int], width: int) -> str:
    return "".join("×" if place in places else " " for place in range(width))


def _place(value: float, low: float, high: float, most: int) -> int:
    # Halved first: the largest numbers lie more than the largest number apart.
    span = high / 2 - low / 2
    return round((value / 2 - low / 2) / span * most) if span > 0 else most // 2


class _Canvas:
    """Dots, two by four to a character."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self._cells = [[0] * width for _ in range(height)]

    def dot(self, x: int, y: int) -> None:
        self._cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    def line(self, x1: int, y1: int, x2: int, y2: int) -> None:
        steps = max(abs(x2 - x1), abs(y2 - y1), 1)
        for step in range(steps + 1):
            part = step / steps
            self.dot(round(x1 + (x2 - x1) * part), round(y1 + (y2 - y1) * part))

    def lines(self) -> list[str]:
        return ["".join(chr(_EMPTY + cell) if cell else " " for cell in row) for row in self._cells]
