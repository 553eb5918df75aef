"""Draws which snapshot continues which, as ``git log --graph`` does.

Knows references and nothing else; must never look anything up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise


def draw(snapshots: Sequence[tuple[str, str | None]], lines: Sequence[str]) -> Iterator[str]:
    """Yield each snapshot's line behind its place in the drawing.

    Args:
        snapshots: Reference and parent, every child before its parent.
        lines: What is written beside each of them.
    """
    known = {ref for ref, _ in snapshots}
    lanes: list[str] = []  # the snapshot that each column waits for
    for (ref, parent), line in zip(snapshots, lines, strict=True):
        if ref not in lanes:
            lanes.append(ref)
        # Each child of this snapshot stands in a column of its own; here they meet.
        mine, *others = [column for column, wanted in enumerate(lanes) if wanted == ref]
        for left, column in reversed(list(pairwise([mine, *others]))):
            yield _bend(len(lanes), column, left)
            del lanes[column]
        yield f"{' '.join('*' if c == mine else '|' for c in range(len(lanes)))}  {line}"
        if parent in known:
            lanes[mine] = parent
        else:
            if mine < len(lanes) - 1:
                yield _bend(len(lanes), mine, mine)
            del lanes[mine]


def _bend(columns: int, gone: int, into: int) -> str:
    """Draw how one column ends, in another one left of it, and those behind it move up."""
    marks = [" "] * (2 * columns)
    for column in range(columns):
        if column < gone:
            marks[2 * column] = "|"
        elif column > gone:
            marks[2 * column - 1] = "/"
    if into < gone:
        marks[2 * gone - 1] = "/"
        marks[2 * into + 1 : 2 * gone - 1 : 2] = "_" * (gone - into - 1)
    return "".join(marks).rstrip()
