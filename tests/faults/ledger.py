"""What a disturbed run said before the end: what it tried, what was confirmed, what it dropped.

Each line is one system call on a pipe, so that it counts once it is made, whatever happens next;
must never be told of a commit before it has returned.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from content import Key


class Teller:
    """The run's end of a pipe, and of another by which it is told to go on."""

    def __init__(self, descriptor: int, go: int) -> None:
        self._descriptor = descriptor
        self._go = go

    def say(self, what: str, *words: object) -> None:
        """Say a line: ``try``, ``have``, ``drop`` or ``dropped`` with a key, or a ``note``."""
        line = " ".join(map(str, (what, *words))).replace("\n", " ") + "\n"
        # Not write(): faults are injected into that.
        os.writev(self._descriptor, [line.encode()])

    def pause(self) -> None:
        """Wait until the parent has begun, or ended, to disturb."""
        self.say("pause")
        os.read(self._go, 1)


class Listener(Teller):
    """Keeps the lines, for a run in this process that nothing disturbs."""

    def __init__(self) -> None:
        super().__init__(-1, -1)
        self.lines: list[str] = []

    def say(self, what: str, *words: object) -> None:
        """Keep a line."""
        self.lines.append(" ".join(map(str, (what, *words))))


class Ledger:
    """What the lines add up to."""

    def __init__(self, lines: Iterable[str]) -> None:
        self.confirmed: set[Key] = set()
        """Must be there."""
        self.possible: set[Key] = set()
        """May be there besides, whole."""
        self.notes: list[str] = []
        self.add(lines)

    def add(self, lines: Iterable[str]) -> None:
        """Take note of more lines."""
        for line in lines:
            self._add(*line.split(" "))

    def _add(self, what: str, *words: str) -> None:
        if what == "note":
            self.notes.append(" ".join(words))
            return
        key = Key(words[0], int(words[1]))
        if what in ("try", "drop"):
            self.confirmed.discard(key)
            self.possible.add(key)
        elif what == "have":
            self.possible.discard(key)
            self.confirmed.add(key)
        else:
            assert what == "dropped", what
            self.possible.discard(key)
