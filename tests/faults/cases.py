"""One run, disturbed again and again: a fresh copy of its file each time, and a check after it.

Puts the parts together; must never know which faults there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import aftermath
from disturb import Begin, Outcome, disturbed
from ledger import Ledger
from runs import Run

T = TypeVar("T")


class Cases:
    """The folder of a test, in which one run is disturbed."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run = run
        self.folder = folder
        self._before = folder / "before"
        self._before.mkdir()
        self.said = run.prepare(self._before / "run.db")
        """What was said before the run."""

    def fresh(self) -> Path:
        """Copy the file as it is before the run."""
        path = self.emptied()
        shutil.copytree(self._before, path.parent, dirs_exist_ok=True)
        return path

    def emptied(self) -> Path:
        """The path of the file in a folder in which there is nothing."""
        path = self.folder / "case" / "run.db"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        return path

    def begin(self, path: Path, *, enduring: bool = False) -> Begin:
        """What a fork does with a fresh file."""
        return partial(self.run.enduring if enduring else self.run.begun, path)

    def try_one(self, *arguments: str, enduring: bool = False) -> Outcome:
        """Disturb the run, and check what it leaves."""
        path = self.fresh()
        outcome = disturbed(self.begin(path, enduring=enduring), *arguments)
        try:
            assert enduring <= (outcome.status == 0)
            aftermath.check(path, Ledger(self.said + outcome.lines), [self.run.scope])
        except Exception as error:
            error.add_note(f"{self.run.name!r} under strace {' '.join(arguments)}: {outcome}")
            raise
        return outcome


def sample(found: Sequence[T], wanted: int) -> list[T]:
    """Some of them, evenly, those at both ends included."""
    last = len(found) - 1
    places = {round(last * k / (wanted - 1)) for k in range(wanted)} if last >= 0 else ()
    return [found[place] for place in sorted(places)]
